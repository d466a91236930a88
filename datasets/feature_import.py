"""Adds a feature space from features that somebody already computed, matched to pictures by their nsd_id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmri2img.datasets.array_files import integers, open_array
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.feature_columns import Space, in_this_process
from fmri2img.datasets.features import add_columns
from fmri2img.datasets.row_files import RowFile, open_rows
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import Progress
from fmri2img.errors import InputError
from fmri2img.files import sha256_file

STORED = {"float16": "float16", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class FeatureRows:
    """An array of features and whose they are.

    Attributes:
        reference: `FILE:KEY` or `FILE.npy`, an array `(pictures, ...)`.
        nsd_ids: (pictures,) the picture of each row; None where the row's number is the nsd_id.
        order: in words, where the ids come from.
    """

    reference: str
    nsd_ids: np.ndarray | None = None
    order: str = "a row's number is the nsd_id"


def import_features(
    path: str | Path,
    *,
    name: str,
    sources: Sequence[FeatureRows],
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Add a column of features read from files, a shard at a time, and open the data set with it.

    Several sources together may hold what the data set needs, as arrays of training and of test pictures do;
    the first that has a picture gives its feature. File, key, sha256 and shape of each are the identity of
    the space.

    Args:
        path: data set folder.
        name: of the space.
        sources: where the features are.
        dtype: stored as `float16`, `float32` or `bfloat16`; as in the files otherwise (float32 for other types).
        progress: called with (what, done, total) in samples.

    Raises:
        InputError: files that do not fit each other, pictures of the data set that none of them has, or features
            that are not finite.
    """
    tables = [_Table.of(source) for source in sources]
    if not tables:
        raise InputError("Give at least one array of features.")
    first = tables[0].file
    for table in tables:
        if table.file.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{table.reference} holds features {table.file.shape[1:]} and {tables[0].reference} "
                f"{first.shape[1:]}: one space has one shape."
            )
    _refuse_missing(Dataset.open(path), tables)

    def features(dataset: Dataset, samples: Samples) -> np.ndarray:
        found = np.empty((len(samples), *first.shape[1:]), np.float32)
        missing = np.ones(len(samples), bool)
        for table in tables:
            rows = table.rows_of(samples.nsd_id)
            here = np.flatnonzero(missing & (rows >= 0))
            if len(here):
                found[here] = table.read(rows[here], samples.nsd_id[here])
                missing[here] = False
        return found

    space = Space(
        name,
        first.shape[1:],
        dtype or STORED.get(first.dtype, "float32"),
        {"kind": "imported", "files": [table.identity() for table in tables]},
    )
    return add_columns(path, space, partial(in_this_process, features=features), progress)


def read_ids(reference: str) -> np.ndarray:
    """int64 `(pictures,)`, the nsd_ids at `FILE:KEY` or in `FILE.npy`."""
    return integers(open_array(Path.cwd(), reference), "picture ids")


@dataclass(frozen=True)
class _Table:
    """A source, opened: rows by nsd_id."""

    reference: str
    file: RowFile
    order: str
    ids: np.ndarray
    ids_sorted: np.ndarray
    row_sorted: np.ndarray

    @classmethod
    def of(cls, source: FeatureRows) -> _Table:
        file = open_rows(source.reference)
        ids = np.arange(file.shape[0]) if source.nsd_ids is None else np.asarray(source.nsd_ids, np.int64)
        if ids.shape != (file.shape[0],):
            raise InputError(
                f"{source.reference} has {file.shape[0]} rows, and there are {len(ids)} picture ids "
                f"({source.order}): give one a row."
            )
        order = np.argsort(ids, kind="stable")
        twice = np.flatnonzero(np.diff(ids[order]) == 0)
        if len(twice) or ids.min() < 0:
            value = ids[order][twice[0]] if len(twice) else ids.min()
            what = "is there twice" if len(twice) else "is negative"
            raise InputError(
                f"Picture ids of {source.reference} ({source.order}): {value} {what}, and each row must be of "
                "another picture, counted from 0."
            )
        return cls(source.reference, file, source.order, ids, ids[order], order)

    def rows_of(self, nsd_ids: np.ndarray) -> np.ndarray:
        """The row of each picture, -1 where there is none."""
        place = np.minimum(np.searchsorted(self.ids_sorted, nsd_ids), len(self.ids_sorted) - 1)
        return np.where(self.ids_sorted[place] == nsd_ids, self.row_sorted[place], -1)

    def read(self, rows: np.ndarray, nsd_ids: np.ndarray) -> np.ndarray:
        values = self.file.rows(rows)
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self.reference}, row {rows[bad[0]]}: the feature of picture {nsd_ids[bad[0]]} holds values "
                "that are NaN or infinite: compute it again, or leave the picture out of the data set."
            )
        return values

    def identity(self) -> dict[str, Any]:
        """Plain data that name the array, whatever folder it lies in."""
        return {
            "file": self.file.path.name,
            "key": self.file.key,
            "sha256": sha256_file(self.file.path),
            "shape": list(self.file.shape),
            "dtype": self.file.dtype,
            "order": self.order,
            "ids_sha256": hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest(),
        }


def _refuse_missing(dataset: Dataset, tables: Sequence[_Table]) -> None:
    """Name the pictures that no source has, before anything is written."""
    shards = range(len(dataset.manifest.shards))
    needed = np.unique(np.concatenate([dataset.shard_samples(number).nsd_id for number in shards]))
    missing = needed[np.all([table.rows_of(needed) < 0 for table in tables], axis=0)]
    if len(missing):
        named = ", ".join(str(n) for n in missing[:10].tolist()) + (", ..." if len(missing) > 10 else "")
        raise InputError(
            f"{len(missing)} of the {len(needed)} pictures of {dataset.path} have no feature in "
            f"{', '.join(table.reference for table in tables)}: {named}. Give their features too (--from may be "
            "given with several files), or the ids of the rows with --ids."
        )
