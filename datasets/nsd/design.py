"""The design of the NSD experiment: which picture each subject saw on each trial, and the splits the field uses.

`nsd_expdesign.mat` gives one order of 10,000 numbers for all subjects (`masterordering`, 30,000 trials) and what
the numbers stand for in each (`subjectim`, 8 x 10,000); the first 1,000 are the same pictures for everyone
(`sharedix`). All of them count from 1 in the file and from 0 here. Allen et al. 2022, Nature Neuroscience 25,
116-126; counts are those of the authors' code (github.com/cvnlab/nsddatapaper, `FINALNUMBERSnotes.m`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fmri2img.datasets.array_files import integers, open_array
from fmri2img.datasets.nsd.layout import SESSIONS, TRIALS, known_subject
from fmri2img.datasets.source import NamedSplit
from fmri2img.errors import DamageError, InputError

PICTURES = 73_000
SHARED = 1_000
WITHHELD = 3
"""Each subject's last sessions, which were held back until the Algonauts 2023 challenge was over."""


@dataclass(frozen=True)
class Design:
    """Who saw what, and when.

    Attributes:
        order: int64 `(trials,)`, for each trial of the whole experiment the picture's number among a subject's
            own, from 0; numbers below 1000 are the shared pictures.
        pictures: int64 `(8, numbers)`, the nsd_id that a number stands for, by subject.
    """

    order: np.ndarray
    pictures: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Design:
        """Read `nsd_expdesign.mat`.

        Raises:
            InputError: it lacks one of the arrays.
            DamageError: the arrays do not fit each other.
        """

        def array(name: str) -> np.ndarray:
            return open_array(path.parent, f"{path.name}:{name}").all().astype(np.int64)

        order = integers(open_array(path.parent, f"{path.name}:masterordering"), "masterordering") - 1
        pictures, shared = array("subjectim") - 1, array("sharedix").reshape(-1) - 1
        whole = (
            pictures.ndim == 2
            and len(pictures) == len(SESSIONS)
            and len(order) >= max(SESSIONS.values()) * TRIALS
        )
        if not (whole and _within(order, pictures.shape[1]) and _within(pictures, PICTURES)):
            raise DamageError(
                f"{path}: masterordering {order.shape} and subjectim {pictures.shape} are not those of eight "
                f"subjects and {PICTURES} pictures. Fetch it again."
            )
        if len(shared) != SHARED or not (pictures[:, :SHARED] == shared).all():
            raise DamageError(
                f"{path}: sharedix must be the first {SHARED} pictures of every subject, and is not. "
                "Fetch it again."
            )
        return cls(order, pictures)

    def nsd_ids(self, subject: str, session: int) -> np.ndarray:
        """int64 `(750,)`, the picture of each trial of a session, in the order shown."""
        if not 1 <= session <= SESSIONS[known_subject(subject)]:
            raise InputError(
                f"{subject} has no session {session}: NSD has sessions 1 to {SESSIONS[subject]} of this subject."
            )
        trials = self.order[(session - 1) * TRIALS : session * TRIALS]
        return self.pictures[_row(subject), trials]

    def sessions(self, subject: str) -> list[int]:
        """Numbers of the sessions that a subject completed."""
        return list(range(1, SESSIONS[known_subject(subject)] + 1))

    def is_shared(self, nsd_id: int) -> bool:
        """Whether a picture is one of the thousand that every subject was to see: the test pictures."""
        return nsd_id in self._shared

    @property
    def shared1000(self) -> np.ndarray:
        """int64 `(1000,)`, ascending: the pictures that every subject was to see three times."""
        return np.sort(self.pictures[0, :SHARED])

    def shared(self, last_session: int, *, repeats: int) -> np.ndarray:
        """Shared pictures seen at least `repeats` times in sessions 1 to `last_session`, int64, ascending.

        The order of trials is the same for all subjects, so this holds for each who has those sessions.
        """
        seen = np.bincount(self.order[: last_session * TRIALS], minlength=SHARED)[:SHARED]
        return np.sort(self.pictures[0, :SHARED][seen >= repeats])

    @property
    def shared982(self) -> np.ndarray:
        """Test pictures of studies that had sessions 1 to 37: those seen at least once in them."""
        return self.shared(max(SESSIONS.values()) - WITHHELD, repeats=1)

    @property
    def special515(self) -> np.ndarray:
        """Shared pictures that all eight subjects saw three times, so within thirty sessions."""
        return self.shared(min(SESSIONS.values()), repeats=3)

    def splits(self, built: Mapping[str, int]) -> dict[str, NamedSplit]:
        """The field's splits that a data set of these subjects and sessions holds in full.

        Args:
            built: the last session of each subject in the data set; sessions start at 1.
        """
        first = {subject: SESSIONS[subject] - WITHHELD for subject in built}
        found = {
            "session1": NamedSplit(
                "train",
                last_session=dict.fromkeys(built, 1),
                description="training trials of the first session: about one hour of data",
            )
        }
        if all(built[subject] == SESSIONS[subject] for subject in built):
            found["shared1000"] = NamedSplit(
                "test",
                nsd_ids=self.shared1000.tolist(),
                description="the shared pictures, all sessions: the test set of MindEye2 and later work",
            )
        if all(built[subject] >= first[subject] for subject in built):
            before = "sessions that were public before the Algonauts 2023 challenge (all but the last three)"
            found["shared982"] = NamedSplit(
                "test",
                nsd_ids=self.shared982.tolist(),
                last_session=first,
                description=f"the shared pictures seen in {before}: the test set of MindEye1 and earlier work",
            )
            found["train982"] = NamedSplit(
                "train", last_session=first, description=f"training trials of the {before}"
            )
        if all(built[subject] >= min(SESSIONS.values()) for subject in built):
            found["special515"] = NamedSplit(
                "test",
                nsd_ids=self.special515.tolist(),
                description="the shared pictures that all eight subjects saw three times",
            )
        return found

    @cached_property
    def _shared(self) -> frozenset[int]:
        return frozenset(self.shared1000.tolist())


def _row(subject: str) -> int:
    return list(SESSIONS).index(subject)


def _within(values: np.ndarray, count: int) -> bool:
    return bool(values.size) and int(values.min()) >= 0 and int(values.max()) < count
