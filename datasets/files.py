"""Reads bytes of a data set's files at an offset, with few open files, and says what is wrong with them."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32 as crc32_of

from fmri2img.datasets.manifest import FileEntry
from fmri2img.errors import DamageError

Locate = Callable[[FileEntry], Path]
"""Where a file of the manifest lies on this machine; it may fetch the file first. Picklable."""


def damage(root: Path, file: str, rule: str, key: str | None = None) -> DamageError:
    """The error for stored bytes that are wrong: file, key, rule and way out."""
    where = f"{root / file}: {key}" if key else f"{root / file}"
    return DamageError(
        f"{where}: {rule}. Bring the file back as it was; `fmri2img data verify {root}` lists all damage."
    )


class Handle:
    """An open file that closes when nobody reads it any more, so that eviction never cuts off a reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _read_all(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes, fewer only where the file ends: some network file systems give them in parts."""
    parts, found = [], 0
    while found < size and (part := os.pread(descriptor, size - found, offset + found)):
        parts.append(part)
        found += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _files_allowed() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 8192 if allowed == resource.RLIM_INFINITY else min(8192, allowed)


class FilePool:
    """Positional reads from the files of one folder, with at most `limit` of them open.

    Safe to use from several threads; a pickled pool opens its files again where it is unpickled.

    Args:
        root: data set folder.
        locate: where a file lies, asked each time before it is opened; by default under `root`.
        limit: files open at a time; half of what the process may, and 4,096 at most, unless given.
    """

    def __init__(self, root: Path, locate: Locate | None = None, limit: int | None = None) -> None:
        self.root, self.limit = root, _files_allowed() // 2 if limit is None else limit
        self._located = locate
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "locate": self._located, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FilePool.__init__(self, state["root"], state["locate"], state["limit"])

    @property
    def remote(self) -> bool:
        """Whether files are located by a function rather than lying under `root`."""
        return self._located is not None

    def locate(self, entry: FileEntry) -> Path:
        """Where a file lies on this machine."""
        return self.root / entry.file if self._located is None else self._located(entry)

    def whole(self, entry: FileEntry) -> bytes:
        """The whole of a small file, checked against the manifest.

        Raises:
            DamageError: it is missing, or has another size or digest.
        """
        handle = self._opened(entry)
        with open(handle.descriptor, "rb", closefd=False) as file:
            data = file.read(entry.bytes + 1)
        if len(data) != entry.bytes:
            longer = "more than " if len(data) > entry.bytes else ""
            found = min(len(data), entry.bytes)
            rule = f"{longer}{found} bytes, but the manifest says {entry.bytes}"
            raise damage(self.root, entry.file, rule)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise damage(self.root, entry.file, "its sha256 is not the manifest's")
        return data

    def read(self, entry: FileEntry, offset: int, size: int, crc32: int, key: str) -> bytes:
        """`size` bytes at `offset`, checked against `crc32`.

        Raises:
            DamageError: the file is missing, has another size than the manifest says, or other bytes there.
        """
        handle = self.open(entry)  # kept until the read is done, so that no eviction closes it
        data = _read_all(handle.descriptor, size, offset)
        if len(data) != size:
            raise self.cut(entry, offset, size, len(data), key)
        if crc32_of(data) != crc32:
            raise self.wrong(entry, offset, key)
        return data

    def fill(
        self,
        out: np.ndarray,
        entries: Sequence[FileEntry],
        offsets: np.ndarray,
        checks: np.ndarray,
        keys: np.ndarray,
        head: bytes = b"",
    ) -> None:
        """Read one piece of a file into each row of `out`, checked, with no copy and file by file.

        Args:
            out: `(n, ...)`, C-contiguous; a piece is a row of it.
            entries: n files of the pieces.
            offsets, checks: (n,) where each piece begins, and its crc32.
            keys: (n,) of their samples.
            head: bytes that every piece begins with, before the row; `checks` includes them.

        Raises:
            DamageError: as `read` does, or a piece begins otherwise.
        """
        if not len(out):
            return
        size, view, lead = out[0].nbytes, out.reshape(-1).view(np.uint8).data, bytearray(len(head))
        whole, files = len(head) + size, [entry.file for entry in entries]
        order = sorted(range(len(files)), key=list(zip(files, offsets.tolist(), strict=True)).__getitem__)
        last = ""
        for line, offset, check in zip(order, offsets[order].tolist(), checks[order].tolist(), strict=True):
            if files[line] != last:
                handle, last = self.open(entries[line]), files[line]
            piece = view[line * size : (line + 1) * size]
            if os.preadv(handle.descriptor, (lead, piece) if head else (piece,), offset) != whole:
                data = _read_all(handle.descriptor, whole, offset)
                if len(data) != whole:
                    raise self.cut(entries[line], offset, whole, len(data), str(keys[line]))
                lead[:], piece[:] = data[: len(head)], data[len(head) :]
            if crc32_of(piece, crc32_of(lead)) != check:
                raise self.wrong(entries[line], offset, str(keys[line]))
            if lead != head:
                rule = f"its .npy header is not that of {out.dtype} {out.shape[1:]}"
                raise damage(self.root, files[line], rule, str(keys[line]))

    def cut(self, entry: FileEntry, offset: int, size: int, found: int, key: str) -> DamageError:
        """The error for a read that ended early."""
        return damage(self.root, entry.file, f"{found} bytes at offset {offset} instead of {size}", key)

    def wrong(self, entry: FileEntry, offset: int, key: str) -> DamageError:
        """The error for bytes whose checksum is another."""
        rule = f"the crc32 of its bytes at offset {offset} is not the index's"
        return damage(self.root, entry.file, rule, key)

    def open(self, entry: FileEntry) -> Handle:
        """The open file, for positional reads while the handle is kept.

        Raises:
            DamageError: the file is missing or has another size than the manifest says.
        """
        with self._lock:
            handle = self._open.get(entry.file)
            if handle is not None:
                self._open.move_to_end(entry.file)
                return handle
        handle = self._opened(entry)  # outside the lock: it may take long to fetch
        found = os.fstat(handle.descriptor).st_size
        if found != entry.bytes:
            rule = f"{found} bytes long, but the manifest says {entry.bytes}"
            raise damage(self.root, entry.file, rule)
        with self._lock:
            handle = self._open.setdefault(entry.file, handle)
            self._open.move_to_end(entry.file)
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
        return handle

    def _opened(self, entry: FileEntry) -> Handle:
        for _ in range(1 if self._located is None else 5):
            try:
                return Handle(self.locate(entry))
            except FileNotFoundError:  # or a cache has dropped it since it was located
                continue
        raise damage(self.root, entry.file, "the file is missing")
