"""Reads a data set folder: any sample by its place in an index, every byte checked against it.

Opening reads the manifest alone; indices and shards are read when first needed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fmri2img.datasets import bfloat16
from fmri2img.datasets.files import FilePool, Locate, damage
from fmri2img.datasets.index import ColumnIndex
from fmri2img.datasets.manifest import (
    BETAS,
    DatasetManifest,
    FeatureSpaceEntry,
    FileEntry,
    SplitEntry,
    SubjectEntry,
    read_manifest,
)
from fmri2img.datasets.npy import unpack, unpack_npz
from fmri2img.datasets.pieces import PieceReader, stored_dtype
from fmri2img.datasets.samples import Samples, concatenate
from fmri2img.errors import InputError

if TYPE_CHECKING:
    import torch


class Dataset:
    """A data set folder, opened for reading.

    Safe to use from several threads, and picklable: a copy in another process opens its own files. Every
    read is checked, and raises `DamageError` naming file, sample key and rule where stored bytes are wrong.
    """

    def __init__(self, path: Path, manifest: DatasetManifest, locate: Locate | None = None) -> None:
        self.path, self.manifest = path, manifest
        self.files = FilePool(path, locate)

    @cached_property
    def _pieces(self) -> PieceReader:
        return PieceReader(self.path, self.manifest, self.files)

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open a folder written by `build_dataset`, or such a folder at an address such as `s3://...`.

        Raises:
            InputError: no such folder or manifest, or a schema version this fmri2img does not know.
            DamageError: the manifest is damaged, or the folder holds a shard that is not in it.
        """
        if ":/" in str(path):  # a Path keeps one of two slashes
            from fmri2img.datasets.remote import address_of, open_remote

            if (address := address_of(path)) is not None:
                return open_remote(address)
        root = Path(path).absolute()
        manifest = read_manifest(root)
        for file in stray_shards(root, manifest):
            rule = "this shard is not in the manifest, so it is not part of the data set: move it away"
            raise damage(root, file, rule)
        return cls(root, manifest)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.manifest, self.files = state["path"], state["manifest"], state["files"]

    @property
    def is_remote(self) -> bool:
        """Whether files are fetched to this machine when they are first read."""
        return self.files.remote

    def prefetch(self, shards: Iterable[int], columns: Sequence[str] = ("responses",)) -> None:
        """Say which columns of which shards (by position in the manifest) are read next, the first one first.

        Where files are remote they are fetched in the background; where they are here, nothing is done.
        """

    @property
    def fingerprint(self) -> str:
        """Digest of subjects, splits, normalisation, responses and stimuli, not of feature spaces."""
        return self.manifest.fingerprint

    @property
    def subjects(self) -> list[str]:
        """Subject ids, sorted."""
        return sorted(self.manifest.subjects)

    @property
    def splits(self) -> dict[str, SplitEntry]:
        """The named splits."""
        return self.manifest.splits

    @property
    def feature_spaces(self) -> dict[str, FeatureSpaceEntry]:
        """The cached feature spaces by name."""
        return self.manifest.feature_spaces

    def voxels(self, subject: str) -> int:
        """Number of voxels of a subject."""
        return self._subject(subject).voxels

    def inputs(self, subject: str) -> int:
        """Numbers in one trial's response: its voxels, times the time points of a window."""
        return prod(self._subject(subject).trial_shape)

    def voxel_table(self, subject: str) -> dict[str, np.ndarray]:
        """Per-voxel arrays `(voxels, ...)`: `roi` strings, `noise_ceiling` float32 in [0, 1], others free."""
        return self._arrays(self._subject(subject).table)

    def samples(self, subject: str, split: str) -> Samples:
        """The samples of one subject in a partition (`train`, `test`) or a named split, in shard order."""
        self._subject(subject)
        if split not in self.manifest.splits:
            raise InputError(
                f"{split!r} is not a split of {self.path}: use one of {sorted(self.manifest.splits)}."
            )
        entry = self.manifest.splits[split]
        tables = [
            self.shard_samples(number)
            for number, shard in enumerate(self.manifest.shards)
            if (shard.subject, shard.partition) == (subject, entry.partition)
        ]
        table = concatenate(subject, tables)
        self._check_ascending(table)
        if entry.nsd_ids is not None:
            table = table.take(np.isin(table.nsd_id, entry.nsd_ids))
        return table.until(entry.last_session[subject]) if subject in entry.last_session else table

    def shard_samples(self, number: int) -> Samples:
        """The samples of one shard, by its position in the manifest."""
        index, subject = self.index(number, "responses"), self.manifest.shards[number].subject
        count = len(index.keys)
        return Samples(
            subject=subject,
            keys=index.keys,
            nsd_id=index.extra["nsd_id"].astype(np.int64),
            repeats=index.extra["repeats"].astype(np.int64),
            sessions=index.extra["sessions"],
            shard=np.full(count, number),
            row=np.arange(count),
        )

    def responses(self, samples: Samples, i: int) -> np.ndarray:
        """float16 `(repeats, voxels)`, the chosen repeats of sample `i` in the order measured.

        `(repeats, time, voxels)` where trials are windows.
        """
        stored = self.index(int(samples.shard[i]), "responses").extra["repeats"][samples.row[i]]
        shape = (int(stored), *self._subject(samples.subject).trial_shape)
        found = self._array(samples, i, "responses", BETAS, shape, np.dtype(np.float16))
        return found[: int(samples.repeats[i])]

    def trials(self, samples: Samples, i: int) -> list[dict[str, Any]]:
        """Session, trial (its number within the session, from 1) and behaviour of the repeats of sample `i`."""
        trials: list[dict[str, Any]] = json.loads(self._member(samples, i, "responses", "json"))["trials"]
        return trials[: int(samples.repeats[i])]

    def picture(self, samples: Samples, i: int) -> np.ndarray:
        """uint8 `(height, width, 3)`, the picture seen."""
        index = self.index(int(samples.shard[i]), "stimuli")
        ending = next(name for name in index.fields if name != "json")
        with Image.open(
            io.BytesIO(self._member(samples, i, "stimuli", ending)), formats=["PNG", "JPEG"]
        ) as image:
            return np.asarray(image.convert("RGB"))

    def captions(self, samples: Samples, i: int) -> list[str]:
        """The captions of the picture, possibly none."""
        captions: list[str] = json.loads(self._member(samples, i, "stimuli", "json"))["captions"]
        return captions

    def feature(self, samples: Samples, i: int, space: str) -> np.ndarray:
        """The picture's cached feature, of the shape of the space; float32 where it is bfloat16."""
        found = self.stored_features(samples, [i], space)[0]
        return bfloat16.from_bits(found) if self._space(space).dtype == "bfloat16" else found

    def feature_tensor(
        self, parts: Sequence[tuple[Samples, Sequence[int] | np.ndarray]], space: str
    ) -> torch.Tensor:
        """Cached features as stored, of rows of several tables one after another.

        A tensor `(all rows, *shape)` of the space's dtype, filled with no copy.
        """
        import torch  # readers and the command line do without it

        entry = self._space(space)
        out = np.empty((sum(len(rows) for _, rows in parts), *entry.shape), stored_dtype(entry))
        at = 0
        for samples, rows in parts:
            self.stored_features(samples, rows, space, out=out[at : at + len(rows)])
            at += len(rows)
        return torch.from_numpy(out).view(getattr(torch, entry.dtype))

    def feature_statistics(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over training pictures, float32 of the space's shape.

        The standard deviation of a constant feature is given as 1, so that dividing by it is harmless.
        """
        arrays = self._arrays(self._space(space).statistics)
        return arrays["mean"], arrays["std"]

    def read_trials(
        self, samples: Samples, rows: Sequence[int] | np.ndarray, repeats: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """`stored_trials` as float32."""
        return self.stored_trials(samples, rows, repeats).astype(np.float32)

    def stored_trials(
        self, samples: Samples, rows: Sequence[int] | np.ndarray, repeats: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """One trial of each of several samples, read and checked without the sample's other repeats.

        Args:
            rows: (n,) indices into `samples`.
            repeats: (n,) which repeat of each, from 0.

        Returns:
            float16 `(n, voxels)`, or `(n, time, voxels)` where trials are windows.
        """
        row, repeat = np.asarray(rows, np.int64), np.asarray(repeats, np.int64)
        wrong = np.flatnonzero((repeat < 0) | (repeat >= samples.repeats[row]))
        if len(wrong):
            i, asked = int(row[wrong[0]]), int(repeat[wrong[0]])
            raise InputError(
                f"{samples.keys[i]} has repeats 0 to {int(samples.repeats[i]) - 1}, not {asked}: "
                "choose one of these."
            )
        return self._pieces.trials(samples, row, repeat)

    def read_features(self, samples: Samples, rows: Sequence[int] | np.ndarray, space: str) -> np.ndarray:
        """Cached features of several samples, float32 `(n, *shape)`."""
        found = self.stored_features(samples, rows, space)
        if self._space(space).dtype == "bfloat16":
            return bfloat16.from_bits(found)
        return found.astype(np.float32, copy=False)

    def stored_features(
        self,
        samples: Samples,
        rows: Sequence[int] | np.ndarray,
        space: str,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Cached features of several samples as stored, `(n, *shape)`; bfloat16 as uint16 with its bits.

        They are read into `out` where one is given, C-contiguous and of the stored dtype.
        """
        return self._pieces.features(samples, np.asarray(rows, np.int64), self._space(space), out)

    def index(self, number: int, column: str) -> ColumnIndex:
        """The index of a column of one shard, checked against its digest."""
        return self._pieces.index(number, column)

    def _check_ascending(self, table: Samples) -> None:
        wrong = np.flatnonzero(table.keys[1:] <= table.keys[:-1])
        if len(wrong):
            i = int(wrong[0]) + 1
            file = self.manifest.shards[int(table.shard[i])].columns["responses"].index.file
            rule = f"comes after {table.keys[i - 1]}, and keys are in ascending order, each once"
            raise damage(self.path, file, rule, str(table.keys[i]))

    def _subject(self, subject: str) -> SubjectEntry:
        if subject not in self.manifest.subjects:
            raise InputError(f"{subject!r} is not a subject of {self.path}: use one of {self.subjects}.")
        return self.manifest.subjects[subject]

    def _space(self, space: str) -> FeatureSpaceEntry:
        if space not in self.manifest.feature_spaces:
            raise InputError(
                f"{space!r} is not a feature space of {self.path}: use one of "
                f"{sorted(self.manifest.feature_spaces)}, or add it with `fmri2img features`."
            )
        return self.manifest.feature_spaces[space]

    def _arrays(self, entry: FileEntry) -> dict[str, np.ndarray]:
        try:
            return unpack_npz(self.files.whole(entry))
        except ValueError as error:
            raise damage(self.path, entry.file, str(error)) from None

    def _member(self, samples: Samples, i: int, column: str, ending: str) -> bytes:
        number, row, key = int(samples.shard[i]), int(samples.row[i]), str(samples.keys[i])
        index = self.index(number, column)
        entry = self.manifest.shards[number].columns[column]
        if index.keys[row] != key or ending not in index.fields:
            raise damage(
                self.path, entry.index.file, f"row {row} is {index.keys[row]} with {index.fields}", key
            )
        field = index.fields.index(ending)
        place = int(index.offset[row, field]), int(index.size[row, field]), int(index.crc32[row, field])
        return self.files.read(entry, *place, key)

    def _array(
        self, samples: Samples, i: int, column: str, ending: str, shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        data = self._member(samples, i, column, ending)
        file, key = self.manifest.shards[int(samples.shard[i])].columns[column].file, str(samples.keys[i])
        try:
            array = unpack(data)
        except ValueError as error:
            raise damage(self.path, file, str(error), key) from None
        if array.shape != shape or array.dtype != dtype:
            raise damage(self.path, file, f"{array.shape} {array.dtype} instead of {shape} {dtype}", key)
        return array


def stray_shards(root: Path, manifest: DatasetManifest) -> list[str]:
    """Tars of shards that the manifest does not know (what a dead feature job left is of known ones)."""
    known = {shard.name for shard in manifest.shards}
    tars = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.tar"))
    tars += sorted(path.name for path in root.glob("*.tar"))
    return [tar for tar in tars if not Path(tar).name.startswith(".") and tar.split(".")[0] not in known]
