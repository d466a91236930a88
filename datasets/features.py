"""Adds a feature space to a data set: one new column in every shard, and its statistics.

Nothing committed is rewritten: columns are new files, and `dataset.json` is replaced at the end in one piece.
A job that dies leaves the data set as it was, and the same job goes on with the shards that are left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fmri2img.datasets import bfloat16
from fmri2img.datasets.croissant import write_croissant
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.feature_journal import FeatureJournal
from fmri2img.datasets.index import unpack_index
from fmri2img.datasets.manifest import (
    DATA_COLUMNS,
    ColumnEntry,
    SpaceName,
    read_manifest,
    seal,
    write_manifest,
)
from fmri2img.datasets.npy import pack, pack_npz, unpack
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import Progress, silent
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import write_column, write_file
from fmri2img.errors import InputError
from fmri2img.files import alone

Compute = Callable[[list[np.ndarray], list[list[str]]], np.ndarray]
"""From `n` pictures, uint8 `(height, width, 3)`, and their captions to features `(n, *shape)`."""

Features = Callable[[Dataset, Samples], np.ndarray]
"""From the samples of a shard to features `(n, *shape)`."""

DTYPES = ("float16", "float32", "bfloat16")
BLOCK = 16  # features that are float64 at a time


def add_feature_space(
    path: str | Path,
    *,
    name: str,
    shape: Sequence[int],
    dtype: str,
    extractor: dict[str, Any],
    compute: Compute,
    progress: Progress | None = None,
) -> Dataset:
    """Compute a feature of every picture, add it as a column, and open the data set with it.

    Statistics are over training pictures only, each distinct picture once, in float64, of the values as
    they are stored. Killed and called again with the same name, shape, dtype and extractor, it goes on
    with the shards that are left; with another, it starts afresh.

    Args:
        path: data set folder.
        name: of the space; letters, digits, `-` and `_`.
        shape: of one picture's feature.
        dtype: stored as `float16`, `float32` or `bfloat16` (uint16 members with its bits).
        extractor: what computes it, as plain data (model, revision, layer); it is the identity of the space.
        compute: called once a shard.
        progress: called with (what, done, total) in samples.

    Raises:
        InputError: another extractor has the name, or `compute` returns something else than announced.
    """

    def features(dataset: Dataset, samples: Samples) -> np.ndarray:
        return compute(*_inputs(dataset, samples))

    return add_columns(
        path, name=name, shape=shape, dtype=dtype, extractor=extractor, features=features, progress=progress
    )


def add_columns(
    path: str | Path,
    *,
    name: str,
    shape: Sequence[int],
    dtype: str,
    extractor: dict[str, Any],
    features: Features,
    progress: Progress | None = None,
) -> Dataset:
    """`add_feature_space` from what is known of a shard's samples, such as their picture ids."""
    root, progress = Path(path).absolute(), progress or silent
    _check_name(name, dtype)
    size = [int(n) for n in shape]
    described = {"name": name, "shape": size, "dtype": dtype, "extractor": extractor}
    if not root.is_dir():
        read_manifest(root)  # which says what is wrong
    with alone(root, f"Another job is adding features to {root}: wait until it is done."):
        dataset = Dataset.open(root)
        known = dataset.feature_spaces.get(name)
        if known is not None:
            if known.model_dump(include=set(described)) == described:
                return dataset
            raise InputError(
                f"{root} already has a feature space {name}, {known.dtype} {known.shape}, by "
                f"{known.extractor}: choose another name."
            )
        journal = FeatureJournal(root, name, described | {"data": dataset.fingerprint})
        job = _Job(dataset, journal, described, features)
        columns, statistics = job.run(progress)
        entry = write_file(root, f"features/{name}.statistics.npz", pack_npz(statistics)).model_dump()
        plain = read_manifest(root).model_dump()
        plain["feature_spaces"][name] = described | {"statistics": entry, "digest": "0" * 64}
        for record, column in zip(plain["shards"], columns, strict=True):
            record["columns"][name] = column.model_dump()
        manifest = seal(plain)
        write_manifest(root, manifest)
        write_croissant(root, manifest)
        journal.close()
    return Dataset.open(root)


class _Job:
    """Every shard's column, made now or found finished, and the statistics of them all."""

    def __init__(
        self, dataset: Dataset, journal: FeatureJournal, described: dict[str, Any], features: Features
    ) -> None:
        self.dataset, self.journal, self.features = dataset, journal, features
        self.name, self.dtype = str(described["name"]), str(described["dtype"])
        self.shape = tuple(described["shape"])
        self.moments, self.seen = Moments(), set[int]()

    def run(self, progress: Progress) -> tuple[list[ColumnEntry], dict[str, np.ndarray]]:
        shards = self.dataset.manifest.shards
        columns: list[ColumnEntry] = []
        done, total = 0, sum(shard.samples for shard in shards)
        for number, shard in enumerate(shards):
            progress(f"extracting {self.name}", done, total)
            samples = self.dataset.shard_samples(number)
            entry, stored = self._column(shard.name, samples)
            columns.append(entry)
            if shard.partition == "train":
                self._count(samples, entry, stored)
            done += shard.samples
        progress(f"extracting {self.name}", done, total)
        return columns, _statistics(self.moments, self.shape)

    def _column(self, shard: str, samples: Samples) -> tuple[ColumnEntry, np.ndarray | None]:
        entry = self.journal.finished(shard)
        if entry is not None:
            return entry, None
        made = self.features(self.dataset, samples)
        stored = _checked(self.name, made, (len(samples), *self.shape), self.dtype)
        members = (
            (str(key), {"npy": pack(feature)}) for key, feature in zip(samples.keys, stored, strict=True)
        )
        entry = write_column(self.dataset.path, shard, self.name, members)
        self.journal.add(shard, entry)
        return entry, stored

    def _count(self, samples: Samples, entry: ColumnEntry, stored: np.ndarray | None) -> None:
        new = [row for row, n in enumerate(samples.nsd_id.tolist()) if n not in self.seen]
        self.seen.update(samples.nsd_id.tolist())
        for first in range(0, len(new), BLOCK):
            rows = new[first : first + BLOCK]
            block = self._read_back(entry, len(samples), rows) if stored is None else stored[rows]
            self.moments.add(bfloat16.from_bits(block) if self.dtype == "bfloat16" else block)

    def _read_back(self, entry: ColumnEntry, samples: int, rows: list[int]) -> np.ndarray:
        root = self.dataset.path
        index = unpack_index(
            (root / entry.index.file).read_bytes(),
            column=self.name,
            samples=samples,
            tar_bytes=entry.bytes,
        )
        with open(root / entry.file, "rb") as file:
            places = [(int(index.offset[row, 0]), int(index.size[row, 0])) for row in rows]
            return np.stack([unpack(os.pread(file.fileno(), size, at)) for at, size in places])


def _check_name(name: str, dtype: str) -> None:
    try:
        TypeAdapter(SpaceName).validate_python(name)
    except ValidationError:
        raise InputError(f"{name!r} cannot name a feature space: use letters, digits, '-' and '_'.") from None
    if name in DATA_COLUMNS or dtype not in DTYPES:
        raise InputError(
            f"Feature space {name!r} of {dtype}: use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, and no name of "
            f"{list(DATA_COLUMNS)}."
        )


def _inputs(dataset: Dataset, samples: Samples) -> tuple[list[np.ndarray], list[list[str]]]:
    rows = range(len(samples))
    return [dataset.picture(samples, i) for i in rows], [dataset.captions(samples, i) for i in rows]


def _checked(name: str, features: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    features = np.asarray(features)
    if features.shape != shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"The extractor of {name} returned {features.dtype} {features.shape} instead of floats {shape}: "
            "correct the shape given or the extractor."
        )
    with np.errstate(over="ignore"):
        stored = bfloat16.to_bits(features) if dtype == "bfloat16" else features.astype(dtype)
    whole = bfloat16.finite(stored) if dtype == "bfloat16" else np.isfinite(stored).all()
    if not (whole and np.isfinite(features).all()):
        raise InputError(
            f"The extractor of {name} returned values that are not finite in {dtype}: "
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
