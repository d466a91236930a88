"""The NSD release as published, as a trial source: betas of the chosen ROIs, session by session.

One session is in memory at a time, and of it only the chosen voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fmri2img.datasets.nsd.behaviour import Behaviour
from fmri2img.datasets.nsd.betas import read_betas
from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import BETAS, SESSIONS, SPACES, TRIALS, NsdLayout, known
from fmri2img.datasets.nsd.regions import Voxels, select_voxels
from fmri2img.datasets.nsd.stimuli import Stimuli, read_captions
from fmri2img.datasets.source import NamedSplit, SessionTrials, SubjectSource
from fmri2img.errors import InputError

TERMS = "NSD Terms and Conditions, https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"


@dataclass(frozen=True)
class NsdSubject:
    """One subject's betas, as a `SubjectSource`."""

    layout: NsdLayout
    design: Design
    subject: str
    space: str
    version: str
    chosen: Voxels
    sessions: Sequence[int]
    behaviour: Behaviour | None = None

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
        behaviour = self.behaviour.session(session, nsd_ids) if self.behaviour else {}
        return SessionTrials(responses, nsd_ids, behaviour=behaviour)


@dataclass(frozen=True)
class NsdRelease:
    """What all sources of the release share: design, splits, pictures, captions, terms.

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
            known(name, list(SESSIONS), "subject")
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

    def sessions(self, subject: str) -> list[int]:
        """Sessions of a subject to build."""
        return [s for s in self.design.sessions(subject) if s <= (self.last_session or s)]

    def behaviour(self, subject: str) -> Behaviour | None:
        """A subject's behaviour, where the release has it."""
        path = self.layout.find_behaviour(subject)
        return Behaviour(path) if path else None


@dataclass(frozen=True)
class NsdSource:
    """The release's single-trial betas, as a `TrialSource`.

    Args:
        release: subjects, sessions and pictures.
        version: `b1`, `b2` or `b3`.
        rois: voxels of these ROIs, see `select_voxels`.
        space: `func1pt8mm` or `func1mm`.

    Raises:
        InputError: an unknown space, beta version or ROI, or a missing file.
        DamageError: a damaged file.
    """

    release: NsdRelease
    version: str = "b3"
    rois: Sequence[str] = ("nsdgeneral",)
    space: str = "func1pt8mm"
    name: str = "nsd"
    terms: str = TERMS

    def __post_init__(self) -> None:
        known(self.space, SPACES, "space")
        known(self.version, list(BETAS), "beta version")
        self._refuse_missing()

    @cached_property
    def subjects(self) -> Mapping[str, SubjectSource]:
        """Subject sources by subject id."""
        return {name: self._subject(name) for name in self.release.names}

    @property
    def provenance(self) -> dict[str, str]:
        """Beta version, space, ROIs, units and what else the arrays depend on."""
        return {
            "release": "Natural Scenes Dataset, naturalscenesdataset.org",
            "betas": f"{self.version} ({BETAS[self.version]})",
            "space": self.space,
            "rois": ", ".join(self.rois),
            "units": "per cent signal change before normalisation",
            "pictures": f"{self.release.picture_size or 'original'} pixels",
            "captions": "COCO 2017"
            if self.release.captions is not None
            else "none: no COCO files in the release",
        }

    @property
    def splits(self) -> Mapping[str, NamedSplit]:
        """The field's named splits that these sessions hold in full."""
        built = {name: self.release.sessions(name)[-1] for name in self.release.names}
        return self.release.design.splits(built)

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`."""
        return self.release.stimuli.picture(nsd_id)

    def captions(self, nsd_id: int) -> list[str]:
        """COCO's captions of the picture that this one was cut from."""
        return (self.release.captions or {}).get(nsd_id, [])

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture is one of the thousand shared ones."""
        return self.release.design.is_shared(nsd_id)

    def _subject(self, name: str) -> NsdSubject:
        release = self.release
        chosen = select_voxels(release.layout, name, self.rois, space=self.space, version=self.version)
        return NsdSubject(
            release.layout,
            release.design,
            name,
            self.space,
            self.version,
            chosen,
            release.sessions(name),
            release.behaviour(name),
        )

    def _refuse_missing(self) -> None:
        """Name the first missing file now, not after an hour's reading."""
        release = self.release
        release.stimuli  # noqa: B018
        for name in release.names:
            for session in release.sessions(name):
                release.layout.betas(name, self.space, self.version, session)
