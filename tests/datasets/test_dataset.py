"""A data set opens wherever its files lie, and reads what was stored."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.datasets import (
    Dataset,
    SamplingPlan,
    SessionTrials,
    add_feature_space,
    build_dataset,
    verify,
)
from fmri2img.datasets.files import FilePool
from fmri2img.datasets.manifest import FileEntry
from fmri2img.datasets.plan import trials_of
from fmri2img.errors import DamageError, InputError


@dataclass(frozen=True)
class Elsewhere:
    """Finds a file by its digest in one flat folder."""

    folder: Path

    def __call__(self, entry: FileEntry) -> Path:
        return self.folder / entry.sha256


def test_files_are_read_from_where_they_are_located(tiny: Dataset, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    samples = tiny.samples("subj01", "train")
    stored = [tiny.responses(samples, i) for i in range(len(samples))]
    for shard in tiny.manifest.shards:
        for column in shard.columns.values():
            for entry in (column, column.index):
                shutil.move(tiny.path / entry.file, flat / entry.sha256)
    moved = Dataset(tiny.path, tiny.manifest, locate=Elsewhere(flat))
    for dataset in (moved, pickle.loads(pickle.dumps(moved))):
        read = dataset.samples("subj01", "train")
        assert read.keys.tolist() == samples.keys.tolist()
        for i, value in enumerate(stored):
            assert np.array_equal(dataset.responses(read, i), value)
    with pytest.raises(DamageError, match="the file is missing"):
        Dataset(tiny.path, tiny.manifest).samples("subj01", "train")


def test_a_file_that_a_cache_dropped_after_locating_it_is_located_again(tiny: Dataset) -> None:
    asked: list[str] = []

    def locate(entry: FileEntry) -> Path:
        asked.append(entry.file)
        return tiny.path / (entry.file if len(asked) > 2 else "gone")

    entry = tiny.manifest.shards[0].columns["responses"]
    assert FilePool(tiny.path, locate).open(entry).descriptor
    assert asked == [entry.file] * 3


def test_a_pool_keeps_few_files_open_and_reads_from_all(tiny: Dataset) -> None:
    pool = FilePool(tiny.path, limit=2)
    entries = [shard.columns["responses"] for shard in tiny.manifest.shards]
    handles = [pool.open(entry) for entry in entries]
    assert [pool.open(entry) is handle for entry, handle in zip(entries, handles, strict=True)].count(
        True
    ) <= 2
    assert len(pool._open) == 2


def test_a_file_system_that_gives_bytes_in_parts_changes_nothing(
    tiny: Dataset, reading: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tiny.samples("subj01", "train")
    rows, repeats = trials_of(samples)
    truth = tiny.stored_trials(samples, rows, repeats)
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 7), offset))
    monkeypatch.setattr(os, "preadv", lambda file, into, offset: preadv(file, [into[0][:3]], offset))
    np.testing.assert_array_equal(tiny.stored_trials(samples, rows, repeats), truth)
    reading(tiny.path)


@dataclass
class Recorded:
    """Files where they are, and which of them were opened."""

    root: Path
    opened: list[str] = field(default_factory=list)

    def __call__(self, entry: FileEntry) -> Path:
        self.opened.append(entry.file)
        return self.root / entry.file


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_a_rank_opens_only_the_shards_of_its_lanes_each_once(tiny: Dataset, world_size: int) -> None:
    tables = {name: tiny.samples(name, "train") for name in tiny.subjects}
    plan = SamplingPlan(tables, fingerprint=tiny.fingerprint, seed=0, global_batch=12, lanes=6)
    shards = tiny.manifest.shards
    for rank in range(world_size):
        recorded = Recorded(tiny.path)
        dataset = Dataset(tiny.path, tiny.manifest, locate=recorded)
        for step in range(2 * plan.steps_per_epoch):
            for subject, (rows, repeats) in plan.rank_rows(step, rank, world_size).items():
                dataset.stored_trials(tables[subject], rows, repeats)
        lanes = plan.rank_lanes(rank, world_size)
        owned = {n for lane in lanes for subject in tables for n in plan.lane_shards(subject, lane)}
        assert set(plan.upcoming_shards(0, rank, world_size)) == owned
        files = [shards[n].columns["responses"].file for n in owned]
        indices = [shards[n].columns["responses"].index.file for n in owned]
        assert sorted(recorded.opened) == sorted(files + indices)


def test_trials_are_the_rows_of_their_samples_as_stored(tiny: Dataset) -> None:
    samples = tiny.samples("subj02", "train")
    rows, repeats = trials_of(samples)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, repeats = rows[order], repeats[order]
    stored = tiny.stored_trials(samples, rows, repeats)
    truth = [tiny.responses(samples, int(i))[r] for i, r in zip(rows, repeats, strict=True)]
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, truth)
    np.testing.assert_array_equal(tiny.read_trials(samples, rows, repeats), np.array(truth, np.float32))
    assert tiny.stored_trials(samples, [], []).shape == (0, 7)


def test_a_repeat_that_was_not_measured_is_refused(tiny: Dataset) -> None:
    samples = tiny.samples("subj02", "train")
    for repeat in (-1, int(samples.repeats[1])):
        with pytest.raises(InputError, match=rf"{samples.keys[1]} has repeats 0 to \d, not {repeat}: choose"):
            tiny.stored_trials(samples, [0, 1], [0, repeat])


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_features_are_read_in_the_dtype_they_are_stored_in(tiny: Dataset, dtype: str) -> None:
    values = np.random.default_rng(1).normal(size=(10, 3, 4)).astype(np.float32)
    dataset = add_feature_space(
        tiny.path,
        name="tokens",
        shape=(3, 4),
        dtype=dtype,
        extractor={},
        compute=lambda pictures, _: np.stack([values[int(p[0, 0, 0]) % 10] for p in pictures]),
    )
    tables = [dataset.samples(name, "train") for name in ("subj01", "subj02")]
    parts = [(table, np.arange(len(table))[::-1]) for table in tables]
    read = dataset.feature_tensor(parts, "tokens")
    assert read.dtype == getattr(torch, dtype)
    at = 0
    for table, rows in parts:
        seen = [values[int(dataset.picture(table, int(i))[0, 0, 0]) % 10] for i in rows]
        truth = torch.from_numpy(np.stack(seen)).to(read.dtype)
        assert torch.equal(read[at : at + len(rows)], truth)
        exact = truth.float().numpy()
        np.testing.assert_array_equal(dataset.read_features(table, rows, "tokens"), exact)
        np.testing.assert_array_equal(dataset.feature(table, int(rows[0]), "tokens"), exact[0])
        at += len(rows)
    assert verify(dataset.path) == []


def test_few_indices_are_kept_and_all_samples_are_read(
    tiny: Dataset, reading: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmri2img.datasets.pieces.INDICES", 2)
    reading(tiny.path)
    dataset = Dataset.open(tiny.path)
    for name in dataset.subjects:
        samples = dataset.samples(name, "train")
        read = dataset.stored_trials(samples, np.arange(len(samples)), np.zeros(len(samples), int))
        assert all((read[i] == dataset.responses(samples, i)[0]).all() for i in range(len(samples)))
    assert len(dataset._pieces._indices) == 2


def test_a_window_of_time_points_is_read_in_its_shape(
    tmp_path: Path, make_source: Any, make_subject: Any
) -> None:
    class Windows(make_subject):
        def session(self, session: int) -> SessionTrials:
            flat = super().session(session)
            steps = np.arange(3, dtype=np.float32)[:, None]
            return SessionTrials(flat.responses[:, None] * (1 + steps), flat.nsd_ids)

    source = make_source(subjects={"subj01": Windows(1, 5)})
    dataset = build_dataset(source, tmp_path / "windows", samples_per_shard=4)
    samples = dataset.samples("subj01", "train")
    rows, repeats = trials_of(samples)
    read = dataset.stored_trials(samples, rows[::-1], repeats[::-1])
    assert (
        read.shape == (len(rows), 3, 5) and dataset.inputs("subj01") == 15 and dataset.voxels("subj01") == 5
    )
    for value, i, repeat in zip(read, rows[::-1], repeats[::-1], strict=True):
        np.testing.assert_array_equal(value, dataset.responses(samples, int(i))[repeat])
    assert verify(dataset.path) == []
