"""The table of samples of one subject: aligned arrays, one entry for each picture the subject saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one subject, in shard order unless taken otherwise.

    Attributes:
        subject: subject id.
        keys: (n,) strings, unique over the data set.
        nsd_id: (n,) int64, picture id.
        repeats: (n,) int64, number of trials of the sample that are chosen: the first of those stored, since
            trials are stored in the order measured and a choice is of sessions 1 to K.
        sessions: (n, R) int16, session of each chosen trial in the order measured, padded with -1.
        shard: (n,) int64, position in the manifest's list of shards.
        row: (n,) int64, row within the shard.
    """

    subject: str
    keys: np.ndarray
    nsd_id: np.ndarray
    repeats: np.ndarray
    sessions: np.ndarray
    shard: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.nsd_id)

    def take(self, indices: np.ndarray | Sequence[int] | slice) -> Samples:
        """The samples at `indices` (integers, a boolean mask or a slice), in that order."""
        chosen = indices if isinstance(indices, slice) else np.asarray(indices)
        if isinstance(chosen, np.ndarray) and chosen.size == 0:
            chosen = chosen.astype(np.int64)
        arrays = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "subject"}
        return Samples(subject=self.subject, **arrays)

    def until(self, last_session: int) -> Samples:
        """The samples with their trials of sessions 1 to `last_session` alone, without those that have none."""
        sessions = np.where(self.sessions <= last_session, self.sessions, np.int16(-1))
        repeats = (sessions >= 0).sum(axis=1)
        return replace(self, repeats=repeats, sessions=sessions).take(repeats > 0)


def concatenate(subject: str, tables: Sequence[Samples]) -> Samples:
    """Join tables of one subject; sessions are padded to the widest of them."""
    width = max((table.sessions.shape[1] for table in tables), default=0)
    padded = [
        np.pad(table.sessions, ((0, 0), (0, width - table.sessions.shape[1])), constant_values=-1)
        for table in tables
    ]

    def join(name: str, dtype: str) -> np.ndarray:
        arrays = [getattr(table, name) for table in tables]
        return np.concatenate(arrays) if arrays else np.zeros(0, dtype)

    return Samples(
        subject=subject,
        keys=join("keys", "<U1"),
        nsd_id=join("nsd_id", "int64"),
        repeats=join("repeats", "int64"),
        sessions=np.concatenate(padded) if padded else np.zeros((0, 0), np.int16),
        shard=join("shard", "int64"),
        row=join("row", "int64"),
    )
