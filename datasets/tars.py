"""Walks a tar once, from its first byte to its last: members, digest, and whether the filling is as written.

No header is trusted beyond the size of the file. Only what our shards hold is a member: plain files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import RawIOBase
from typing import NamedTuple

BLOCK = 512
ZEROS = bytes(BLOCK)
PIECE = 1 << 20


class Member(NamedTuple):
    """One file of a tar. `data` is valid until the next member is asked for."""

    name: str
    offset: int  # of the payload, in bytes from the start of the tar
    data: memoryview
    filled: bool  # the payload is filled up to a whole block with zeros, as a writer does


class TarWalk:
    """One pass over a tar of `size` bytes, opened unbuffered."""

    def __init__(self, file: RawIOBase, size: int) -> None:
        self.file, self.size = file, size
        self._hash, self._buffer, self._place = hashlib.sha256(), bytearray(PIECE), 0

    def members(self) -> Iterator[Member]:
        """Every member in order, up to the end of the archive.

        Raises:
            ValueError: a header is damaged, announces more than there is, or the end is missing.
        """
        block = bytes(self._read(BLOCK))
        while block != ZEROS:
            name, size = parse_header(block, self._place - BLOCK)
            offset, padded = self._place, -(-size // BLOCK) * BLOCK
            if size > self.size - offset:
                raise ValueError(f"the header at byte {offset - BLOCK} announces {size} bytes of {name}")
            piece = self._read(padded + BLOCK)  # with the next header: one read a member
            if len(piece) < size:
                raise ValueError(f"the file ends within {name}")
            block = bytes(piece[padded:])
            yield Member(name, offset, piece[:size], piece[size:padded] == ZEROS[: padded - size])

    def finish(self) -> tuple[str, bool]:
        """Read what is left; the sha256 of all bytes, and whether the rest was zeros."""
        empty = True
        while piece := self._read(PIECE):
            empty = empty and bytes(piece).count(0) == len(piece)
        return self._hash.hexdigest(), empty

    def _read(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        view, found = memoryview(self._buffer)[:size], 0
        while found < size and (now := self.file.readinto(view[found:])):
            found += now
        self._place += found
        self._hash.update(view[:found])
        return view[:found]


def parse_header(block: bytes, place: int) -> tuple[str, int]:
    """Name and size of the plain file that a 512-byte header at byte `place` announces.

    Raises:
        ValueError: it is cut, its checksum is wrong, or it announces something else.
    """
    if len(block) != BLOCK:
        raise ValueError("the file ends before the end of the archive")
    try:
        if sum(block) - sum(block[148:156]) + 8 * 32 != _octal(block[148:156]):
            raise ValueError("bad checksum")
        size = _octal(block[124:136])
        name = block[:100].split(b"\0", 1)[0].decode()
        prefix = block[345:500].split(b"\0", 1)[0].decode() if block[257:262] == b"ustar" else ""
    except ValueError as error:
        raise ValueError(f"the header at byte {place} is damaged: {error}") from None
    if block[156:157] not in (b"0", b"\0"):
        raise ValueError(f"the header at byte {place} is not of a plain file: {name}")
    return f"{prefix}/{name}" if prefix else name, size


def _octal(digits: bytes) -> int:
    return int(digits.split(b"\0", 1)[0].strip() or b"x", 8)
