"""A data set opens wherever its files lie, and reads what was stored."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fmri2img.datasets import Dataset
from fmri2img.datasets.files import FilePool
from fmri2img.datasets.manifest import FileEntry
from fmri2img.errors import DamageError


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


def test_a_pool_keeps_few_files_open_and_reads_from_all(tiny: Dataset) -> None:
    pool = FilePool(tiny.path, limit=2)
    entries = [shard.columns["responses"] for shard in tiny.manifest.shards]
    handles = [pool.open(entry) for entry in entries]
    assert [pool.open(entry) is handle for entry, handle in zip(entries, handles, strict=True)].count(
        True
    ) <= 2
    assert len(pool._open) == 2
