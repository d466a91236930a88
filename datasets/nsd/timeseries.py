"""Trials of the NSD release's time series: voxels that vary or of a mask, drift taken out, windows after onset.

What is fitted to a run (drift, mean, standard deviation) and what voxels are chosen by never depends on volumes
that lie only in windows of test trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import SPACES, NsdLayout, known
from fmri2img.datasets.nsd.regions import LABELLED, Voxels, select_voxels
from fmri2img.datasets.nsd.runs import Run, session_runs
from fmri2img.datasets.nsd.selection import DriftFreeVariance, MostVarying
from fmri2img.datasets.nsd.signal import (
    Units,
    check_basis,
    clean_run,
    drift_basis,
    window_offsets,
    window_volumes,
    without_test_volumes,
)
from fmri2img.datasets.source import SessionTrials
from fmri2img.errors import DamageError, InputError

TR = {"func1pt8mm": 4 / 3, "func1mm": 1.0}
"""Seconds from one volume to the next; 1.6 s as measured, resampled by the release's preprocessing."""

Keep = Literal["average", "window"]


@dataclass(frozen=True)
class SeriesOptions:
    """What a response is made of.

    Attributes:
        space: `func1pt8mm` or `func1mm`.
        tr: seconds from one volume to the next; the space's own if None.
        window: seconds after the onset, `start <= t < stop`. Dynadiff's six volumes are (4.6, 12.6).
        keep: `average` for one number a voxel, `window` for each volume of the window.
        detrend: order of the polynomial taken out of each run; 0 takes out the mean alone.
        high_pass: seconds; slower cosines are taken out of each run; 0 for none.
        units: `percent` of a voxel's mean over the run, `zscore` over the run, or `raw` scanner units.

    Raises:
        InputError: a value that cannot be used.
    """

    space: str = "func1pt8mm"
    tr: float | None = None
    window: tuple[float, float] = (4.0, 8.0)
    keep: Keep = "average"
    detrend: int = 1
    high_pass: float = 128.0
    units: Units = "percent"

    def __post_init__(self) -> None:
        known(self.space, SPACES, "space")
        if not 0.1 <= self.seconds <= 10:
            raise InputError(f"--tr {self.seconds:g}: give the seconds between volumes, from 0.1 to 10.")
        if not 0 <= self.detrend <= 5:
            raise InputError(f"--detrend {self.detrend}: give the order of a polynomial, from 0 to 5.")
        if not (self.high_pass == 0 or 4 * self.seconds <= self.high_pass < float("inf")):
            raise InputError(
                f"--high-pass {self.high_pass:g}: give a period in seconds of at least four volumes "
                f"({4 * self.seconds:.1f}), or 0 for none."
            )
        if self.keep not in get_args(Keep) or self.units not in get_args(Units):
            raise InputError(
                f"keep {self.keep!r} must be one of {list(get_args(Keep))}, and units {self.units!r} one of "
                f"{list(get_args(Units))}."
            )
        window_offsets(self.seconds, self.window)

    @property
    def seconds(self) -> float:
        """Seconds from one volume to the next."""
        return TR[self.space] if self.tr is None else self.tr

    @property
    def offsets(self) -> np.ndarray:
        """Volumes of the window, counted from the onset's: int64 `(time,)`."""
        return window_offsets(self.seconds, self.window)

    def describe(self) -> dict[str, str]:
        """For the provenance of a data set."""
        return {
            "space": self.space,
            "tr": f"{self.seconds:.6g} s",
            "window": f"{self.window[0]:g} to {self.window[1]:g} s after onset, {self.keep}",
            "drift": f"polynomial of order {self.detrend}, high-pass {self.high_pass:g} s",
            "units": self.units,
        }


@dataclass
class SeriesSubject:
    """One subject's time series, as a `SubjectSource`; a run is in memory at a time.

    Attributes:
        layout, design: the release.
        subject: its id, `subj01` to `subj08`.
        options: what a response is made of.
        select: the voxels of ROIs, or `MostVarying`, which takes one pass over all runs.
        sessions: numbers, ascending.
        is_test: whether a picture (nsd_id) in a session is for testing.
        behaviour: numbers `(750,)` of a session by name.
    """

    layout: NsdLayout
    design: Design
    subject: str
    options: SeriesOptions
    select: Voxels | MostVarying
    sessions: Sequence[int]
    is_test: Callable[[int, int], bool]
    behaviour: Callable[[int], Mapping[str, np.ndarray]] = lambda session: {}
    _std: np.ndarray | None = field(default=None, init=False, repr=False)

    @cached_property
    def positions(self) -> np.ndarray:
        """The chosen voxels: int64 `(voxels,)`, ascending positions in the flattened volume (C order)."""
        if isinstance(self.select, Voxels):
            return self.select.positions
        variance = DriftFreeVariance(len(self._brain))
        for session in self.sessions:
            for run, basis, used, test in self._prepared(session):
                if not test.all():
                    variance.add_run(run.file.read(self._brain), basis, used)
        chosen = self.select.of(self.subject, variance.std(), variance.measured)
        self._std = variance.std()[chosen]
        return self._brain[chosen]

    @cached_property
    def _brain(self) -> np.ndarray:
        """Voxels that the release's mask of the brain, the same for all runs of a subject, has not set to 0."""
        with closing(self._runs(self.sessions[0])[0].file.read()) as volumes:
            return np.flatnonzero(next(volumes) > 0)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of a volume, `(x, y, z)`."""
        if isinstance(self.select, Voxels):
            return self.select.shape
        return self._runs(self.sessions[0])[0].file.shape

    @property
    def voxels(self) -> int:
        """Number of chosen voxels."""
        return len(self.positions)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """ROI labels and indices `x`, `y`, `z`; `series_std` (scanner units) where voxels were chosen by it.

        Noise ceilings are left out: the release's are those of betas.
        """
        if isinstance(self.select, Voxels):
            return {name: column for name, column in self.select.table.items() if name != "noise_ceiling"}
        positions = self.positions
        axes = zip("xyz", np.unravel_index(positions, self.shape), strict=True)
        table = {axis: index.astype(np.int16) for axis, index in axes}
        if self._std is not None:
            table["series_std"] = self._std.astype(np.float32)
        return table | self._labels(positions)

    def _labels(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The ROI labels of any voxels, empty outside the ROIs."""
        space = self.options.space
        rois = [name for name in LABELLED if name in self.layout.rois(self.subject, space)]
        if not rois:
            return {}
        known_voxels = select_voxels(self.layout, self.subject, rois, space=space, version="b3")
        row = np.searchsorted(known_voxels.positions, positions).clip(max=len(known_voxels.positions) - 1)
        inside = known_voxels.positions[row] == positions
        return {
            name: np.where(inside, column[row], "")
            for name, column in known_voxels.table.items()
            if column.dtype.kind == "U"
        }

    def session(self, session: int) -> SessionTrials:
        """The 750 trials: `(trials, voxels)` averages, or `(trials, time, voxels)` windows."""
        nsd_ids = self.design.nsd_ids(self.subject, session)
        time = (len(self.options.offsets),) if self.options.keep == "window" else ()
        responses = np.empty((len(nsd_ids), *time, self.voxels), np.float32)
        done = 0
        for run, basis, used, _ in self._prepared(session):
            cleaned = clean_run(self._read(run), basis, used, units=self.options.units)
            windows = window_volumes(run.where, run.onsets, self.options.offsets, len(cleaned))
            for trial, volumes in enumerate(windows, start=done):
                responses[trial] = cleaned[volumes] if time else cleaned[volumes].mean(axis=0)
            done += len(windows)
        return SessionTrials(responses, nsd_ids, behaviour=dict(self.behaviour(session)))

    def _read(self, run: Run) -> np.ndarray:
        """The chosen voxels of a run, float32 `(volumes, voxels)`, scanner units."""
        series = np.empty((run.file.volumes, self.voxels), np.float32)
        for number, volume in enumerate(run.file.read(self.positions)):
            series[number] = volume
        if not np.isfinite(series).all():
            raise DamageError(
                f"{run.file.path} holds values that are not finite at {int((~np.isfinite(series)).sum())} "
                "places. Fetch it again, or leave these voxels out of the mask."
            )
        return series

    def _prepared(self, session: int) -> Iterator[tuple[Run, np.ndarray, np.ndarray, np.ndarray]]:
        """Each run with its drift basis, the volumes to fit on, and which of its trials are for testing."""
        options = self.options
        for run in self._runs(session):
            if run.file.shape != self.shape:
                raise DamageError(
                    f"{run.file.path} has volumes of {run.file.shape}, and the ROIs or other sessions of "
                    f"{self.subject} {self.shape}: all must be of one subject and one space."
                )
            test = np.array([self.is_test(int(nsd_id), session) for nsd_id in run.nsd_ids], bool)
            chosen = window_volumes(run.where, run.onsets, options.offsets, run.file.volumes)
            used = without_test_volumes(chosen, test, run.file.volumes)
            basis = drift_basis(
                run.file.volumes, options.seconds, order=options.detrend, cutoff=options.high_pass
            )
            check_basis(run.where, basis, used)
            yield run, basis, used, test

    def _runs(self, session: int) -> list[Run]:
        return session_runs(self.layout, self.design, self.subject, self.options.space, session)
