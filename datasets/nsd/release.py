"""The NSD release as published, as a trial source: betas of the chosen ROIs, session by session.

One session is in memory at a time, and of it only the chosen voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fmri2img.datasets.nsd.behaviour import Behaviour
from fmri2img.datasets.nsd.betas import read_betas
from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import SESSIONS, TRIALS, NsdLayout, known_subject
from fmri2img.datasets.nsd.regions import Voxels
from fmri2img.datasets.nsd.stimuli import Stimuli, read_captions
from fmri2img.datasets.source import NamedSplit, SessionTrials, SubjectSource
from fmri2img.errors import InputError

TERMS = "NSD Terms and Conditions, https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"


BehaviourOf = Callable[[int], Mapping[str, np.ndarray]]
"""The behaviour on each trial of a session, by name."""


@dataclass(frozen=True)
class NsdSubject:
    """One subject's betas, as a `SubjectSource`; a session of the chosen voxels is in memory at a time."""

    layout: NsdLayout
    design: Design
    subject: str
    space: str
    version: str
    chosen: Voxels
    sessions: Sequence[int]
    behaviour: BehaviourOf = lambda session: {}

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return len(self.chosen.positions)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """Labels, places and noise ceilings of `select_voxels`."""
        return self.chosen.table

    def session(self, session: int) -> SessionTrials:
        """The 750 trials of one session, per cent signal change."""
        nsd_ids = self.design.nsd_ids(self.subject, session)
        path = self.layout.betas(self.subject, self.space, self.version, session)
        responses = read_betas(path, self.chosen.shape, self.chosen.positions, trials=TRIALS)
        return SessionTrials(responses, nsd_ids, behaviour=self.behaviour(session))


@dataclass(frozen=True)
class NsdRelease:
    """What all sources of the release share: design, splits, pictures, captions, behaviour.

    Args:
        root: the folder of the release.
        names: the subjects, such as `subj01`.
        last_session: build sessions 1 to this one only.
        picture_size: pixels of a side; None keeps 425.

    Raises:
        InputError: an unknown or repeated subject, a session nobody has, a missing file.
    """

    root: Path
    names: Sequence[str]
    last_session: int | None = None
    picture_size: int | None = None

    def __post_init__(self) -> None:
        for name in self.names:
            known_subject(name)
        if not self.names or len(set(self.names)) != len(self.names):
            raise InputError(f"Subjects {list(self.names)}: name at least one, and none twice.")
        most = max(SESSIONS[name] for name in self.names)
        if self.last_session is not None and not 1 <= self.last_session <= most:
            raise InputError(
                f"Sessions 1 to {self.last_session} cannot be built: these subjects have at most {most}, "
                "and at least one is needed."
            )

    @cached_property
    def layout(self) -> NsdLayout:
        """Where the files are."""
        return NsdLayout(self.root)

    @cached_property
    def design(self) -> Design:
        """Who saw what."""
        return Design.load(self.layout.design)

    @cached_property
    def stimuli(self) -> Stimuli:
        """The pictures."""
        return Stimuli(self.layout, size=self.picture_size)

    @cached_property
    def captions(self) -> dict[int, list[str]] | None:
        """Captions of all pictures that occur, by nsd_id; None without COCO's files."""
        seen = [self.design.nsd_ids(name, s) for name in self.names for s in self.sessions(name)]
        return read_captions(self.layout, np.unique(np.concatenate(seen)).tolist())

    def check_files(self) -> None:
        """Open the design and the pictures, so that one that is missing or damaged is named now."""
        assert self.design is not None and self.stimuli is not None

    def sessions(self, subject: str) -> list[int]:
        """Sessions of a subject to build."""
        return [s for s in self.design.sessions(subject) if s <= (self.last_session or s)]

    def behaviour(self, subject: str) -> BehaviourOf:
        """A subject's behaviour; of no name where the release has no `responses.tsv`."""
        path = self.layout.find_behaviour(subject)
        if path is None:
            return lambda session: {}
        answers = Behaviour(path)
        return lambda session: answers.session(session, self.design.nsd_ids(subject, session))


@dataclass(frozen=True)
class NsdSource:
    """Subjects of the release with its pictures and splits, as a `TrialSource`.

    Args:
        release: what the subjects share.
        subjects: by subject id.
        details: for the provenance, what the responses are.
    """

    release: NsdRelease
    subjects: Mapping[str, SubjectSource]
    details: Mapping[str, str]
    name: str = "nsd"
    terms: str = TERMS

    @property
    def provenance(self) -> dict[str, str]:
        """The release, what the responses are, pictures and captions."""
        size = self.release.picture_size
        captions = "none: the release's folder holds no COCO files"
        return {
            "release": "Natural Scenes Dataset, naturalscenesdataset.org",
            **self.details,
            "pictures": f"{size} x {size} pixels, Lanczos" if size else "as released",
            "captions": captions if self.release.captions is None else "COCO 2017",
        }

    @property
    def splits(self) -> Mapping[str, NamedSplit]:
        """The field's named splits that these sessions hold in full."""
        return self.release.design.splits({name: max(s.sessions) for name, s in self.subjects.items()})

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`."""
        return self.release.stimuli.picture(nsd_id)

    def captions(self, nsd_id: int) -> list[str]:
        """COCO's captions of the picture that this one was cut from."""
        return (self.release.captions or {}).get(nsd_id, [])

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture is one of the thousand shared ones."""
        return self.release.design.is_shared(nsd_id)
