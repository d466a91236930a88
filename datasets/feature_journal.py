"""Which columns of a feature space an unfinished job has written, so that the next one goes on from there.

One hidden file, `features/.NAME.journal`: a first line that says what is being made of which data, then a line a
finished column. A column counts only while its bytes are those that the line says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmri2img.datasets.manifest import ColumnEntry, FileEntry
from fmri2img.files import canonical_json, fsync_folder, sha256_file, write_atomic


class FeatureJournal:
    """The journal of one space; opened with another identity than it has, it starts afresh.

    Args:
        root: data set folder.
        name: of the space.
        identity: plain data; what a column depends on.
    """

    def __init__(self, root: Path, name: str, identity: dict[str, Any]) -> None:
        self.root, self.path = root, root / "features" / f".{name}.journal"
        self.path.parent.mkdir(exist_ok=True)
        head = canonical_json(identity)
        self._done = self._read(head)
        lines = [head, *(_line(shard, entry) for shard, entry in self._done.items())]
        write_atomic(self.path, b"\n".join(lines) + b"\n")  # without a line that was cut

    def finished(self, shard: str) -> ColumnEntry | None:
        """The column of a shard if it was written and is still as it was written, else None."""
        entry = self._done.get(shard)
        if entry is None or not (_whole(self.root, entry) and _whole(self.root, entry.index)):
            return None
        return entry

    def add(self, shard: str, entry: ColumnEntry) -> None:
        """Note a column that has been written."""
        with open(self.path, "ab") as file:
            file.write(_line(shard, entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """The space is in the manifest: the journal is not needed any more."""
        self.path.unlink(missing_ok=True)
        fsync_folder(self.path.parent)

    def _read(self, head: bytes) -> dict[str, ColumnEntry]:
        try:
            first, *lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        if first != head:
            return {}
        done: dict[str, ColumnEntry] = {}
        for line in lines:
            try:
                shard, entry = json.loads(line)
                done[str(shard)] = ColumnEntry.model_validate(entry)
            except (ValueError, TypeError, ValidationError):
                break  # the job was killed within this line
        return done


def _line(shard: str, entry: ColumnEntry) -> bytes:
    return canonical_json([shard, entry.model_dump()])


def _whole(root: Path, entry: FileEntry) -> bool:
    path = root / entry.file
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
