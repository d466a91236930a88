"""What a data set is built from: subjects with sessions of single trials, pictures and captions.

A release, a folder of arrays and the simulation all present themselves as a `TrialSource`; `build_dataset`
asks for one session at a time, so a source never has to hold a subject in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
        responses: float32 `(trials, voxels)`, or `(trials, time, voxels)` with the same `time` in every session
            of the subject; not yet normalised, any unit.
        nsd_ids: int64 `(trials,)`, the picture seen on each trial.
        numbers: int64 `(trials,)`, ascending, the number of each trial within its session from 1; None when the
            session's trials are all here.
        behaviour: numbers `(trials,)` by name, such as reaction times; NaN where there is none.
    """

    responses: np.ndarray
    nsd_ids: np.ndarray
    numbers: np.ndarray | None = None
    behaviour: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedSplit:
    """A split that has a name in the field, such as `shared982`: some of the samples of a partition.

    Attributes:
        partition: `train` or `test`.
        nsd_ids: its pictures; None for all of the partition.
        last_session: only trials of sessions 1 to this one, by subject; a subject that is not named has all.
        description: what it is and where it comes from, in a sentence.
    """

    partition: str
    nsd_ids: Sequence[int] | None = None
    last_session: Mapping[str, int] = field(default_factory=dict)
    description: str = ""


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

    @property
    def splits(self) -> Mapping[str, NamedSplit]:
        """Named splits beside `train` and `test`, possibly none."""
        ...

    def picture(self, nsd_id: int) -> np.ndarray | bytes:
        """uint8 `(height, width, 3)`, or the bytes of a PNG or JPEG file, which are stored as they are."""
        ...

    def captions(self, nsd_id: int) -> list[str]:
        """Captions of the picture, possibly none."""
        ...

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether this subject's trials of this picture in this session are test trials."""
        ...
