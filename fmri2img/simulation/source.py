"""The simulation as a source of trials: which subject sees which picture when, and what is measured.

`Simulation(SimulationSpec(...))` is a `TrialSource`, so it becomes a data set folder as real releases do.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from fmri2img import __version__
from fmri2img.datasets.source import NamedSplit, SessionTrials
from fmri2img.errors import InputError
from fmri2img.files import digest_json
from fmri2img.simulation.captions import write_captions
from fmri2img.simulation.cortex import Cortex
from fmri2img.simulation.records import Scene
from fmri2img.simulation.reference import Reference, reference
from fmri2img.simulation.scenes import draw_scene, render

DESIGN_STREAM, PICTURE_STREAM = 7, 8
SOON_AGAIN = 0.15
"""Chance that a repeat follows its picture's last one closely, as in NSD's mixture of short and long gaps."""
BLOCK = 64
"""Pictures whose signals are computed together: always the same ones, so that their rounding never varies."""
FEWEST_VOXELS = 32


class SimulationSpec(BaseModel):
    """What to simulate. Equal specs give equal data.

    Attributes:
        seed: of scenes, brains, designs and noise.
        subjects: voxels by subject id.
        sessions, trials_per_session, repeats: of every subject; each picture is seen `repeats` times.
        test_pictures: pictures that every subject sees; all others are one subject's own and for training.
        noise_scale: multiplies the standard deviation of the noise; above 1 it lowers every noise ceiling.
        drift: multiplies the changes of gain and baseline between and within sessions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    subjects: dict[str, int] = {"subj01": 1572, "subj02": 1428, "subj03": 1523, "subj04": 1315}
    sessions: int = Field(default=8, ge=1)
    trials_per_session: int = Field(default=240, ge=1)
    repeats: int = Field(default=3, ge=1)
    test_pictures: int = Field(default=120, ge=0)
    noise_scale: float = Field(default=1.0, gt=0)
    drift: float = Field(default=1.0, ge=0)

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            known = ", ".join(cls.model_fields)
            raise InputError(
                f"simulation {name}={first['input']!r} is not valid: {first['msg']}. Settings are {known}."
            ) from None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        trials = self.sessions * self.trials_per_session
        if not self.subjects:
            raise InputError(
                "simulation subjects={} names nobody: give at least one, such as {'subj01': 1572}."
            )
        for subject, voxels in self.subjects.items():
            if not subject or not subject.replace("-", "").isalnum():
                raise InputError(
                    f"simulation subject {subject!r}: an id is letters, digits and '-', such as subj01."
                )
            if voxels < FEWEST_VOXELS:
                raise InputError(
                    f"simulation {subject}={voxels} voxels is too few for its ROIs. Use {FEWEST_VOXELS} or more."
                )
        if trials % self.repeats:
            nearest = max(1, round(self.trials_per_session / self.repeats)) * self.repeats
            raise InputError(
                f"simulation trials_per_session={self.trials_per_session} times sessions={self.sessions} leaves "
                f"a rest: the trials must divide by repeats={self.repeats}. Use trials_per_session={nearest}."
            )
        if self.training_pictures < 1:
            raise InputError(
                f"simulation test_pictures={self.test_pictures} leaves no trial for training: test_pictures "
                f"times repeats must stay below {trials} trials. Use at most {trials // self.repeats - 1}."
            )
        return self

    @property
    def training_pictures(self) -> int:
        """Training pictures of each subject, seen by no other."""
        return self.sessions * self.trials_per_session // self.repeats - self.test_pictures


class SimulatedSubject:
    """One subject: a cortex and a design. A session made alone is the same as when made in order."""

    def __init__(self, spec: SimulationSpec, subject: str, pictures: np.ndarray, shared: Reference) -> None:
        self._spec = spec
        self._shared = shared
        self.cortex = Cortex(shared, subject, spec.subjects[subject], noise_scale=spec.noise_scale)
        position = list(spec.subjects).index(subject)
        self.design = draw_design(spec, pictures, np.random.default_rng([DESIGN_STREAM, spec.seed, position]))
        seen, first = np.unique(self.design, return_index=True)
        self._pictures = seen[np.argsort(first)]
        self._row = {int(nsd_id): row for row, nsd_id in enumerate(self._pictures)}
        self._blocks: dict[int, np.ndarray] = {}

    @property
    def voxels(self) -> int:
        """Number of voxels of every trial."""
        return len(self.cortex.roi)

    @property
    def sessions(self) -> Sequence[int]:
        """Session numbers, from 1."""
        return range(1, self._spec.sessions + 1)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """Per-voxel arrays (voxels,): roi, noise_ceiling, ncsnr and others, see `Cortex`."""
        return self.cortex.voxel_table()

    def signal(self, nsd_ids: np.ndarray) -> np.ndarray:
        """Noise-free answers to pictures this subject sees, float32 (n, voxels); see `Cortex.signal`."""
        rows = np.array([self._row[int(nsd_id)] for nsd_id in nsd_ids])
        for block in np.unique(rows // BLOCK).tolist():
            if block not in self._blocks:
                scenes = [
                    draw_scene(self._spec.seed, int(i))
                    for i in self._pictures[block * BLOCK : (block + 1) * BLOCK]
                ]
                self._blocks[block] = self.cortex.signal(self._shared.see(scenes))
        return np.stack([self._blocks[row // BLOCK][row % BLOCK] for row in rows.tolist()])

    def session(self, session: int) -> SessionTrials:
        """Every trial of one session, in per cent signal change. Raises InputError for one not there."""
        if session not in self.sessions:
            raise InputError(
                f"session {session} was not simulated: sessions run from 1 to {self._spec.sessions}."
            )
        nsd_ids = self.design[session - 1].copy()
        responses = self.cortex.measure(self.signal(nsd_ids), session, drift=self._spec.drift)
        return SessionTrials(responses=responses, nsd_ids=nsd_ids)


class Simulation:
    """A whole simulated data set, a `TrialSource`: subjects, pictures with captions, and a shared test set.

    Picture ids run from 0 to the number of pictures, test ids scattered among them. The signals of pictures
    seen are kept: 4 bytes times pictures times voxels of a subject.
    """

    name = "simulated"
    terms = "Made by a program, nobody's data: free to use for any purpose."

    def __init__(self, spec: SimulationSpec) -> None:
        self.spec = spec
        self.pictures = spec.test_pictures + spec.training_pictures * len(spec.subjects)
        ids = np.random.default_rng([PICTURE_STREAM, spec.seed]).permutation(self.pictures).astype(np.int64)
        self.test_ids = np.sort(ids[: spec.test_pictures])
        self._test = frozenset(self.test_ids.tolist())
        shares = ids[spec.test_pictures :].reshape(len(spec.subjects), -1)
        shared = reference(spec.seed)
        self.subjects: Mapping[str, SimulatedSubject] = {
            subject: SimulatedSubject(spec, subject, np.concatenate([self.test_ids, own]), shared)
            for subject, own in zip(spec.subjects, shares, strict=True)
        }

    @property
    def provenance(self) -> dict[str, str]:
        """Where the data come from: this program, its version and the spec they follow from."""
        return {
            "release": f"fmri2img simulation, seed {self.spec.seed}",
            "code": f"fmri2img {__version__}",
            "spec": self.spec.model_dump_json(),
            "spec_sha256": digest_json(self.spec.model_dump()),
        }

    def scene(self, nsd_id: int) -> Scene:
        """What a picture shows. Raises InputError for an id that is not in the simulation."""
        if not 0 <= nsd_id < self.pictures:
            raise InputError(f"picture {nsd_id} was not simulated: ids run from 0 to {self.pictures - 1}.")
        return draw_scene(self.spec.seed, nsd_id)

    @property
    def splits(self) -> Mapping[str, NamedSplit]:
        """None beside `train` and `test`."""
        return {}

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 (64, 64, 3)."""
        return render(self.scene(nsd_id))

    def captions(self, nsd_id: int) -> list[str]:
        """Five captions."""
        return write_captions(self.scene(nsd_id), self.spec.seed, nsd_id)

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture is one of the test pictures, the same for every subject and session."""
        return nsd_id in self._test


def draw_design(spec: SimulationSpec, pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which picture is seen when: int64 (sessions, trials_per_session), every picture `repeats` times.

    Repeats fall anywhere in the experiment, some soon after one another, so that in a first session, as in
    NSD's, most pictures are seen once.
    """
    times = rng.uniform(0, 1, size=(len(pictures), spec.repeats))
    for repeat in range(1, spec.repeats):
        soon = rng.random(len(pictures)) < SOON_AGAIN
        gap = rng.exponential(0.3 / spec.sessions, size=len(pictures))
        times[:, repeat] = np.where(soon, times[:, repeat - 1] + gap, times[:, repeat])
    order = np.argsort(times.ravel(), kind="stable")
    return np.repeat(pictures, spec.repeats)[order].reshape(spec.sessions, spec.trials_per_session)
