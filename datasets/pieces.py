"""Reads many trials or features at once: from the rows of a table to a filled array, by the shards' indices."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from fmri2img.datasets.files import FilePool, damage
from fmri2img.datasets.index import ColumnIndex, unpack_index
from fmri2img.datasets.manifest import DatasetManifest, FeatureSpaceEntry
from fmri2img.datasets.places import Places
from fmri2img.datasets.samples import Samples

INDICES = 64  # whole indices kept; of the others only places are, which are small


class PieceReader:
    """Indices of columns, and the trials and features that lie where they say. Safe to use from several threads."""

    def __init__(self, root: Path, manifest: DatasetManifest, files: FilePool) -> None:
        self.root, self.manifest, self.files = root, manifest, files
        self._indices: OrderedDict[tuple[int, str], ColumnIndex] = OrderedDict()
        self._places: dict[str, Places] = {}
        self._lock = threading.Lock()

    def index(self, number: int, column: str) -> ColumnIndex:
        """The index of a column of one shard, checked against its digest; the last ones used are kept.

        Raises:
            DamageError: it is missing or not the one of the manifest.
        """
        with self._lock:
            found = self._indices.get((number, column))
            if found is not None:
                self._indices.move_to_end((number, column))
                return found
        shard = self.manifest.shards[number]
        entry = shard.columns[column]
        data = self.files.whole(entry.index)
        try:
            found = unpack_index(data, column=column, samples=shard.samples, tar_bytes=entry.bytes)
            if column == "responses":
                self._trial_places(shard.subject).add(number, found)
        except ValueError as error:
            raise damage(self.root, entry.index.file, str(error)) from None
        with self._lock:
            self._indices[number, column] = found
            while len(self._indices) > INDICES:
                self._indices.popitem(last=False)
        return found

    def trials(self, samples: Samples, rows: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        """float16 `(n, *trial_shape)`, repeat `repeats[i]` of sample `rows[i]`; all are known to exist."""
        places, shards = self._trial_places(samples.subject), samples.shard[rows]
        for number in places.missing(shards):
            self.index(number, "responses")
        offsets, checks = places.of(shards, samples.row[rows], repeats)
        out = np.empty((len(rows), *places.shape), places.dtype)
        self._fill(out, "responses", samples, rows, offsets, checks)
        return out

    def features(
        self, samples: Samples, rows: np.ndarray, space: FeatureSpaceEntry, out: np.ndarray | None
    ) -> np.ndarray:
        """`(n, *shape)` as stored, into `out` where one is given."""
        places, shards = self._feature_places(space), samples.shard[rows]
        for number in places.missing(shards):
            self._add_features(places, number, space.name)
        offsets, checks = places.of(shards, samples.row[rows])
        out = np.empty((len(rows), *places.shape), places.dtype) if out is None else out
        self._fill(out, space.name, samples, rows, offsets, checks, places.head)
        return out

    def _fill(
        self,
        out: np.ndarray,
        column: str,
        samples: Samples,
        rows: np.ndarray,
        offsets: np.ndarray,
        checks: np.ndarray,
        head: bytes = b"",
    ) -> None:
        entries = [self.manifest.shards[number].columns[column] for number in samples.shard[rows].tolist()]
        self.files.fill(out, entries, offsets, checks, samples.keys[rows], head)

    def _trial_places(self, subject: str) -> Places:
        name = f"responses of {subject}"  # no space's name has a blank
        found = self._places.get(name)
        if found is None:
            shape = self.manifest.subjects[subject].trial_shape
            found = Places(self.manifest.shards, shape, np.dtype(np.float16), subject)
        return self._places.setdefault(name, found)

    def _feature_places(self, space: FeatureSpaceEntry) -> Places:
        found = self._places.get(space.name)
        if found is None:
            found = Places(self.manifest.shards, tuple(space.shape), stored_dtype(space))
        return self._places.setdefault(space.name, found)

    def _add_features(self, places: Places, number: int, space: str) -> None:
        """Take in the index of a space's column, whose rows are those of the responses."""
        index = self.index(number, space)
        file = self.manifest.shards[number].columns[space].index.file
        wrong = np.flatnonzero(index.keys != self.index(number, "responses").keys)
        if len(wrong):
            rule = f"row {wrong[0]} is of another sample than in the responses"
            raise damage(self.root, file, rule, str(index.keys[wrong[0]]))
        try:
            places.add(number, index)
        except ValueError as error:
            raise damage(self.root, file, str(error)) from None


def stored_dtype(space: FeatureSpaceEntry) -> np.dtype:
    """The numpy dtype of a space's members; bfloat16, which numpy lacks, is stored as uint16."""
    return np.dtype("uint16" if space.dtype == "bfloat16" else space.dtype)
