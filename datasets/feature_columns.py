"""The columns of a feature space, shard by shard: every picture is computed in the first shard that has it.

What a shard's pictures lack is computed anywhere, in any order (`write_new`): the whole column where no picture was
seen before, else a part of it, `SHARD.NAME.part.tar`. Then, in the order of the manifest, `FeatureColumns` puts parts
and copies of earlier shards together and counts the statistics. So the bytes depend on nothing but the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from fmri2img.datasets import bfloat16
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.feature_journal import FeatureJournal
from fmri2img.datasets.files import damage
from fmri2img.datasets.index import ColumnIndex, unpack_index
from fmri2img.datasets.manifest import ColumnEntry
from fmri2img.datasets.npy import pack, unpack
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import Progress
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import write_column
from fmri2img.errors import InputError

Features = Callable[[Dataset, Samples], np.ndarray]
"""From samples of a shard to features `(n, *shape)`."""

BLOCK = 16  # features that are float64 at a time


@dataclass(frozen=True)
class Space:
    """What is made: name, shape of one picture's feature, dtype stored, and what makes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    extractor: dict[str, Any]

    def told(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "extractor": self.extractor,
        }


@dataclass(frozen=True)
class Work:
    """One shard: `new` rows are computed, each `copied` one is row `source_row` of shard `source`, an earlier one."""

    number: int
    shard: str
    new: np.ndarray
    copied: np.ndarray
    source: np.ndarray
    source_row: np.ndarray

    def column(self, space: str) -> str:
        """What `write_new` writes: the column itself, or a part of it."""
        return f"{space}.part" if len(self.copied) else space


def plan(dataset: Dataset) -> list[Work]:
    """What is to be done for each shard, in the order of the manifest."""
    first: dict[int, tuple[int, int]] = {}
    works = []
    for number, shard in enumerate(dataset.manifest.shards):
        ids = dataset.shard_samples(number).nsd_id.tolist()
        found = [first.get(n) for n in ids]
        copied = [row for row, place in enumerate(found) if place is not None]
        places = np.array([place for place in found if place is not None], np.int64).reshape(-1, 2)
        new = [row for row, place in enumerate(found) if place is None]
        works.append(
            Work(number, shard.name, np.array(new, int), np.array(copied, int), places[:, 0], places[:, 1])
        )
        for row in new:
            first.setdefault(ids[row], (number, row))
    return works


def write_new(dataset: Dataset, space: Space, work: Work, features: Features) -> ColumnEntry:
    """Compute the new rows of a shard and write them. Raises InputError when they are not what was announced."""
    samples = dataset.shard_samples(work.number).take(work.new)
    stored = _checked(space, features(dataset, samples), len(samples))
    members = ((str(key), {"npy": pack(row)}) for key, row in zip(samples.keys, stored, strict=True))
    return write_column(dataset.path, work.shard, work.column(space.name), members)


class FeatureColumns:
    """Every shard's column, made now or found finished, and the statistics of them all.

    `add` what `write_new` returned for each number of `todo`, in any order; then `finished` gives the whole.
    """

    def __init__(
        self, dataset: Dataset, journal: FeatureJournal, space: Space, progress: Progress | None = None
    ) -> None:
        self.dataset, self.journal, self.space, self.progress = dataset, journal, space, progress
        self.works = plan(dataset)
        self.moments, self.seen, self.at = Moments(), set[int](), 0
        self._whole: dict[int, ColumnEntry] = {}
        self._parts: dict[int, ColumnEntry] = {}
        self._open: dict[str, _Column] = {}
        for work in self.works:
            entry = journal.finished(work.shard)
            if entry is not None:
                self._whole[work.number] = entry
            elif len(work.copied) and (part := journal.finished(f"{work.shard}.part")) is not None:
                self._parts[work.number] = part
        self._advance()

    @property
    def todo(self) -> list[int]:
        """Shards with pictures that are to be computed yet."""
        return [work.number for work in self.works if len(work.new) and not self._has(work.number)]

    def pictures(self, numbers: Sequence[int]) -> int:
        """How many are computed in these shards."""
        return sum(len(self.works[number].new) for number in numbers)

    def add(self, number: int, entry: ColumnEntry) -> None:
        """Note what was written of a shard, and go on with all that waited for it."""
        work = self.works[number]
        if len(work.copied):
            self.journal.add(f"{work.shard}.part", entry)
            self._parts[number] = entry
        else:
            self.journal.add(work.shard, entry)
            self._whole[number] = entry
        self._advance()

    def finished(self) -> tuple[list[ColumnEntry], dict[str, np.ndarray]]:
        """All columns in the order of the manifest, and mean, standard deviation and count."""
        assert self.at == len(self.works)
        return [self._whole[work.number] for work in self.works], _statistics(self.moments, self.space.shape)

    def clear(self) -> None:
        """Remove the parts, as the columns are whole, and what jobs that were killed left half written."""
        root, name = self.dataset.path, self.space.name
        left = [f"*/*.{name}.part.tar", f"*/*.{name}.part.index.npz", f"*/.*.{name}.*tmp*"]
        for pattern in [*left, f"features/.{name}.*.tmp-*", ".*.json.tmp-*"]:
            for path in root.glob(pattern):
                path.unlink(missing_ok=True)

    def _has(self, number: int) -> bool:
        return number in self._whole or number in self._parts

    def _advance(self) -> None:
        """Finish and count shards in order, up to the first that still lacks its new rows."""
        while self.at < len(self.works):
            work = self.works[self.at]
            if len(work.new) and not self._has(work.number):
                break
            if work.number not in self._whole:
                entry = self._put_together(work)
                self.journal.add(work.shard, entry)
                self._whole[work.number] = entry
            if self.dataset.manifest.shards[work.number].partition == "train":
                self._count(work)
            self.at += 1
        if self.progress is not None:
            total = self.pictures(range(len(self.works)))
            self.progress(f"extracting {self.space.name}", total - self.pictures(self.todo), total)

    def _put_together(self, work: Work) -> ColumnEntry:
        """A column from its part and the columns of earlier shards."""
        samples = self.dataset.shard_samples(work.number)
        part, shards = self._parts.get(work.number), self.dataset.manifest.shards
        places: list[tuple[_Column, int]] = [None] * len(samples)  # type: ignore[list-item]
        for at, row in enumerate(work.new.tolist()):
            assert part is not None
            places[row] = (self._column(part, f"{self.space.name}.part", len(work.new)), at)
        for row, source, source_row in zip(work.copied, work.source, work.source_row, strict=True):
            column = self._column(self._whole[int(source)], self.space.name, shards[int(source)].samples)
            places[int(row)] = (column, int(source_row))
        members = (
            (str(key), {"npy": column.member(row)})
            for key, (column, row) in zip(samples.keys, places, strict=True)
        )
        return write_column(self.dataset.path, work.shard, self.space.name, members)

    def _count(self, work: Work) -> None:
        """Each distinct training picture once, as it is stored."""
        samples, entry = self.dataset.shard_samples(work.number), self._whole[work.number]
        new = [row for row, n in enumerate(samples.nsd_id.tolist()) if n not in self.seen]
        self.seen.update(samples.nsd_id.tolist())
        column = self._column(entry, self.space.name, len(samples))
        for first in range(0, len(new), BLOCK):
            block = np.stack([unpack(column.member(row)) for row in new[first : first + BLOCK]])
            self.moments.add(bfloat16.from_bits(block) if self.space.dtype == "bfloat16" else block)

    def _column(self, entry: ColumnEntry, name: str, samples: int) -> _Column:
        if entry.file not in self._open:
            if len(self._open) >= 64:
                self._open.pop(next(iter(self._open)))
            self._open[entry.file] = _Column(self.dataset, entry, name, samples)
        return self._open[entry.file]


class _Column:
    """A finished column or part, open for reading."""

    def __init__(self, dataset: Dataset, entry: ColumnEntry, name: str, samples: int) -> None:
        self.root, self.entry = dataset.path, entry
        data = (self.root / entry.index.file).read_bytes()
        self.index: ColumnIndex = unpack_index(data, column=name, samples=samples, tar_bytes=entry.bytes)
        self.file = open(self.root / entry.file, "rb")  # noqa: SIM115

    def __del__(self) -> None:
        self.file.close()

    def member(self, row: int) -> bytes:
        """The bytes of one row, checked."""
        self.file.seek(int(self.index.offset[row, 0]))
        data = self.file.read(int(self.index.size[row, 0]))
        if crc32(data) != int(self.index.crc32[row, 0]):
            rule = "its bytes are not those that were written: run the same command again to make it anew"
            raise damage(self.root, self.entry.file, rule, str(self.index.keys[row]))
        return data


def in_this_process(dataset: Dataset, space: Space, columns: FeatureColumns, *, features: Features) -> None:
    """Do what there is to do here, a shard at a time."""
    for number in columns.todo:
        columns.add(number, write_new(dataset, space, columns.works[number], features))


def _checked(space: Space, features: np.ndarray, count: int) -> np.ndarray:
    features, shape = np.asarray(features), (count, *space.shape)
    if features.shape != shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"The extractor of {space.name} returned {features.dtype} {features.shape} instead of floats {shape}: "
            "correct the shape given or the extractor."
        )
    half = space.dtype == "bfloat16"
    with np.errstate(over="ignore"):
        stored = bfloat16.to_bits(features) if half else features.astype(space.dtype)
    whole = bfloat16.finite(stored) if half else np.isfinite(stored).all()
    if not (whole and np.isfinite(features).all()):
        raise InputError(
            f"The extractor of {space.name} returned values that are not finite in {space.dtype}: "
            "correct it, or store float32."
        )
    return stored


def _statistics(moments: Moments, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if not moments.count:
        raise InputError(
            "The data set has no training pictures to take feature statistics from: change its split."
        )
    mean, std, _ = moments.mean_std()
    count = np.array(moments.count)
    return {
        "mean": mean.reshape(shape).astype(np.float32),
        "std": std.reshape(shape).astype(np.float32),
        "count": count,
    }
