"""Writes one column of a shard: a plain WebDataset tar and its index, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fmri2img.datasets.index import ColumnIndex
from fmri2img.datasets.manifest import ColumnEntry, FileEntry
from fmri2img.files import write_atomic

Sample = tuple[str, Mapping[str, bytes]]


class _Digesting:
    """A file that is only written, hashed as it goes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def write_column(
    root: Path,
    shard: str,
    column: str,
    samples: Iterable[Sample],
    *,
    extra: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> ColumnEntry:
    """Write `root/SHARD.COLUMN.tar` and its index, whole or not at all.

    Args:
        root: data set folder (or its staging folder).
        shard: such as `subj01/train-00012`.
        column: `responses`, `stimuli` or the name of a feature space.
        samples: (key, {file ending: payload}) in key order, every sample with the same endings.
        extra: called after the last sample, gives the per-sample arrays of the index.
    """
    import webdataset  # it brings torch, which readers and the command line do without

    target = root / f"{shard}.{column}.tar"
    target.parent.mkdir(parents=True, exist_ok=True)
    keys: list[str] = []
    checks: list[list[int]] = []
    fields: list[str] = []
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            stream = _Digesting(file)
            with webdataset.TarWriter(
                stream, encoder=False, user="fmri2img", group="fmri2img", mtime=0
            ) as tar:
                for key, payloads in samples:
                    fields = fields or sorted(payloads)
                    if sorted(payloads) != fields or "." in key:
                        raise ValueError(
                            f"sample {key!r} has fields {sorted(payloads)}, the shard has {fields}"
                        )
                    tar.write({"__key__": key, **payloads})
                    keys.append(key)
                    checks.append([zlib.crc32(payloads[name]) for name in fields])
            file.flush()
            os.fsync(file.fileno())
        index = _index_of(temporary, keys, fields, checks)
        index.extra.update(extra() if extra else {})
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    entry = write_file(root, f"{shard}.{column}.index.npz", index.pack())
    file_name = target.relative_to(root).as_posix()
    return ColumnEntry(file=file_name, bytes=stream.bytes, sha256=stream.digest.hexdigest(), index=entry)


def write_file(root: Path, file: str, data: bytes) -> FileEntry:
    """Write a small file of the folder, whole or not at all, and describe it."""
    target = root / file
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, data)
    return FileEntry(file=file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _index_of(path: Path, keys: list[str], fields: list[str], checks: list[list[int]]) -> ColumnIndex:
    """The index, with offsets read back from the headers that were really written."""
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
    if [m.name for m in members] != [f"{key}.{name}" for key in keys for name in fields]:
        raise RuntimeError(f"{path} holds other members than were written to it")
    shape = (len(keys), len(fields))
    return ColumnIndex(
        keys=np.array(keys),
        fields=fields,
        offset=np.array([m.offset_data for m in members], np.int64).reshape(shape),
        size=np.array([m.size for m in members], np.int64).reshape(shape),
        crc32=np.array(checks, np.uint32).reshape(shape),
    )
