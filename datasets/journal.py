"""Where a data set grows before it is one, and the journal of what is done there.

A build works in a hidden folder of a fixed name beside its target. Its journal is only appended to, a line
for every piece of work that is finished and on disk; each line carries its own checksum, so a line cut off
by a crash counts as work not done. The same command finds the folder and goes on from the last good line.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from fmri2img.errors import InputError
from fmri2img.files import canonical_json, fsync_folder

COMMITTING = "committing"


class Workshop:
    """The hidden folder of one build, locked while it is open.

    Args:
        out: the folder that is to be made.
        identity: what the build is of and how; another one cannot go on from what is done.

    Attributes:
        data: the folder that is renamed to `out` in the end.
        done: records of the journal by (kind, name).

    Raises:
        InputError: another build of `out` is running, or one with another identity was begun.
    """

    def __init__(self, out: Path, identity: dict[str, str]) -> None:
        self.out, self.folder = out, workshop_path(out)
        self.data, self.done = self.folder / "data", dict[tuple[str, str], dict[str, Any]]()
        self._lock = _locked(self.folder, out)
        try:
            self._journal = self._resume(identity)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InputError):
            # What was read came from an input that must change, so none of it can be gone on from.
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._journal)
        os.close(self._lock)

    def record(self, kind: str, name: str, **what: Any) -> None:
        """Note a piece of work that is finished and on disk."""
        _append(self._journal, {"kind": kind, "name": name} | what)
        self.done[kind, name] = what

    def commit(self) -> None:
        """Rename the finished data set into its place, and remove the rest."""
        fsync_folder(self.data)
        self.record(COMMITTING, "")
        os.rename(self.data, self.out)
        fsync_folder(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self, identity: dict[str, str]) -> int:
        """Open the journal with its good lines in `done`, or begin a new one."""
        path = self.folder / "journal.jsonl"
        records, good = read_journal(path)
        if len(records) > 1:
            _check_same(self.folder, records[0]["identity"], identity)
        else:
            shutil.rmtree(self.data, ignore_errors=True)
            good = 0
        self.data.mkdir(exist_ok=True)
        for stale in self.data.rglob(".*"):
            stale.unlink()
        journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(journal, good)
        if not good:
            _append(journal, {"kind": "build", "name": "", "identity": identity})
            fsync_folder(self.folder)
        for record in records[1:]:
            self.done[record.pop("kind"), record.pop("name")] = record
        return journal


def workshop_path(out: Path) -> Path:
    """The hidden folder in which `out` is built."""
    return out.with_name(f".{out.name}.building")


def finished_before(out: Path, identity: dict[str, str]) -> bool:
    """Whether `out` was made by this very build, killed between the renaming and its last clearing up.

    What it left is removed.
    """
    folder = workshop_path(out)
    records, _ = read_journal(folder / "journal.jsonl")
    if not records or records[-1]["kind"] != COMMITTING or (folder / "data").exists():
        return False
    if records[0]["identity"] != identity:
        return False
    os.close(_locked(folder, out))
    shutil.rmtree(folder, ignore_errors=True)
    return True


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records up to the first line that is cut or damaged, and how many bytes they take."""
    records, good = list[dict[str, Any]](), 0
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return records, good
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line)[1]
        except (ValueError, TypeError, LookupError):
            break
        if _line(record) != line or not isinstance(record, dict):
            break
        records.append(record)
        good += len(line)
    return records, good


def _append(journal: int, record: dict[str, Any]) -> None:
    line = memoryview(_line(record))
    while line:  # a disk that is nearly full takes a part, and then says so
        line = line[os.write(journal, line) :]
    os.fsync(journal)


def _line(record: dict[str, Any]) -> bytes:
    body = canonical_json(record)
    return b"[%d,%s]\n" % (zlib.crc32(body), body)


def _locked(folder: Path, out: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed, or the process dies."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # a build that ended this moment took the folder away
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"Another build of {out} is running, and two cannot build one folder: wait until it is done, "
                "or name another folder."
            ) from None
        except OSError:
            return handle  # this file system has no locks
        try:
            if os.path.samestat(os.fstat(handle), os.stat(folder / "lock")):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


def _check_same(folder: Path, before: dict[str, str], now: dict[str, str]) -> None:
    for key in sorted({*before, *now}):
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old != new:
            raise InputError(
                f"{folder} holds an unfinished build with {key} {_short(old)}, and this one has {_short(new)}: "
                "give the command as it was to go on from what is done, or remove that folder to begin again."
            )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
