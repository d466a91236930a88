"""One subject's trials on disk while a data set is built, so that memory does not grow with their number."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmri2img.datasets.source import SessionTrials, SubjectSource, TrialSource
from fmri2img.datasets.statistics import Moments
from fmri2img.errors import InputError


@dataclass
class TrialSpill:
    """Trials of one subject in the order measured: responses in a temporary file, the rest in memory.

    Attributes:
        nsd_id, session, trial, test: one entry a trial; `trial` counts within the session from 1.
        moments: of the training trials of each session.
    """

    path: Path
    voxels: int
    nsd_id: list[int] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    trial: list[int] = field(default_factory=list)
    test: list[bool] = field(default_factory=list)
    moments: dict[int, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def add(self, session: int, trials: SessionTrials, test: list[bool]) -> None:
        """Take in one session."""
        responses = np.ascontiguousarray(trials.responses, np.float32)
        training = ~np.array(test, bool)
        self.moments[session] = Moments()
        self.moments[session].add(responses[training])
        view = responses.data.cast("B") if responses.size else memoryview(b"")
        start = len(self.nsd_id) * self.voxels * 4
        while view:
            written = os.pwrite(self._file, view, start)
            view, start = view[written:], start + written
        self.nsd_id += [int(value) for value in trials.nsd_ids]
        self.session += [session] * len(responses)
        self.trial += range(1, len(responses) + 1)
        self.test += test

    def response(self, position: int) -> np.ndarray:
        """float32 `(voxels,)`, one trial as it was measured."""
        size = self.voxels * 4
        return np.frombuffer(os.pread(self._file, size, position * size), np.float32)

    def close(self) -> None:
        """Remove the temporary file."""
        os.close(self._file)
        self.path.unlink()


def check_session(subject: str, voxels: int, session: int, trials: SessionTrials) -> None:
    """Refuse a session that is misshapen or not finite.

    Raises:
        InputError: naming subject, session and trial.
    """
    where = f"{subject}, session {session}"
    responses, ids = np.asarray(trials.responses), np.asarray(trials.nsd_ids)
    if responses.ndim != 2 or responses.shape[1] != voxels or ids.shape != (len(responses),):
        raise InputError(
            f"{where}: responses are {responses.shape} and picture ids {ids.shape}, but a session needs "
            f"(trials, {voxels}) and (trials,): correct the source."
        )
    if len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0):
        raise InputError(
            f"{where}: picture ids must be integers from 0 (found {ids.dtype}, least {ids.min()})."
        )
    bad = ~np.isfinite(responses)
    if bad.any():
        row, voxel = (int(value) for value in np.argwhere(bad)[0])
        raise InputError(
            f"{where}, trial {row + 1}: the response of voxel {voxel} is {responses[row, voxel]}, and must "
            f"be finite ({int(bad.any(axis=1).sum())} such trials in the session): drop these or the voxels."
        )


def session_numbers(subject: str, source: SubjectSource) -> list[int]:
    """The sessions of a subject, checked to be ascending numbers from 1."""
    sessions = [int(session) for session in source.sessions]
    if sessions != sorted(set(sessions)) or not sessions or sessions[0] < 1 or sessions[-1] > 32767:
        raise InputError(f"{subject}: sessions must be ascending numbers from 1 to 32767, not {sessions}.")
    return sessions


def mark_test(source: TrialSource, subject: str, session: int, nsd_ids: np.ndarray) -> list[bool]:
    """Which trials of a session are test trials."""
    of = {int(n): bool(source.is_test(subject, int(n), session)) for n in np.unique(nsd_ids)}
    return [of[int(n)] for n in nsd_ids]
