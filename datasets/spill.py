"""One subject's trials on disk while a data set is built, so that memory does not grow with their number.

A build that was killed takes them up again: every session's responses lie in the spill file as they were
measured, and what else is known of the session in a small file beside it. Nothing here waits for the disk;
what a power cut takes is found by its checksum, and read from the source again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from fmri2img.datasets.npy import pack_npz, unpack_npz
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import write_file
from fmri2img.errors import InputError

PIECE = 1 << 24
"""Bytes of the spill read at a time when it is checked."""


@dataclass(frozen=True)
class Session:
    """What is known of one session beside its responses.

    Attributes:
        nsd_id, trial: int64 `(trials,)`; `trial` is the number within the session, from 1.
        test: bool `(trials,)`.
        behaviour: float64 `(trials,)` by name, NaN where there is none.
        moments: of each voxel over the training trials, and over the time points where trials are windows.
        normalised: whether its responses are spilled normalised, as float16, or float32 as they were measured.
        clipped: values that were clipped when they were normalised.
    """

    number: int
    nsd_id: np.ndarray
    trial: np.ndarray
    test: np.ndarray
    behaviour: dict[str, np.ndarray]
    moments: Moments
    normalised: bool = False
    clipped: int = 0

    def pack(self) -> bytes:
        """The session as the bytes of an `.npz` file."""
        arrays = {"nsd_id": self.nsd_id, "trial": self.trial, "test": self.test}
        arrays |= {"normalised": np.array(self.normalised), "clipped": np.array(self.clipped)}
        arrays |= {f"behaviour.{name}": values for name, values in self.behaviour.items()}
        of = self.moments
        return pack_npz(
            arrays
            | {"count": np.array(of.count), "mean": np.asarray(of.mean), "squares": np.asarray(of.squares)}
        )


def unpack_session(number: int, data: bytes) -> Session:
    """The session of `Session.pack`."""
    arrays = unpack_npz(data)
    behaviour = {n.split(".", 1)[1]: a for n, a in arrays.items() if n.startswith("behaviour.")}
    moments = Moments(arrays["count"].item(), arrays["mean"], arrays["squares"])
    normalised, clipped = bool(arrays["normalised"].item()), arrays["clipped"].item()
    own = arrays["nsd_id"], arrays["trial"], arrays["test"]
    return Session(number, *own, behaviour, moments, normalised, clipped)


class TrialSpill:
    """Trials of one subject in the order measured: responses in a file, the rest in memory.

    Args:
        folder: where its files lie.
        subject: whose trials.
        voxels: of a response.

    Attributes:
        sessions: those taken in so far.
        window: time points of a response, None for `(voxels,)`; known with the first session.
        nsd_id, session, trial, test, normalised, behaviour: one entry a trial, after `close_intake`.
    """

    def __init__(self, folder: Path, subject: str, voxels: int) -> None:
        self.folder, self.subject, self.voxels = folder, subject, voxels
        self.sessions: list[Session] = []
        self.window: int | None = None
        self.nsd_id, self.session, self.trial = (np.zeros(0, np.int64) for _ in range(3))
        self.test, self.normalised = np.zeros(0, bool), np.zeros(0, bool)
        self.behaviour: dict[str, np.ndarray] = {}
        self._offset, self._end = np.zeros(0, np.int64), 0
        self._file = os.open(self._path("spill"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @property
    def trial_shape(self) -> tuple[int, ...]:
        """Shape of one response."""
        return (self.voxels,) if self.window is None else (self.window, self.voxels)

    def add(self, session: Session, responses: np.ndarray) -> dict[str, Any]:
        """Take in one session, `(trials, ...)`; returns the record to find it again by.

        Raises:
            InputError: its window is not that of the sessions before.
        """
        window = responses.shape[1] if responses.ndim == 3 else None
        if self.sessions and window != self.window:
            raise InputError(
                f"{self.subject}, session {session.number}: responses are {responses.shape[1:]}, but those of "
                f"the sessions before {self.trial_shape}: give every session the same window."
            )
        self.window = window
        view = responses.data.cast("B") if responses.size else memoryview(b"")
        record = {"bytes": len(view), "window": window, "crc32": crc32(view)}
        start = self._end
        while view:
            written = os.pwrite(self._file, view, start)
            view, start = view[written:], start + written
        name = self._path(f"session-{session.number:05d}.npz").name
        entry = write_file(self.folder, name, session.pack(), durable=False)
        self._take(session)
        return record | {"sha256": entry.sha256}

    def restore(self, number: int, record: dict[str, Any]) -> bool:
        """Take in a session that was spilled before; False if its bytes are not there any more."""
        try:
            data = self._path(f"session-{number:05d}.npz").read_bytes()
        except FileNotFoundError:
            return False
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            return False
        self.window = record["window"]
        start, left, found = self._end, record["bytes"], 0
        while left:
            piece = os.pread(self._file, min(left, PIECE), start)
            if not piece:
                return False
            found, start, left = crc32(piece, found), start + len(piece), left - len(piece)
        if found != record["crc32"]:
            return False
        self._take(unpack_session(number, data))
        return True

    def close_intake(self) -> None:
        """Line up the trials of all sessions; a behavioural value that a session lacks is NaN there."""
        self.nsd_id = np.concatenate([s.nsd_id for s in self.sessions])
        self.session = np.concatenate([np.full(len(s.nsd_id), s.number) for s in self.sessions])
        self.trial = np.concatenate([s.trial for s in self.sessions])
        self.test = np.concatenate([s.test for s in self.sessions])
        self.normalised = np.concatenate([np.full(len(s.nsd_id), s.normalised) for s in self.sessions])
        size = np.where(self.normalised, 2, 4) * prod(self.trial_shape)
        self._offset = np.cumsum(size) - size
        for name in sorted({name for s in self.sessions for name in s.behaviour}):
            parts = [s.behaviour.get(name, np.full(len(s.nsd_id), np.nan)) for s in self.sessions]
            self.behaviour[name] = np.concatenate(parts)

    def read(self, position: int, into: np.ndarray) -> None:
        """Read one trial as it was spilled, into a contiguous array of its shape and type."""
        view = into.data.cast("B")
        if os.preadv(self._file, [view], int(self._offset[position])) != len(view):
            raise RuntimeError(f"{self._path('spill')} is shorter than what was written to it")

    def close(self) -> None:
        """Close the file and leave it for a later build."""
        os.close(self._file)

    def remove(self) -> None:
        """Remove what `close` left."""
        for path in self.folder.glob(f"{self.subject}.*"):
            path.unlink()

    def _take(self, session: Session) -> None:
        self.sessions.append(session)
        size = 2 if session.normalised else 4
        self._end += len(session.nsd_id) * prod(self.trial_shape) * size

    def _path(self, what: str) -> Path:
        return self.folder / f"{self.subject}.{what}"
