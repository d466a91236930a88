"""What a data set is built from: subjects with sessions of single trials, pictures and captions.

A release, a folder of arrays and the simulation all present themselves as a `TrialSource`; `build_dataset`
asks for one session at a time, so a source never has to hold a subject in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """The `Progress` that says nothing."""


@dataclass(frozen=True)
class SessionTrials:
    """Single trials of one session, in the order they were measured.

    Attributes:
        responses: float32 `(trials, voxels)`, not yet normalised, any unit.
        nsd_ids: int64 `(trials,)`, the picture seen on each trial.
    """

    responses: np.ndarray
    nsd_ids: np.ndarray


@runtime_checkable
class SubjectSource(Protocol):
    """One subject: its voxels and its sessions (numbered from 1)."""

    @property
    def voxels(self) -> int:
        """Number of voxels of every trial."""
        ...

    @property
    def sessions(self) -> Sequence[int]:
        """Session numbers, ascending, from 1."""
        ...

    def voxel_table(self) -> dict[str, np.ndarray]:
        """Per-voxel arrays `(voxels, ...)`: `roi` (strings), `noise_ceiling` (in [0, 1]), others free."""
        ...

    def session(self, session: int) -> SessionTrials:
        """Every trial of one session."""
        ...


@runtime_checkable
class TrialSource(Protocol):
    """A whole data set before it is written: subjects, pictures, captions and the official split."""

    @property
    def name(self) -> str:
        """Short name of the data set."""
        ...

    @property
    def terms(self) -> str:
        """Terms of use, in words or as an address."""
        ...

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from: release, version, address, code."""
        ...

    @property
    def subjects(self) -> Mapping[str, SubjectSource]:
        """Subject sources by subject id (letters, digits, `-`; no dots)."""
        ...

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`."""
        ...

    def captions(self, nsd_id: int) -> list[str]:
        """Captions of the picture, possibly none."""
        ...

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether this subject's trials of this picture in this session are test trials."""
        ...
