"""Reads bytes of a data set's files at an offset, with few open files, and says what is wrong with them."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from fmri2img.datasets.manifest import FileEntry
from fmri2img.errors import DamageError


def damage(root: Path, file: str, rule: str, key: str | None = None) -> DamageError:
    """The error for stored bytes that are wrong: file, key, rule and way out."""
    where = f"{root / file}: {key}" if key else f"{root / file}"
    return DamageError(
        f"{where}: {rule}. Bring the file back as it was; `fmri2img data verify {root}` lists all damage."
    )


class _Handle:
    """An open file that closes when nobody reads it any more, so that eviction never cuts off a reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class FilePool:
    """Positional reads from the files of one folder, with at most `limit` of them open.

    Safe to use from several threads; a pickled pool opens its files again where it is unpickled.
    """

    def __init__(self, root: Path, limit: int = 64) -> None:
        self.root, self.limit = root, limit
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FilePool.__init__(self, state["root"], state["limit"])

    def read(self, entry: FileEntry, offset: int, size: int, crc32: int, key: str) -> bytes:
        """`size` bytes at `offset`, checked against `crc32`.

        Raises:
            DamageError: the file is missing, has another size than the manifest says, or other bytes there.
        """
        handle = self._handle(entry)  # kept until the read is done, so that no eviction closes it
        data = os.pread(handle.descriptor, size, offset)
        if len(data) != size:
            raise damage(
                self.root, entry.file, f"{len(data)} bytes at offset {offset} instead of {size}", key
            )
        if zlib.crc32(data) != crc32:
            raise damage(
                self.root, entry.file, f"the crc32 of its bytes at offset {offset} is not the index's", key
            )
        return data

    def _handle(self, entry: FileEntry) -> _Handle:
        with self._lock:
            handle = self._open.get(entry.file)
            if handle is not None:
                self._open.move_to_end(entry.file)
                return handle
            try:
                handle = _Handle(self.root / entry.file)
            except FileNotFoundError:
                raise damage(self.root, entry.file, "the file is missing") from None
            found = os.fstat(handle.descriptor).st_size
            if found != entry.bytes:
                raise damage(
                    self.root, entry.file, f"{found} bytes long, but the manifest says {entry.bytes}"
                )
            self._open[entry.file] = handle
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
            return handle
