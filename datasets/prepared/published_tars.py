"""Reads tars that others published: where each sample's members lie, without reading what is not needed.

Unlike our own shards they come without digests, and members of many megabytes that nobody uses lie between
small ones. So headers alone are walked, every one of them checked, and members read at their offset.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fmri2img.datasets.npy import unpack
from fmri2img.errors import DamageError, InputError

BLOCK = tarfile.BLOCKSIZE
EXTRA_LIMIT = 1 << 20
"""Bytes of an extended header (a long name, a date to the microsecond)."""
MEMBER_LIMIT = 64 << 20
"""Bytes of a member that is read."""


@dataclass(frozen=True)
class TarSample:
    """Members of one sample.

    Attributes:
        path: the tar.
        key: what the members' names have in common.
        members: (offset, size) in bytes by file ending, such as `behav.npy`.
    """

    path: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, *endings: str) -> bytes:
        """The bytes of the first of these members that is there.

        Raises:
            DamageError: none is there, or the tar ends within it.
        """
        found = next((ending for ending in endings if ending in self.members), None)
        if found is None:
            raise damaged(self.path, f"sample {self.key} has no {' or '.join(endings)}")
        offset, size = self.members[found]
        if size > MEMBER_LIMIT:
            raise damaged(self.path, f"{self.key}.{found} has {size} bytes, more than {MEMBER_LIMIT}")
        with open(self.path, "rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise damaged(self.path, f"the file ends within {self.key}.{found}")
        return data

    def array(self, ending: str) -> np.ndarray:
        """A `.npy` member.

        Raises:
            DamageError: it is not there or no whole array of numbers.
        """
        data = self.read(ending)
        try:
            array = unpack(data)
        except ValueError as error:
            raise damaged(self.path, f"{self.key}.{ending}: {error}") from None
        if array.dtype.kind not in "biuf":
            raise damaged(self.path, f"{self.key}.{ending} is {array.dtype} and must be numbers")
        return array

    def whole_number(self, ending: str) -> int:
        """A `.npy` member that holds one whole number, in whatever shape and type."""
        array = self.array(ending)
        if (
            array.size != 1
            or not np.isfinite(array).all()
            or int(array.reshape(-1)[0]) != array.reshape(-1)[0]
        ):
            raise damaged(self.path, f"{self.key}.{ending} is {array.shape} and must be one whole number")
        return int(array.reshape(-1)[0])


def read_samples(path: Path) -> list[TarSample]:
    """The samples of a tar in its order, by walking its headers.

    Raises:
        DamageError: a header is damaged, a member is there twice, or the end of the archive is missing.
    """
    samples: dict[str, TarSample] = {}
    with open(path, "rb") as file:
        for name, offset, size in _members(path, file):
            key, dot, ending = name.partition(".")
            sample = samples.setdefault(key, TarSample(path, key))
            if not dot or ending in sample.members:
                raise damaged(path, f"member {name} {'is there twice' if dot else 'has no file ending'}")
            sample.members[ending] = (offset, size)
    return list(samples.values())


def numbered_tars(folder: Path, pattern: str, *, count: int | None = None) -> list[Path]:
    """The tars `pattern` (with `{}` for the number) of a folder, numbers 0, 1, ... without a gap.

    Args:
        count: how many there must be; as many as there are otherwise.

    Raises:
        InputError: none, or one of them is missing.
    """
    before, after = pattern.split("{}")
    found = {
        int(path.name[len(before) : -len(after)])
        for path in (folder.iterdir() if folder.is_dir() else ())
        if re.fullmatch(re.escape(before) + r"\d{1,6}" + re.escape(after), path.name)
    }
    wanted = range(count if count is not None else max(found, default=-1) + 1)
    missing = [number for number in wanted if number not in found]
    if missing or not wanted:
        names = ", ".join(pattern.format(number) for number in missing[:5]) or pattern.format(0)
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"{folder} lacks {names}{more}: fetch what is missing, or give the folder that has it."
        )
    return [folder / pattern.format(number) for number in wanted]


def damaged(path: Path, rule: str) -> DamageError:
    """The error for a published file that is not as it should be."""
    return DamageError(f"{path}: {rule}. Fetch it again.")


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every plain file."""
    total, place = os.fstat(file.fileno()).st_size, 0
    long_name, long_size = "", -1
    while True:
        file.seek(place)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise damaged(path, f"it is cut after {total} bytes, without an end of the archive")
        if block.count(0) == BLOCK:
            return
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise damaged(path, f"the header at byte {place} is damaged ({error})") from None
        size = member.size if long_size < 0 else long_size
        offset = place + BLOCK
        if not 0 <= size <= total - offset:
            raise damaged(path, f"the header at byte {place} announces {size} bytes of {member.name}")
        place = offset + -(-size // BLOCK) * BLOCK
        if member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > EXTRA_LIMIT:
                raise damaged(path, f"the extended header at byte {offset - BLOCK} has {size} bytes")
            extra = file.read(size)
            if member.type == tarfile.GNUTYPE_LONGNAME:
                long_name = extra.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif member.type == tarfile.XHDTYPE:
                long_name, long_size = _extended(path, extra)
            continue
        if member.isreg():
            yield os.path.basename(long_name or member.name), offset, size
        long_name, long_size = "", -1


def _extended(path: Path, data: bytes) -> tuple[str, int]:
    """The name and size that an extended header gives the next member; empty and -1 where it gives none."""
    name, size = "", -1
    while data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not len(length) + 2 < int(length) <= len(data):
            raise damaged(path, "an extended header is damaged")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
        data = data[int(length) :]
    return name, size
