"""Batches do not depend on how many processes share them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.datasets import Dataset, Samples, SessionTrials, build_dataset
from fmri2img.datasets.plan import SamplingPlan
from fmri2img.errors import InputError
from fmri2img.trainer.batches import Batch, BatchLoader, picture_rows, with_sessions

SUBJECTS = ("subj01", "subj02", "subj03")
LANES, ROWS = 4, 2  # of each subject in each lane


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return Dataset.open(data)


def tables(dataset: Dataset) -> dict[str, Samples]:
    return {name: dataset.samples(name, "train") for name in SUBJECTS}


def loader(
    dataset: Dataset, rank: int = 0, world: int = 1, *, noise: float = 0.5, seed: int = 1, **reading: Any
) -> BatchLoader:
    plan = SamplingPlan(
        tables(dataset),
        fingerprint=dataset.fingerprint,
        seed=seed,
        global_batch=LANES * ROWS * len(SUBJECTS),
        lanes=LANES,
    )
    spaces = ["pixels-2", "words"]
    return BatchLoader(
        dataset,
        tables(dataset),
        plan,
        spaces,
        rank=rank,
        world_size=world,
        seed=seed,
        noise=noise,
        **reading,
    )


def joined(dataset: Dataset, step: int, world: int) -> Batch:
    """What all ranks read together, subjects one after another as one process has them."""
    parts = [loader(dataset, rank, world).read(step) for rank in range(world)]
    each = LANES * ROWS // world

    def gathered(rows: list[torch.Tensor]) -> torch.Tensor:
        places = range(len(SUBJECTS))
        return torch.cat([part[i * each : (i + 1) * each] for i in places for part in rows])

    responses = {name: torch.cat([part.responses[name] for part in parts]) for name in SUBJECTS}
    features = {name: gathered([part.features[name] for part in parts]) for name in ("pixels-2", "words")}
    return Batch(step, responses, features, gathered([part.pictures for part in parts]), 0.0)


def assert_same(one: Batch, other: Batch) -> None:
    assert list(one.responses) == list(other.responses)
    for name, value in one.responses.items():
        assert torch.equal(value, other.responses[name])
    for name, value in one.features.items():
        assert torch.equal(value, other.features[name])
    assert torch.equal(one.pictures, other.pictures)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("step", [0, 1, 9])
def test_all_ranks_together_read_the_rows_and_noise_that_one_process_reads(
    dataset: Dataset, step: int, world: int
) -> None:
    assert_same(joined(dataset, step, world), loader(dataset).read(step))


def test_rows_are_the_features_and_pictures_of_their_responses(dataset: Dataset) -> None:
    batch = loader(dataset, noise=0).read(3)
    at = 0
    for subject in SUBJECTS:
        table = dataset.samples(subject, "train")
        for row in batch.responses[subject]:
            i = int(np.flatnonzero(table.nsd_id == int(batch.pictures[at]))[0])
            assert (dataset.responses(table, i).astype(np.float32) == row.numpy()).all(1).any()
            assert np.array_equal(batch.features["words"][at].numpy(), dataset.feature(table, i, "words"))
            at += 1
    assert at == len(batch.pictures)


def test_noise_is_added_with_the_deviation_asked_for_and_none_with_zero(dataset: Dataset) -> None:
    steps = range(40)
    differences = torch.cat(
        [
            (
                loader(dataset, noise=0.5).read(s).responses[name]
                - loader(dataset, noise=0).read(s).responses[name]
            ).flatten()
            for s in steps
            for name in SUBJECTS
        ]
    )
    assert float(differences.std()) == pytest.approx(0.5, rel=0.05)
    assert abs(float(differences.mean())) < 0.03


def test_a_batch_is_as_stored_and_float32_on_its_device(dataset: Dataset) -> None:
    batch = loader(dataset, noise=0).read(2)
    assert {value.dtype for value in batch.responses.values()} == {torch.float16}
    moved = batch.to(torch.device("cpu"))
    for name, value in moved.responses.items():
        assert value.dtype == torch.float32 and torch.equal(value, batch.responses[name].float())
    for name, value in moved.features.items():
        assert value.dtype == torch.float32 and torch.equal(value, batch.features[name].float())


@pytest.mark.parametrize(("workers", "ahead"), [(1, 3), (2, 1), (4, 6)])
def test_reading_ahead_gives_the_same_batches_from_any_step_on(
    dataset: Dataset, workers: int, ahead: int
) -> None:
    straight = [loader(dataset).read(step) for step in range(7)]
    for first in (0, 4):
        read = list(loader(dataset, workers=workers, ahead=ahead).batches(first, 7))
        assert [batch.step for batch in read] == list(range(first, 7))
        for batch in read:
            assert_same(batch, straight[batch.step])


def test_what_a_rank_needs_next_is_fetched_ahead_where_files_are_remote(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], tuple[str, ...]]] = []
    monkeypatch.setattr("fmri2img.trainer.batches.PREFETCH_EVERY", 3)
    monkeypatch.setattr(Dataset, "prefetch", lambda self, shards, columns: asked.append((shards, columns)))
    assert list(loader(dataset, 1, 2).batches(0, 7)) and not asked
    remote = Dataset(dataset.path, dataset.manifest, locate=lambda entry: dataset.path / entry.file)
    made = loader(remote, 1, 2)
    list(made.batches(1, 8))
    steps = [made.plan.upcoming_shards(step, 1, 2) for step in (1, 4, 7)]
    assert asked == [(shards, ("responses", "pixels-2", "words")) for shards in steps]


def test_windows_of_time_points_become_rows_of_as_many_inputs(tmp_path: Path) -> None:
    windows = np.random.default_rng(0).normal(size=(12, 3, 4)).astype(np.float32)
    subject = SimpleNamespace(
        voxels=4,
        sessions=[1],
        voxel_table=lambda: {"roi": np.array(["V1"] * 4)},
        session=lambda number: SessionTrials(windows, np.arange(12) % 6),
    )
    source: Any = SimpleNamespace(
        name="windows",
        terms="free",
        provenance={},
        splits={},
        subjects={"subj01": subject},
        picture=lambda nsd_id: np.zeros((4, 4, 3), np.uint8),
        captions=lambda nsd_id: [],
        is_test=lambda *trial: False,
    )
    dataset = build_dataset(source, tmp_path / "windows", normalise="none")
    table = {"subj01": dataset.samples("subj01", "train")}
    plan = SamplingPlan(table, fingerprint=dataset.fingerprint, seed=0, global_batch=4, lanes=2)
    for noise in (0.0, 1.0):
        made = BatchLoader(dataset, table, plan, [], rank=0, world_size=1, seed=0, noise=noise)
        assert made.read(0).responses["subj01"].shape == (4, dataset.inputs("subj01")) == (4, 12)
    rows = picture_rows(dataset, table["subj01"], [])
    truth = windows.astype(np.float16).astype(np.float32).reshape(2, 6, 12).mean(0)
    np.testing.assert_allclose(rows.responses, truth, rtol=1e-6)
    single = picture_rows(dataset, table["subj01"], [], single=True)
    assert single.responses.shape == (12, 12)


def test_another_seed_reads_other_rows(dataset: Dataset) -> None:
    pictures = [loader(dataset, seed=seed).read(0).pictures for seed in (1, 2)]
    assert not torch.equal(*pictures)


def test_picture_rows_are_means_over_the_repeats_of_the_chosen_sessions(dataset: Dataset) -> None:
    samples = dataset.samples("subj01", "train")
    for sessions in (None, [1], [1, 2]):
        rows = picture_rows(dataset, samples, ["words"], sessions=sessions)
        assert len(set(rows.nsd_ids.tolist())) == len(rows.nsd_ids)
        for i, nsd_id in enumerate(rows.nsd_ids.tolist()):
            row = int(np.flatnonzero(samples.nsd_id == nsd_id)[0])
            measured = samples.sessions[row, : int(samples.repeats[row])]
            chosen = np.isin(measured, [1, 2] if sessions is None else sessions)
            trials = dataset.responses(samples, row)[chosen].astype(np.float32)
            np.testing.assert_allclose(rows.responses[i], trials.mean(0), rtol=1e-6, atol=1e-6)


def test_single_trials_are_grouped_by_session(dataset: Dataset) -> None:
    samples = dataset.samples("subj01", "train")
    rows = picture_rows(dataset, samples, ["words"], single=True)
    assert len(rows.responses) == int(samples.repeats.sum())
    assert set(rows.groups.tolist()) == {1, 2}


def test_pictures_without_a_repeat_in_the_sessions_are_left_out(dataset: Dataset) -> None:
    samples = dataset.samples("subj01", "train")
    first = with_sessions(samples, [1])
    assert 0 < len(first) < len(samples)
    rows = picture_rows(dataset, samples, [], sessions=[1])
    assert rows.nsd_ids.tolist() == first.nsd_id.tolist()


def test_a_session_that_does_not_exist_is_an_input_error(dataset: Dataset) -> None:
    with pytest.raises(
        InputError, match=r"subj01 has no training trials in sessions \[9\]: choose from \[1, 2\]"
    ):
        with_sessions(dataset.samples("subj01", "train"), [1, 9])


def test_a_side_without_pictures_is_an_input_error(dataset: Dataset) -> None:
    nothing = dataset.samples("subj01", "train").take(slice(0, 0))
    with pytest.raises(InputError, match="subj01 has no picture on this side of the split"):
        picture_rows(dataset, nothing, ["words"])
