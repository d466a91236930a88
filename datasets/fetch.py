"""Fetches listed files into a folder: space is checked first, downloads go on where they stopped, all is verified.

Beside the files lies `.fetched.jsonl`, one line for each file that has landed, with its sha256: by it a second run
knows what is there without reading it again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any

from fmri2img.datasets.fetch_bytes import digests_of, land
from fmri2img.datasets.fetch_link import Link
from fmri2img.datasets.fetch_listing import Remote, digests_expected
from fmri2img.errors import DamageError, InputError
from fmri2img.files import alone

RECORD = ".fetched.jsonl"
MARGIN = 64 << 20  # bytes of the disk that are left to others
LARGEST_MEMBER = 4 << 30

Tell = Callable[[int, int], None]
"""Called with the bytes that are there, and with all that there will be."""


def fetch(
    files: Sequence[Remote],
    out: Path,
    *,
    link: Link,
    streams: int = 4,
    reread: bool = False,
    tell: Tell | None = None,
) -> list[Remote]:
    """Bring the files that are missing or wrong, `streams` at a time.

    Args:
        reread: compare the bytes of every file with its digest, not only those that changed since they landed.

    Returns:
        The files that were brought.

    Raises:
        InputError: the disk cannot take them, or another job fetches into the folder.
        DamageError: a file is not what its source announces.
        StoppedError: the link is dead; what has arrived is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, f"Another job is fetching into {out}: wait until it is done."):
        landed = Landed(out, link)
        todo = [file for file in files if not landed.holds(file, reread=reread)]
        _tidy(todo, out)
        needed, free = bytes_to_fetch(todo, out), free_bytes(out)
        if needed > free:
            raise InputError(
                f"{out} needs {needed} bytes more and its disk has {free} free: free {needed - free}, choose another "
                "folder, or fetch fewer subjects or parts."
            )
        work = _Work(out, landed, link, sum(file.bytes for file in todo), tell)
        with ThreadPoolExecutor(max_workers=streams) as pool:
            jobs = [pool.submit(work.bring, file) for file in todo]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                work.stop.set()
                pool.shutdown(cancel_futures=True)
        for file in files:
            _unpack(out / file.file, file.members)
    return todo


def bytes_to_fetch(files: Sequence[Remote], out: Path) -> int:
    """Bytes of files that have not arrived yet, what is there of unfinished ones left out."""
    there = [partial.stat().st_size for file in files if (partial := file.partial(out)).exists()]
    return sum(file.bytes for file in files) - sum(there)


def free_bytes(out: Path) -> int:
    """Bytes that the disk of a folder, which may not exist yet, can give."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return max(0, shutil.disk_usage(place).free - MARGIN)


class Landed:
    """Which files have landed in a folder, as `.fetched.jsonl` says. Safe to use from several threads."""

    def __init__(self, out: Path, link: Link) -> None:
        self.out, self.link, self._lock = out, link, threading.Lock()
        self._lines: dict[str, dict[str, Any]] = {}
        try:
            text = (out / RECORD).read_text()
        except FileNotFoundError:
            text = ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._lines[row["file"]] = row
            except (ValueError, KeyError, TypeError):
                continue  # a line that a job did not live to finish: its file is read again

    def seems(self, file: Remote) -> bool:
        """Whether a file is there with the right size, none of its bytes read."""
        path = self.out / file.file
        return path.is_file() and path.stat().st_size == file.bytes

    def holds(self, file: Remote, *, reread: bool = False) -> bool:
        """Whether a file is there as announced; read, and put down, if it changed since it landed."""
        if not self.seems(file):
            return False
        row = self._lines.get(file.file, {})
        known = {name: row.get(name) for name in ("bytes", "announced", "mtime_ns")}
        if not reread and known == self._known(file):
            return True
        expected = digests_expected(file, self.link)
        if not expected and "sha256" in row:
            expected = {"sha256": row["sha256"]}
        found = digests_of(self.out / file.file, {"sha256", *expected})
        if any(found[name] != digest for name, digest in expected.items()):
            return False
        self.add(file, found["sha256"])
        return True

    def add(self, file: Remote, sha256: str) -> None:
        """Put down that a file is there, and verified."""
        row = {"file": file.file, "url": file.url, "sha256": sha256} | self._known(file)
        with self._lock, open(self.out / RECORD, "a") as record:
            self._lines[file.file] = row
            record.write(json.dumps(row, sort_keys=True) + "\n")

    def _known(self, file: Remote) -> dict[str, Any]:
        """By what a file is taken for the one that was verified."""
        status = (self.out / file.file).stat()
        return {"bytes": file.bytes, "announced": dict(file.announced), "mtime_ns": status.st_mtime_ns}


class _Work:
    """Downloads of several threads, with what they have brought together."""

    def __init__(self, out: Path, landed: Landed, link: Link, total: int, tell: Tell | None) -> None:
        self.out, self.landed, self.link, self.total, self.tell = out, landed, link, total, tell
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        self._done = 0

    def bring(self, file: Remote) -> None:
        path, partial = self.out / file.file, file.partial(self.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        digests = land(
            file.url,
            partial,
            size=file.bytes,
            expected=digests_expected(file, self.link),
            link=self.link,
            tell=lambda place: self._told(file, place),
            stop=self.stop,
        )
        os.replace(partial, path)
        self.landed.add(file, digests["sha256"])
        self._told(file, file.bytes)

    def _told(self, file: Remote, place: int) -> None:
        with self._lock:
            self._done += place - self._places.get(file.file, 0)
            self._places[file.file] = place
            if self.tell is not None:
                self.tell(self._done, self.total)


def _tidy(todo: Sequence[Remote], out: Path) -> None:
    """Remove unfinished downloads of versions that the source no longer has."""
    current = {file.partial(out) for file in todo}
    for folder in {partial.parent for partial in current}:
        for path in folder.iterdir() if folder.is_dir() else ():
            if re.fullmatch(r"\..+\.[0-9a-f]{8}\.part", path.name) and path not in current:
                path.unlink()


def _unpack(path: Path, members: Sequence[str]) -> None:
    """Put members of a zip file beside it, under their own names."""
    if not members:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in members:
                target, info = path.parent / PurePosixPath(member).name, archive.getinfo(member)
                if target.exists() and target.stat().st_size == info.file_size:
                    continue
                if info.file_size > LARGEST_MEMBER:
                    raise DamageError(
                        f"{path}: {member} would have {info.file_size} bytes: bring the file anew."
                    )
                part = target.with_name(f".{target.name}.part")
                with archive.open(info) as source, open(part, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                os.replace(part, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DamageError(f"{path} cannot be unpacked ({error}): remove it and fetch it anew.") from None
