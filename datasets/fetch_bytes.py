"""Brings a file from an address to this machine, whole and compared with its digest.

A file is read in blocks. A block that does not arrive is asked for again, and a file that stopped half-way goes on
from its last byte, in this process or in the next.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fmri2img.datasets.fetch_link import Link, file_system, patiently
from fmri2img.errors import DamageError, InputError, StoppedError
from fmri2img.files import CHUNK


def land(
    url: str,
    partial: Path,
    *,
    size: int,
    expected: Mapping[str, str],
    link: Link,
    tell: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, str]:
    """Make `partial` the whole file at `url`, going on from the bytes that it holds already.

    Args:
        size: of the file, in bytes.
        expected: hexadecimal digests that its bytes must have, by algorithm: `sha256`, `md5`, or `s3-etag:BYTES` for
            the ETag of an object that was uploaded to S3 in parts of so many bytes.
        tell: called with the number of bytes that are there.
        stop: ends the work between two blocks when it is set.

    Returns:
        Hexadecimal digests of what has landed: sha256 and those of `expected`.

    Raises:
        DamageError: other bytes arrived than were announced, `link.tries` times.
        InputError: there is no such file, or no right to read it.
        StoppedError: the link is dead, or `stop` was set.
    """
    rule = ""
    for _ in range(link.tries):
        found = _complete(url, partial, size, {"sha256", *expected}, link, tell, stop)
        wrong = [name for name, digest in expected.items() if found[name] != digest.lower()]
        if not wrong:
            return found
        rule = f"its {wrong[0]} is {found[wrong[0]]}, but {expected[wrong[0]]} was announced"
        partial.unlink()
    raise DamageError(f"{url}: {rule}, in each of {link.tries} downloads: {_MEND}")


def read_whole(url: str, link: Link, limit: int = 1 << 30) -> bytes:
    """A small file in memory.

    Raises:
        InputError: there is none, or it is larger than `limit` bytes.
        StoppedError: the link is dead.
    """

    def read() -> bytes:
        system, path = file_system(url, link)
        size = system.info(path)["size"]
        if size is not None and size > limit:
            raise InputError(f"{url} has {size} bytes, and at most {limit} are read: check the address.")
        data: bytes = system.cat_file(path)
        if size is not None and len(data) != size:
            raise ConnectionError(f"{len(data)} of {size} bytes arrived")
        return data

    return patiently(url, link, read)


_MEND = "it was damaged or replaced where it is stored; bring it back there as it was."


def _complete(
    url: str,
    partial: Path,
    size: int,
    algorithms: set[str],
    link: Link,
    tell: Callable[[int], None] | None,
    stop: threading.Event | None,
) -> dict[str, str]:
    digests = {name: _hash(name) for name in algorithms}
    with open(partial, "a+b") as file, _Blocks(url, size, link, stop) as blocks:
        if file.tell() > size:
            file.truncate(0)
        file.seek(0)
        _digest(file, digests)
        place = file.tell()
        while place < size:
            if stop is not None and stop.is_set():
                raise StoppedError(f"{url}: stopped; the same command goes on from what has arrived.")
            block = blocks.read(place, min(link.block, size - place))
            file.write(block)
            file.flush()  # what a process that is killed now has fetched, the next one need not
            for digest in digests.values():
                digest.update(block)
            place += len(block)
            if tell is not None:
                tell(place)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def digests_of(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Hexadecimal digests of a file by algorithm, read once in pieces."""
    digests = {name: _hash(name) for name in algorithms}
    with open(path, "rb") as file:
        _digest(file, digests)
    return {name: digest.hexdigest() for name, digest in digests.items()}


class PartedMd5:
    """What S3 gives as the ETag of an object uploaded in parts: the MD5 of the parts' MD5s, and their number."""

    def __init__(self, part: int) -> None:
        self.part, self._left, self._digests = part, part, list[bytes]()
        self._now = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            self._now.update(view[: self._left])
            taken = min(self._left, len(view))
            view, self._left = view[taken:], self._left - taken
            if not self._left:
                self._close()

    def hexdigest(self) -> str:
        if self._left != self.part:
            self._close()
        return (
            f"{hashlib.md5(b''.join(self._digests), usedforsecurity=False).hexdigest()}-{len(self._digests)}"
        )

    def _close(self) -> None:
        self._digests.append(self._now.digest())
        self._now, self._left = hashlib.md5(usedforsecurity=False), self.part


def _hash(name: str) -> Any:
    kind, _, part = name.partition(":")
    return PartedMd5(int(part)) if kind == "s3-etag" else hashlib.new(name, usedforsecurity=False)


def _digest(file: BinaryIO, digests: Mapping[str, Any]) -> None:
    while piece := file.read(CHUNK):
        for digest in digests.values():
            digest.update(piece)


class _Blocks:
    """Blocks of one file of `size` bytes; it is opened anew after a failure."""

    def __init__(self, url: str, size: int, link: Link, stop: threading.Event | None) -> None:
        self.url, self.size, self.link, self.stop = url, size, link, stop
        self._file: Any = None

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, start: int, count: int) -> bytes:
        return patiently(self.url, self.link, lambda: self._read(start, count), self.stop)

    def _read(self, start: int, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.seek(start)
            data: bytes = self._file.read(count)
        except BaseException:
            self._close()
            raise
        if len(data) != count:
            self._close()
            raise ConnectionError(f"{len(data)} of {count} bytes arrived")
        return data

    def _open(self) -> Any:
        system, path = file_system(self.url, self.link)
        options: dict[str, Any] = {"block_size": self.link.block, "cache_type": "none"}
        if self.url.startswith(
            "http"
        ):  # a server may not tell the size, which would make it a file without places
            found = system.info(path)["size"]
            file = system.open(path, "rb", size=self.size, **options)
        else:
            file = system.open(path, "rb", **options)
            found = file.size
        if found not in (None, self.size):
            file.close()
            raise DamageError(f"{self.url} has {found} bytes, but {self.size} were announced: {_MEND}")
        return file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
