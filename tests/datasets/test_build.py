"""A built data set holds what the source gave, normalised by training trials, in the same bytes each time."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from fmri2img.datasets import Dataset, SessionTrials, build_dataset, info, verify
from fmri2img.errors import InputError


def truth(source: Any, subject: str, normalise: str = "session") -> dict[tuple[int, bool], np.ndarray]:
    """Normalised responses by (nsd_id, is test), in the order measured, by the closed form in float64."""
    person = source.subjects[subject]
    sessions = {s: person.session(s) for s in person.sessions}
    test = {s: np.array([source.is_test(subject, int(n), s) for n in t.nsd_ids]) for s, t in sessions.items()}
    responses = {s: t.responses.astype(np.float64) for s, t in sessions.items()}
    training = {s: responses[s][~test[s]] for s in sessions}
    everything = np.concatenate(list(training.values()))
    found: dict[tuple[int, bool], list[np.ndarray]] = {}
    for s, trials in sessions.items():
        basis = training[s] if normalise == "session" and len(training[s]) > 1 else everything
        z = (responses[s] - basis.mean(0)) / basis.std(0) if normalise != "none" else responses[s]
        for n, held, row in zip(trials.nsd_ids, test[s], z, strict=True):
            found.setdefault((int(n), bool(held)), []).append(row)
    return {key: np.stack(rows) for key, rows in found.items()}


def shard_bytes(root: Path, pattern: str) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob(pattern)) if p.is_file()
    }


@pytest.mark.parametrize("normalise", ["session", "pooled", "none"])
def test_what_is_read_is_what_was_measured(tmp_path: Path, make_source: Any, normalise: Any) -> None:
    source = make_source()
    dataset = build_dataset(source, tmp_path / "set", samples_per_shard=3, normalise=normalise)
    assert dataset.subjects == ["subj01", "subj02"]
    for subject in dataset.subjects:
        expected = truth(source, subject, normalise)
        for split in ("train", "test"):
            samples = dataset.samples(subject, split)
            assert samples.nsd_id.tolist() == sorted(n for n, held in expected if held == (split == "test"))
            for i, nsd_id in enumerate(samples.nsd_id.tolist()):
                betas = dataset.responses(samples, i)
                assert betas.dtype == np.float16
                np.testing.assert_allclose(betas, expected[nsd_id, split == "test"], rtol=1e-3, atol=1e-3)
                assert (dataset.picture(samples, i) == source.picture(nsd_id)).all()
                assert dataset.captions(samples, i) == source.captions(nsd_id)
                sessions = samples.sessions[i][samples.sessions[i] >= 0].tolist()
                assert sessions == [trial["session"] for trial in dataset.trials(samples, i)]
                for trial in dataset.trials(samples, i):
                    given = source.subjects[subject].session(trial["session"]).nsd_ids[trial["trial"] - 1]
                    assert given == nsd_id


def test_single_trials_are_the_rows_of_the_responses(tiny: Dataset) -> None:
    samples = tiny.samples("subj02", "train")
    rows, repeats = np.nonzero(samples.sessions >= 0)
    order = np.random.default_rng(0).permutation(len(rows))
    read = tiny.read_trials(samples, rows[order], repeats[order])
    assert read.dtype == np.float32
    for line, (i, r) in enumerate(zip(rows[order], repeats[order], strict=True)):
        assert (read[line] == tiny.responses(samples, int(i))[r]).all()
    with pytest.raises(InputError, match="has repeats 0 to"):
        tiny.read_trials(samples, [0], [99])


def test_training_bytes_do_not_depend_on_test_responses(tmp_path: Path, make_source: Any) -> None:
    def louder(session: int, trials: SessionTrials) -> None:
        trials.responses[trials.nsd_ids < 3] *= 50

    changed = make_source()
    for person in changed.subjects.values():
        person.edit = louder
    build_dataset(make_source(), tmp_path / "a")
    build_dataset(changed, tmp_path / "b")
    assert shard_bytes(tmp_path / "a", "train-*") == shard_bytes(tmp_path / "b", "train-*")
    before, after = (shard_bytes(tmp_path / name, "test-*.responses.tar") for name in "ab")
    assert all(before[file] != after[file] for file in before)


def test_two_builds_have_the_same_bytes(tmp_path: Path, make_source: Any) -> None:
    one, two = (build_dataset(make_source(), tmp_path / name, samples_per_shard=4) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert shard_bytes(one.path, "*") == shard_bytes(two.path, "*")


def test_a_session_without_training_trials_takes_those_of_the_subject(
    tmp_path: Path, make_source: Any
) -> None:
    source = make_source(test=lambda subject, nsd_id, session: session == 3)
    dataset = build_dataset(source, tmp_path / "set")
    assert dataset.manifest.normalisation.pooled_sessions == {"subj01": [3], "subj02": [3]}
    expected, samples = truth(source, "subj01"), dataset.samples("subj01", "test")
    for i, nsd_id in enumerate(samples.nsd_id.tolist()):
        np.testing.assert_allclose(
            dataset.responses(samples, i), expected[nsd_id, True], rtol=1e-3, atol=1e-3
        )


def test_a_picture_on_both_sides_has_two_keys(tmp_path: Path, make_source: Any) -> None:
    source = make_source(test=lambda subject, nsd_id, session: session == 3 or nsd_id == 9)
    dataset = build_dataset(source, tmp_path / "set")
    train, test = (dataset.samples("subj01", split).keys.tolist() for split in ("train", "test"))
    assert "subj01_nsd00004_train" in train
    assert "subj01_nsd00004_test" in test
    assert "subj01_nsd00009" in test
    assert not set(train) & set(test)
    assert verify(dataset.path) == []


def test_constant_voxels_become_zero_and_are_counted(tmp_path: Path, make_source: Any) -> None:
    def silence(session: int, trials: SessionTrials) -> None:
        trials.responses[:, 1] = 0.1

    source = make_source()
    source.subjects["subj01"].edit = silence
    dataset = build_dataset(source, tmp_path / "set")
    samples = dataset.samples("subj01", "train")
    assert all((dataset.responses(samples, i)[:, 1] == 0).all() for i in range(len(samples)))
    assert dataset.manifest.normalisation.constant_voxels == {"subj01": 1, "subj02": 0}


def test_values_beyond_float16_are_clipped_and_counted_after_z_scoring(
    tmp_path: Path, make_source: Any
) -> None:
    def burst(session: int, trials: SessionTrials) -> None:
        trials.responses[trials.nsd_ids == 0, 0] = 1e9

    source = make_source()
    source.subjects["subj01"].edit = burst
    dataset = build_dataset(source, tmp_path / "set")
    bursts = sum(int((source.subjects["subj01"].session(s).nsd_ids == 0).sum()) for s in (1, 2, 3))
    assert dataset.manifest.normalisation.clipped == bursts
    assert dataset.responses(dataset.samples("subj01", "test"), 0)[0, 0] == np.float16(65504)
    with pytest.raises(
        InputError, match=r"subj01, session 1, trial \d+: the response 1e\+09 does not fit float16"
    ):
        build_dataset(source, tmp_path / "raw", normalise="none")


def test_responses_that_are_not_finite_are_refused_by_trial(tmp_path: Path, make_source: Any) -> None:
    def spoil(session: int, trials: SessionTrials) -> None:
        if session == 2:
            trials.responses[4, 3] = np.nan

    source = make_source()
    source.subjects["subj02"].edit = spoil
    with pytest.raises(InputError, match="subj02, session 2, trial 5: the response of voxel 3 is nan"):
        build_dataset(source, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": {}}, "holds no trials"),
        ({"test": lambda *_: True}, "0 training trials, and z-scoring needs two"),
    ],
)
def test_a_source_that_cannot_be_stored_is_refused(
    tmp_path: Path, make_source: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_dataset(make_source(**change), tmp_path / "set")


def test_subject_ids_with_dots_are_refused(tmp_path: Path, make_source: Any, make_subject: Any) -> None:
    with pytest.raises(InputError, match=r"'subj\.1' cannot be a subject id"):
        build_dataset(make_source(subjects={"subj.1": make_subject(1, 4)}), tmp_path / "set")


def test_what_exists_is_never_overwritten(tiny: Dataset, make_source: Any) -> None:
    with pytest.raises(InputError, match="exists already, and a data set is never overwritten: remove it or"):
        build_dataset(make_source(), tiny.path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves its files to the collector
def test_webdataset_decodes_the_shards(tiny: Dataset) -> None:
    for shard in tiny.manifest.shards:
        samples = tiny.samples(shard.subject, shard.partition)
        samples = samples.take(samples.shard == tiny.manifest.shards.index(shard))
        url = str(tiny.path / shard.columns["responses"].file)
        read = list(webdataset.WebDataset(url, shardshuffle=False).decode())
        assert [sample["__key__"].split("/")[-1] for sample in read] == samples.keys.tolist()
        for i, sample in enumerate(read):
            assert (sample["betas.npy"] == tiny.responses(samples, i)).all()
            assert sample["json"]["nsd_id"] == samples.nsd_id[i]
        url = str(tiny.path / shard.columns["stimuli"].file)
        for i, sample in enumerate(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8")):
            assert (sample["png"] == tiny.picture(samples, i)).all()
            assert sample["json"]["captions"] == tiny.captions(samples, i)
    gc.collect()


def test_a_data_set_is_read_by_threads_and_by_its_pickle(
    tiny: Dataset, reading: Callable[[Path], None]
) -> None:
    samples = tiny.samples("subj01", "train")
    tiny.files.limit = 1
    copy = pickle.loads(pickle.dumps(tiny))
    with ThreadPoolExecutor(4) as pool:
        rows = [i % len(samples) for i in range(200)]
        read = list(pool.map(lambda i: tiny.responses(samples, i).tobytes(), rows))
    assert read == [copy.responses(samples, i).tobytes() for i in rows]
    assert copy.fingerprint == tiny.fingerprint


def test_voxel_table_and_info_tell_what_is_there(tiny: Dataset, make_source: Any) -> None:
    table = tiny.voxel_table("subj01")
    assert table["roi"].tolist() == ["V1", "V1", "FFA", "FFA", "FFA"]
    np.testing.assert_allclose(table["noise_ceiling"], np.linspace(0, 1, 5))
    told = info(tiny.path)
    assert told["subjects"]["subj02"]["voxels"] == 7
    assert told["subjects"]["subj02"]["rois"] == {"V1": 2, "FFA": 5}
    counts = told["subjects"]["subj02"]["splits"]
    assert counts["train"]["trials"] + counts["test"]["trials"] == 36
    assert (counts["train"]["samples"], counts["test"]["samples"]) == (7, 3)
    assert told["bytes"] == sum(
        p.stat().st_size for p in tiny.path.rglob("*") if p.is_file() and p.suffix != ".json"
    )


def test_unknown_names_are_refused_with_the_known_ones(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'subj09' is not a subject of .*: use one of \['subj01', 'subj02'\]"
    ):
        tiny.samples("subj09", "train")
    with pytest.raises(InputError, match=r"'val' is not a split of .*: use one of \['test', 'train'\]"):
        tiny.samples("subj01", "val")
    with pytest.raises(InputError, match="'clip' is not a feature space of"):
        tiny.feature(tiny.samples("subj01", "train"), 0, "clip")
    with pytest.raises(InputError, match="is not a folder: give the data set folder"):
        Dataset.open(tmp_path / "nowhere")
