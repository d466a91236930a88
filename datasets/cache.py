"""A folder of downloaded files, bounded in bytes, that the processes of one machine share.

Files are named by their sha256, so a file is the right one or it is not there. One process downloads a file and the
others wait for it; what a process that died has left, the next one completes. Room is made by removing the file that
was asked for longest ago. A reader that has it open reads on: its bytes go when it closes it, and until then they
count as taken on the disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmri2img.errors import InputError
from fmri2img.files import fsync_file

FOLDER = "FMRI2IMG_CACHE"
BYTES = "FMRI2IMG_CACHE_BYTES"
SHARE = 0.8  # of what the disk can give, where no limit is set
MARGIN = 64 << 20  # bytes of the disk that are left to others
POLL = 0.1

_held: set[int] = set()


def _release_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A forked child shares its parent's locks and would hold them when the parent is gone.
os.register_at_fork(after_in_child=_release_held)


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file, against other threads and processes of this machine; yields whether it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            try:
                yield True
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


@dataclass(frozen=True)
class _Kept:
    """A file of the cache, or a download with the bytes that it will have."""

    path: Path
    bytes: int
    there: int
    asked: int
    whole: bool


@dataclass(frozen=True)
class FileCache:
    """At most `limit` bytes of files in `folder`, running downloads included.

    Safe to use from several threads and processes, and picklable.

    Attributes:
        folder: on a disk of this machine.
        limit: in bytes.
        grace: seconds after a file was asked for in which it is not removed, so that it can be opened.
    """

    folder: Path
    limit: int
    grace: float = 5.0

    def __post_init__(self) -> None:
        for name in ("files", "partial", "locks"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def find(self, sha256: str, size: int) -> Path | None:
        """A file that is there, marked as asked for now."""
        path = self.folder / "files" / sha256
        with locked(self._all, shared=True):
            try:
                os.utime(path)
                if path.stat().st_size == size:
                    return path
            except FileNotFoundError:
                return None
        self.remove(sha256)  # cut by a disk that failed: its bytes are not its name's
        return None

    def remove(self, sha256: str) -> None:
        """Remove a file, if it is there; who reads it reads on."""
        with locked(self._all):
            (self.folder / "files" / sha256).unlink(missing_ok=True)

    def get(self, sha256: str, size: int, download: Callable[[Path], None]) -> Path:
        """A file, downloaded if it is not there.

        Args:
            sha256: of the file, hexadecimal.
            size: of the file in bytes.
            download: completes the file at a path, which may hold its beginning, and checks it; may raise.

        Returns:
            Its path. It stays for `grace` seconds at least, and while it is open.

        Raises:
            InputError: it is larger than the cache may be, or the disk is too full.
        """
        found = self.find(sha256, size)
        if found is not None:
            return found
        if size > self.limit:
            raise InputError(
                f"The cache {self.folder} may hold {self.limit} bytes, too few for one file of {size}: raise {BYTES}."
            )
        with locked(self.folder / "locks" / sha256):
            found = self.find(sha256, size)
            if found is not None:
                return found
            partial = self._reserve(sha256, size)
            try:
                download(partial)
            finally:
                if partial.exists() and not partial.stat().st_size and size:
                    partial.unlink()
            fsync_file(partial)
            path = self.folder / "files" / sha256
            with locked(self._all):
                os.utime(partial)
                os.rename(partial, path)
        return path

    def used(self) -> int:
        """Bytes of the files that are there and of the downloads that are under way."""
        return sum(kept.bytes for kept in self._list())

    @property
    def _all(self) -> Path:
        return self.folder / "locks" / "all"

    def _list(self) -> list[_Kept]:
        """Files and downloads, those asked for longest ago first."""
        kept = []
        for name in ("files", "partial"):
            for entry in os.scandir(self.folder / name):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                size = status.st_size if name == "files" else int(entry.name.rpartition(".")[2])
                kept.append(
                    _Kept(Path(entry.path), size, status.st_size, status.st_mtime_ns, whole=name == "files")
                )
        return sorted(kept, key=lambda one: one.asked)

    def _reserve(self, sha256: str, size: int) -> Path:
        """The file to download into, once there is room for all of it."""
        partial = self.folder / "partial" / f"{sha256}.{size}"
        while True:
            with locked(self._all):
                if partial.exists() or self._make_room(size):
                    partial.touch()
                    return partial
            time.sleep(min(POLL, self.grace or POLL))

    def _make_room(self, size: int) -> bool:
        """Remove what was asked for longest ago; false if there is no room before others are done."""
        kept = self._list()
        free = shutil.disk_usage(self.folder).free - MARGIN - sum(one.bytes - one.there for one in kept)
        used = sum(one.bytes for one in kept)
        missing = size - min(self.limit - used, free)
        waiting = False
        for one in kept:
            if missing <= 0:
                return True
            if one.whole and time.time() - one.asked / 1e9 < self.grace:
                waiting = True
            elif self._remove(one):
                missing -= one.bytes
            else:
                waiting = True
        if missing > 0 and not waiting:
            raise InputError(
                f"{self.folder} needs {size} bytes, and its disk has {max(free, 0)} to give: free some, or name a "
                f"folder on another disk with {FOLDER}."
            )
        return missing <= 0

    def _remove(self, one: _Kept) -> bool:
        if one.whole:
            one.path.unlink(missing_ok=True)
            return True
        sha256 = one.path.name.partition(".")[0]
        with locked(self.folder / "locks" / sha256, wait=False) as dead:
            if dead:
                one.path.unlink(missing_ok=True)
            return dead


def open_cache(folder: Path | str | None = None, limit: int | None = None) -> FileCache:
    """The cache of this machine: `folder` and `limit`, else those of the environment, else the usual ones.

    Raises:
        InputError: the limit is no number of bytes, or more than the disk can give.
    """
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = os.environ.get(FOLDER) or Path(cache) / "fmri2img" / "shards"
    said = os.environ.get(BYTES)
    if limit is None and said:
        if not said.isdecimal():
            raise InputError(f"{BYTES}={said}: give a whole number of bytes, such as 200000000000.")
        limit = int(said)
    made = FileCache(Path(folder).expanduser().absolute(), 1)
    most = shutil.disk_usage(made.folder).free + sum(one.there for one in made._list()) - MARGIN
    if limit is None:
        limit = int(SHARE * max(most, 0))
    if not 0 < limit <= most:
        raise InputError(
            f"A cache of {limit} bytes in {made.folder}: its disk can give {max(most, 0)}; set {BYTES} to no more than "
            f"that, or name a folder on another disk with {FOLDER}."
        )
    return FileCache(made.folder, limit)
