"""Small releases in the exact layout: time series of 60 voxels, surfaces of some vertices, full-size designs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fmri2img.datasets import NamedSplit, SubjectSource
from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import RUN_TRIALS, NsdLayout

SHAPE = (5, 4, 3)
VOXELS = 60
ROWS = 225
"""Rows of a run's design in func1pt8mm; its volumes are one more."""
TRIAL = 3
"""Volumes of a trial of 4 s."""
BOX = (3, 4, 5)
"""Volumes after the onset at which the simulated response shows: those of the window 4:8, of no other trial."""


def full_design() -> Design:
    """A design of the real one's size: 10,000 pictures of each subject three times, the first 1,000 shared."""
    generator = np.random.default_rng(7)
    order = generator.permutation(np.repeat(np.arange(10_000), 3))
    ids = generator.permutation(73_000)
    own = ids[1000:].reshape(8, 9000)
    return Design(order, np.concatenate([np.tile(np.sort(ids[:1000]), (8, 1)), own], axis=1))


@dataclass
class SeriesRelease:
    """Writes time series whose every response is known: `amplitude[trial, voxel]` at the volumes of `BOX`.

    Attributes:
        amplitudes: `(750, 60)` of each session.
        rest: whether sessions also have two runs of rest.
    """

    root: Path
    design: Design
    subject: str = "subj01"
    rest: bool = False
    amplitudes: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def layout(self) -> NsdLayout:
        return NsdLayout(self.root)

    def path(self, kind: str, session: int, run: int) -> Path:
        ending = "nii.gz" if kind == "timeseries" else "tsv"
        name = f"{kind}_session{session:02d}_run{run:02d}.{ending}"
        return self.root / "nsddata_timeseries/ppdata" / self.subject / "func1pt8mm" / kind / name

    def write(
        self, *sessions: int, drift: Callable[[int, np.ndarray], np.ndarray] | None = None
    ) -> SeriesRelease:
        """Write sessions; `drift(run, volumes)` gives what is added to every voxel, `(volumes,)`."""
        for session in sessions:
            generator = np.random.default_rng([3, session])
            size = 10 + np.arange(VOXELS) % 7 * 10
            self.amplitudes[session] = np.round(generator.normal(0, size, (sum(RUN_TRIALS), VOXELS)))
            first, done = 2 if self.rest else 1, 0
            for number, trials in enumerate(RUN_TRIALS):
                shown = self.design.nsd_ids(self.subject, session)[done : done + trials]
                amplitudes = self.amplitudes[session][done : done + trials]
                onsets = TRIAL * (3 + np.sort(generator.permutation(68)[:trials]))
                self._run(session, first + number, onsets, shown, amplitudes, drift)
                done += trials
            if self.rest:
                for run in (1, 14):
                    self._run(session, run, np.zeros(0, int), np.zeros(0, int), np.zeros((0, VOXELS)), drift)
        return self

    def _run(
        self,
        session: int,
        run: int,
        onsets: np.ndarray,
        nsd_ids: np.ndarray,
        amplitudes: np.ndarray,
        drift: Callable[[int, np.ndarray], np.ndarray] | None,
    ) -> None:
        rows = np.zeros(ROWS, int)
        rows[onsets] = nsd_ids + 1
        series = np.full((ROWS + 1, VOXELS), 1000.0)
        for volume in BOX:
            series[onsets + volume] += amplitudes
        if drift is not None:
            series += drift(run, np.arange(ROWS + 1))[:, None]
        series[:, -1] = 0  # outside the brain mask
        values = np.round(series).astype(np.int16).T.reshape(*SHAPE, ROWS + 1)
        for kind in ("design", "timeseries"):
            self.path(kind, session, run).parent.mkdir(parents=True, exist_ok=True)
        self.path("design", session, run).write_text("".join(f"{row}\n" for row in rows))
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), self.path("timeseries", session, run))


@dataclass
class SurfaceRelease:
    """Writes surface betas of `counts` vertices, and label files whose labels are known."""

    root: Path
    design: Design
    subject: str = "subj01"
    counts: tuple[int, int] = (40, 30)
    betas: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    @property
    def layout(self) -> NsdLayout:
        return NsdLayout(self.root)

    @property
    def folder(self) -> Path:
        name = "betas_fithrf_GLMdenoise_RR"
        return self.root / "nsddata_betas/ppdata" / self.subject / "fsaverage" / name

    def label(self, name: str, sides: list[np.ndarray], names: Mapping[int, str]) -> SurfaceRelease:
        folder = self.root / "nsddata/freesurfer/fsaverage/label"
        folder.mkdir(parents=True, exist_ok=True)
        for hemisphere, values in zip(("lh", "rh"), sides, strict=True):
            save_mgh(folder / f"{hemisphere}.{name}.mgz", values)
        (folder / f"{name}.mgz.ctab").write_text("".join(f"{n} {text}\n" for n, text in names.items()))
        return self

    def labels(self) -> SurfaceRelease:
        """`nsdgeneral` on vertices 5 to 14 of either hemisphere, `streams` on 10 to 24 as early and ventral."""
        sides = [np.arange(count) for count in self.counts]
        general = [((v >= 5) & (v < 15)).astype(int) for v in sides]
        streams = [np.where(v < 10, 0, np.where(v < 15, 1, np.where(v < 25, 5, 0))) for v in sides]
        self.label("nsdgeneral", general, {0: "Unknown", 1: "nsdgeneral"})
        return self.label("streams", streams, {0: "Unknown", 1: "early", 5: "ventral"})

    def write(self, *sessions: int) -> SurfaceRelease:
        self.folder.mkdir(parents=True, exist_ok=True)
        for session in sessions:
            for hemisphere, count in zip(("lh", "rh"), self.counts, strict=True):
                generator = np.random.default_rng([session, count])
                values = generator.normal(0.25, 1.75, (count, 750)).astype(np.float32)
                self.save(session, hemisphere, values)
        return self

    def save(self, session: int, hemisphere: str, values: np.ndarray) -> None:
        self.betas[session, hemisphere] = values
        save_mgh(self.folder / f"{hemisphere}.betas_session{session:02d}.mgh", values)


def save_mgh(path: Path, values: np.ndarray) -> None:
    """`(vertices,)` or `(vertices, frames)` as the release stores them."""
    shaped = np.asarray(values, np.float32).reshape(len(values), 1, 1, *np.shape(values)[1:])
    nibabel.save(nibabel.MGHImage(shaped, np.eye(4)), path)


@dataclass
class OneSubject:
    """A trial source of one subject of a release."""

    subjects: Mapping[str, SubjectSource]
    design: Design
    name: str = "small"
    terms: str = "made for tests"
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, NamedSplit]:
        return {}

    def picture(self, nsd_id: int) -> np.ndarray:
        return np.full((2, 2, 3), nsd_id % 256, np.uint8)

    def captions(self, nsd_id: int) -> list[str]:
        return []

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        return self.design.is_shared(nsd_id)


@pytest.fixture(scope="session")
def design() -> Design:
    return full_design()


@pytest.fixture
def series(tmp_path: Path, design: Design) -> SeriesRelease:
    (tmp_path / "nsd").mkdir()
    return SeriesRelease(tmp_path / "nsd", design)


@pytest.fixture
def surface(tmp_path: Path, design: Design) -> SurfaceRelease:
    (tmp_path / "nsd").mkdir()
    return SurfaceRelease(tmp_path / "nsd", design)


@pytest.fixture
def one_subject() -> type[OneSubject]:
    return OneSubject
