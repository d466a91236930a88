"""Writes one column of a shard: a plain WebDataset tar and its index, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal.isal_zlib import crc32

from fmri2img.datasets.index import ColumnIndex
from fmri2img.datasets.manifest import ColumnEntry, FileEntry
from fmri2img.files import fsync_file, fsync_folder, write_atomic

Payload = bytes | tuple[bytes | memoryview, ...]
"""The bytes of a member, or pieces of bytes that follow one another, which saves a copy of large arrays."""
Sample = tuple[str, Mapping[str, Payload]]

BUFFER = 1 << 20
"""Bytes that are hashed and written at a time, at least."""


def write_column(
    root: Path,
    shard: str,
    column: str,
    samples: Iterable[Sample],
    *,
    extra: Callable[[], Mapping[str, np.ndarray]] | None = None,
    durable: bool = True,
) -> ColumnEntry:
    """Write `root/SHARD.COLUMN.tar` and its index, whole or not at all.

    Args:
        root: data set folder (or its staging folder).
        shard: such as `subj01/train-00012`.
        column: `responses`, `stimuli` or the name of a feature space.
        samples: (key, {file ending: payload}) in key order, every sample with the same endings.
        extra: called after the last sample, gives the per-sample arrays of the index.
        durable: whether it survives a power cut when this returns; if not, call `make_durable` later, for many
            files at once.
    """
    target = root / f"{shard}.{column}.tar"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, "wb", buffering=0) as file:
            tar = _Tar(file)
            for key, payloads in samples:
                tar.add(key, payloads)
            digest = tar.end()
            if durable:
                os.fsync(file.fileno())
        index = tar.index()
        index.extra.update(extra() if extra else {})
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    entry = write_file(root, f"{shard}.{column}.index.npz", index.pack(), durable=durable)
    file_name = target.relative_to(root).as_posix()
    return ColumnEntry(file=file_name, bytes=tar.size, sha256=digest, index=entry)


def write_file(root: Path, file: str, data: bytes, *, durable: bool = True) -> FileEntry:
    """Write a small file of the folder, whole or not at all, and describe it."""
    target = root / file
    target.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        write_atomic(target, data)
    else:
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, target)
    return FileEntry(file=file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def make_durable(root: Path, files: Iterable[str]) -> None:
    """Make files that were written before survive a power cut."""
    folders = set[Path]()
    for file in files:
        fsync_file(root / file)
        folders.add((root / file).parent)
    for folder in sorted(folders):
        fsync_folder(folder)


class _Tar:
    """A tar that is hashed and indexed as it is written; byte for byte that of `webdataset.TarWriter`."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file, self._digest, self._buffer = file, hashlib.sha256(), bytearray()
        self._fields: list[str] = []
        self._keys: list[str] = []
        self._places: list[tuple[int, int, int]] = []

    def add(self, key: str, payloads: Mapping[str, Payload]) -> None:
        """Append the files of one sample."""
        self._fields = self._fields or sorted(payloads)
        if sorted(payloads) != self._fields or "." in key:
            raise ValueError(f"sample {key!r} has fields {sorted(payloads)}, the shard has {self._fields}")
        for name in self._fields:
            payload = payloads[name]
            pieces = payload if isinstance(payload, tuple) else (payload,)
            size, check = sum(len(piece) for piece in pieces), 0
            self._write(_header(f"{key}.{name}", size))
            place = self.size
            for piece in pieces:
                check = crc32(piece, check)
                self._write(piece)
            self._write(bytes(-size % tarfile.BLOCKSIZE))
            self._places.append((place, size, check))
        self._keys.append(key)

    def end(self) -> str:
        """Write the end of the archive; returns the sha256 of the whole."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
        self._flush()
        return self._digest.hexdigest()

    def index(self) -> ColumnIndex:
        """Where everything was written."""
        shape = (len(self._keys), len(self._fields))
        offset, size, checks = zip(*self._places, strict=True) if self._places else ((), (), ())
        return ColumnIndex(
            keys=np.array(self._keys),
            fields=self._fields,
            offset=np.array(offset, np.int64).reshape(shape),
            size=np.array(size, np.int64).reshape(shape),
            crc32=np.array(checks, np.uint32).reshape(shape),
        )

    def _write(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) >= BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._digest.update(self._buffer)
        view = memoryview(self._buffer)
        while view:
            view = view[self._file.write(view) :]
        self._buffer = bytearray()


def _header(name: str, size: int) -> bytes:
    """The header of a file in a tar, with nothing in it that differs from one run to another.

    tarfile makes one header; name, size and checksum are put into copies of it, which is 15 times as fast.
    """
    encoded = name.encode("ascii")
    if len(encoded) >= tarfile.LENGTH_NAME or size >= 8**11:
        raise ValueError(f"{name} of {size} bytes does not fit the header of a tar")
    header = bytearray(_blank_header())
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * ord(" "))  # the field counts as spaces
    return bytes(header)


@lru_cache(maxsize=1)
def _blank_header() -> bytes:
    member = tarfile.TarInfo()
    member.mode, member.uname, member.gname = 0o444, "fmri2img", "fmri2img"
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    header[148:156] = bytes(8)
    return bytes(header)
