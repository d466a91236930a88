"""Reads a whole data set folder once and lists everything in it that is not as it was built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32 as crc32_of

from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.index import ColumnIndex
from fmri2img.datasets.manifest import BETAS, MANIFEST, DatasetManifest, FileEntry, ShardEntry, read_manifest
from fmri2img.datasets.npy import read_header, unpack, unpack_npz
from fmri2img.datasets.pieces import stored_dtype
from fmri2img.datasets.source import Progress, silent
from fmri2img.datasets.tars import TarWalk
from fmri2img.errors import DamageError

BESIDE = (MANIFEST, "README.md", "croissant.json")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, the sample's key where there is one, and the rule it breaks."""

    file: str
    key: str | None
    rule: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.rule}" if self.key else f"{self.file}: {self.rule}"


def verify(path: str | Path, progress: Progress | None = None) -> list[Problem]:
    """Check every byte of a data set folder against its manifest and indices, to the last.

    Args:
        path: data set folder.
        progress: called with (what, done, total) in bytes.

    Returns:
        The problems, none for a sound data set.

    Raises:
        InputError: there is no data set at `path`, or one of an unknown schema version.
    """
    root = Path(path).absolute()
    try:
        manifest = read_manifest(root)
    except DamageError as error:
        return [Problem(MANIFEST, None, str(error))]
    return list(_Verification(root, manifest, progress or silent).problems())


class _Verification:
    def __init__(self, root: Path, manifest: DatasetManifest, progress: Progress) -> None:
        self.root, self.manifest, self.progress = root, manifest, progress
        self.dataset = Dataset(root, manifest)
        self.files = [entry for _, entry in _files(manifest)]
        self.total, self.done = sum(entry.bytes for entry in self.files), 0
        self.last: dict[tuple[str, str], str] = {}
        self.keys: dict[str, str] = {}

    def problems(self) -> Iterator[Problem]:
        yield from self._strays()
        yield from self._small_files()
        for number, shard in enumerate(self.manifest.shards):
            responses: ColumnIndex | None = None
            for column in sorted(shard.columns, key=lambda name: (name != "responses", name)):
                entry = shard.columns[column]
                try:
                    index = self.dataset.index(number, column)
                except DamageError as error:
                    yield Problem(entry.index.file, None, _rule(error, self.root, entry.index.file))
                    index = None
                if index is not None:
                    if column == "responses":
                        responses = index
                        yield from self._keys(shard, index)
                    elif responses is not None and index.keys.tolist() != responses.keys.tolist():
                        yield Problem(
                            entry.index.file, None, f"its keys are not those of {shard.name}.responses"
                        )
                yield from self._tar(shard, column, entry, index)
                self._tick(entry.index.bytes)
        self.progress("verifying", self.total, self.total)

    def _tick(self, size: int) -> None:
        self.done += size
        self.progress("verifying", self.done, self.total)

    def _strays(self) -> Iterator[Problem]:
        known = {entry.file for entry in self.files} | set(BESIDE)
        for path in sorted(self.root.rglob("*")):
            file = path.relative_to(self.root).as_posix()
            hidden = any(part.startswith(".") for part in Path(file).parts)
            if not hidden and (path.is_symlink() or not path.is_dir()) and file not in known:
                rule = "not in the manifest: left by an unfinished job or put here by hand; move it away"
                yield Problem(file, None, rule)

    def _small_files(self) -> Iterator[Problem]:
        tables = [(f"{name}", s.table, s.voxels) for name, s in self.manifest.subjects.items()]
        for name, entry, voxels in tables:
            try:
                arrays = unpack_npz(self.dataset.files.whole(entry))
                if any(len(array) != voxels for array in arrays.values()):
                    yield Problem(
                        entry.file, None, f"an array has not one entry for each of {voxels} voxels of {name}"
                    )
            except (DamageError, ValueError) as error:
                yield Problem(entry.file, None, _rule(error, self.root, entry.file))
            self._tick(entry.bytes)
        for space in self.manifest.feature_spaces.values():
            entry = space.statistics
            try:
                arrays = unpack_npz(self.dataset.files.whole(entry))
                if any(arrays[name].shape != tuple(space.shape) for name in ("mean", "std")):
                    yield Problem(entry.file, None, f"mean and std are not both {space.shape}")
            except (DamageError, ValueError, KeyError) as error:
                yield Problem(entry.file, None, _rule(error, self.root, entry.file))
            self._tick(entry.bytes)

    def _keys(self, shard: ShardEntry, index: ColumnIndex) -> Iterator[Problem]:
        file = shard.columns["responses"].index.file
        last = self.last.get((shard.subject, shard.partition), "")
        for key in index.keys.tolist():
            if key in self.keys:
                yield Problem(
                    file, key, f"the same key is in {self.keys[key]}, and keys are unique over a data set"
                )
            if key <= last:
                yield Problem(file, key, f"comes after {last}, and keys are in ascending order")
            if "." in key:
                yield Problem(file, key, "keys hold no dots")
            self.keys[key], last = shard.name, key
        self.last[shard.subject, shard.partition] = last
        trials = int(index.extra["repeats"].sum())
        if trials != shard.trials:
            yield Problem(file, None, f"lists {trials} trials, but the manifest says {shard.trials}")
        sessions = index.extra["sessions"]
        if ((sessions >= 1).sum(axis=1) != index.extra["repeats"]).any():
            yield Problem(file, None, "has not one session for each repeat")

    def _tar(
        self, shard: ShardEntry, column: str, entry: FileEntry, index: ColumnIndex | None
    ) -> Iterator[Problem]:
        path = self.root / entry.file
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            yield Problem(entry.file, None, "the file is missing")
            self._tick(entry.bytes)
            return
        if found != entry.bytes:
            yield Problem(entry.file, None, f"{found} bytes long, but the manifest says {entry.bytes}")
        with open(path, "rb", buffering=0) as file:
            walk = TarWalk(file, found)
            if index is not None:
                yield from self._members(shard, column, entry, index, walk)
            digest, empty = walk.finish()
        if index is not None and not empty:
            yield Problem(entry.file, None, "there are bytes after the end of the archive")
        if digest != entry.sha256:
            yield Problem(entry.file, None, "its sha256 is not the manifest's")
        self._tick(entry.bytes)

    def _members(
        self, shard: ShardEntry, column: str, entry: FileEntry, index: ColumnIndex, walk: TarWalk
    ) -> Iterator[Problem]:
        """Compare the tar's members, in order, with the index."""
        names, place, found = index.names(), 0, set[str]()
        width = len(index.fields)
        wanted = dict(zip(names, range(len(names)), strict=True))
        try:
            for name, offset, data, filled in walk.members():
                key = name.split(".")[0]
                if not filled:
                    yield Problem(entry.file, key, f"the filling after {name} is not zeros")
                if name not in wanted or name in found:
                    yield Problem(entry.file, key, f"member {name} is not in the index, or twice in the tar")
                    continue
                found.add(name)
                position = wanted[name]
                if position != place:
                    yield Problem(entry.file, key, f"member {name} is not in the order of the index")
                place = position + 1
                row, field = divmod(position, width)
                lies, told = (offset, len(data)), (int(index.offset[row, field]), int(index.size[row, field]))
                if lies != told:
                    yield Problem(entry.file, key, f"{name} lies at {lies}, the index says {told}")
                elif crc32_of(data) != int(index.crc32[row, field]):
                    yield Problem(entry.file, key, f"the crc32 of {name} is not the index's")
                else:
                    for rule in _content(self.manifest, shard, column, index, row, index.fields[field], data):
                        yield Problem(entry.file, key, f"{name}: {rule}")
        except ValueError as error:
            after = names[place] if place < len(names) else None
            rule = f"the tar cannot be read to its end ({error})" + (f", from {after} on" if after else "")
            yield Problem(entry.file, after.split(".")[0] if after else None, rule)
            return
        for name in names:
            if name not in found:
                yield Problem(entry.file, name.split(".")[0], f"member {name} is missing")


def _content(
    manifest: DatasetManifest,
    shard: ShardEntry,
    column: str,
    index: ColumnIndex,
    row: int,
    ending: str,
    data: memoryview,
) -> Iterator[str]:
    """What is wrong with a payload whose bytes are those that were indexed."""
    try:
        if ending == BETAS:
            array, repeats = unpack(data), int(index.extra["repeats"][row])
            shape = (repeats, *manifest.subjects[shard.subject].trial_shape)
            if array.shape != shape or array.dtype != np.float16:
                yield f"it is {array.dtype} {array.shape}, and must be float16 {shape}"
            elif [crc32_of(trial) for trial in array] != index.extra["trial_crc32"][row, :repeats].tolist():
                yield "the crc32 of a trial is not the index's"
        elif ending == "npy":
            space = manifest.feature_spaces[column]
            shape, _, dtype, length = read_header(data)
            wanted = tuple(space.shape), stored_dtype(space)
            if (shape, dtype) != wanted or prod(shape) * dtype.itemsize != len(data) - length:
                yield f"it is {dtype} {shape}, but the space is {space.dtype} {space.shape}"
        elif ending == "json" and column == "responses":
            yield from _record(json.loads(bytes(data)), index, row)
    except (ValueError, KeyError, TypeError) as error:
        yield f"cannot be parsed ({error})"


def _record(record: dict[str, Any], index: ColumnIndex, row: int) -> Iterator[str]:
    sessions = [trial["session"] for trial in record["trials"]]
    repeats = int(index.extra["repeats"][row])
    if record["nsd_id"] != int(index.extra["nsd_id"][row]):
        yield f"nsd_id {record['nsd_id']} is not the index's"
    if sessions != index.extra["sessions"][row, :repeats].tolist():
        yield f"sessions {sessions} are not the index's"


def _files(manifest: DatasetManifest) -> Iterator[tuple[str, FileEntry]]:
    """Every file the manifest names."""
    for subject, entry in manifest.subjects.items():
        yield subject, entry.table
    for name, space in manifest.feature_spaces.items():
        yield name, space.statistics
    for shard in manifest.shards:
        for column in shard.columns.values():
            yield shard.name, column
            yield shard.name, column.index


def _rule(error: Exception, root: Path, file: str) -> str:
    """The rule of a reader's error, without the file it names."""
    return str(error).removeprefix(f"{root / file}: ").split(". Bring the file back")[0]
