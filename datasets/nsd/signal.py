"""From the time series of a run to the responses of its trials: drift, units and windows.

Arrays of a run are `(volumes, voxels)`. Every coefficient, mean and standard deviation comes from the volumes
marked `used`, so that volumes of test trials can be kept out of what training trials are made of.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fmri2img.errors import InputError

Units = Literal["percent", "zscore", "raw"]

BLOCK = 16384
"""Voxels worked on at once, so that float64 copies stay small."""
SLACK = 1e-6
"""Seconds by which a volume may miss the edge of a window through rounding."""


def drift_basis(volumes: int, tr: float, *, order: int, cutoff: float) -> np.ndarray:
    """What slow drift is made of: polynomials, and cosines of periods of `cutoff` seconds and longer.

    The cosines are the discrete cosine basis that SPM uses as its high-pass filter (Ashburner et al., SPM12
    manual): `cos(pi k (2 t + 1) / (2 volumes))` for k from 1 to `2 volumes tr / cutoff`.

    Args:
        volumes: of the run.
        tr: seconds from one volume to the next.
        order: of the polynomials: 0 for the mean alone, 1 with a linear trend.
        cutoff: seconds; 0 for no cosines.

    Returns:
        float64 `(volumes, 1 + order + cosines)`; its first column is one.
    """
    time = np.linspace(-1, 1, volumes) if volumes > 1 else np.zeros(1)
    columns = [np.polynomial.legendre.Legendre.basis(degree)(time) for degree in range(order + 1)]
    cosines = int(2 * volumes * tr / cutoff + SLACK) if cutoff else 0
    phase = np.pi * (2 * np.arange(volumes) + 1) / (2 * volumes)
    columns += [np.cos(k * phase) for k in range(1, cosines + 1)]
    return np.stack(columns, axis=1)


def check_basis(where: str, basis: np.ndarray, used: np.ndarray) -> None:
    """Refuse a drift that the run has too few volumes to tell from signal.

    Raises:
        InputError: fewer than twice as many volumes as columns.
    """
    if used.sum() < 2 * basis.shape[1]:
        raise InputError(
            f"{where}: a drift of {basis.shape[1]} columns cannot be told from signal in {int(used.sum())} "
            "volumes, half of which must be left: use a longer --high-pass, or a lower --detrend."
        )


def clean_run(
    series: np.ndarray, basis: np.ndarray, used: np.ndarray, *, units: Units = "percent"
) -> np.ndarray:
    """Take the drift out of a run and put it into units that can be compared between runs.

    Args:
        series: `(volumes, voxels)`, scanner units.
        basis: of `drift_basis`.
        used: bool `(volumes,)`; drift, mean and standard deviation are fitted on these volumes.
        units: `percent` of the voxel's mean, `zscore` (with `volumes - 1`), or `raw` scanner units.

    Returns:
        float32 `(volumes, voxels)`; 0 where a voxel does not vary, or has no positive mean to be a per cent of.
    """
    cleaned = np.zeros(series.shape, np.float32)
    solve = np.linalg.pinv(basis[used])
    for first in range(0, series.shape[1], BLOCK):
        part = slice(first, first + BLOCK)
        values = series[:, part].astype(np.float64)
        mean = values[used].mean(axis=0)
        values -= mean
        values -= basis @ (solve @ values[used])
        std = np.sqrt((values[used] ** 2).sum(axis=0) / max(int(used.sum()) - 1, 1))
        varies = std > 1e-6 * np.maximum(np.abs(mean), 1e-6)
        if units == "percent":
            varies &= mean > 0
            values *= 100 / np.where(varies, mean, 1.0)
        elif units == "zscore":
            values /= np.where(varies, std, 1.0)
        cleaned[:, part] = np.where(varies, values, 0.0)
    return cleaned


def window_offsets(tr: float, window: tuple[float, float]) -> np.ndarray:
    """Volumes of a window, counted from the volume of the onset: those at `start <= seconds < stop`.

    Raises:
        InputError: the window holds no volume.
    """
    start, stop = window
    finite = bool(np.isfinite([start, stop]).all())
    first, last = (int(np.ceil((edge - SLACK) / tr)) if finite else 0 for edge in window)
    if start < 0 or last <= first:
        raise InputError(
            f"--window {start:g} {stop:g} holds no volume after the onset (one each {tr:.3f} s): "
            "give its first and its last second, such as 4 8."
        )
    return np.arange(first, last)


def window_volumes(where: str, onsets: np.ndarray, offsets: np.ndarray, volumes: int) -> np.ndarray:
    """Volumes of every trial's window: int64 `(trials, time)`.

    Raises:
        InputError: a window runs past the end of the run.
    """
    chosen = np.asarray(onsets, np.int64)[:, None] + offsets[None, :]
    late = chosen[:, -1] >= volumes if len(chosen) else np.zeros(0, bool)
    if late.any():
        raise InputError(
            f"{where}: the window of the trial at volume {int(onsets[late][0])} runs past the run's "
            f"{volumes} volumes: give a --window that stops earlier."
        )
    return chosen


def without_test_volumes(chosen: np.ndarray, test: np.ndarray, volumes: int) -> np.ndarray:
    """Volumes that drift and scale may be fitted on: bool `(volumes,)`.

    Left out are those that lie in windows of test trials only, so changing these changes no training trial.
    A run without training trials uses all of its volumes.

    Args:
        chosen: of `window_volumes`.
        test: bool `(trials,)`.
    """
    used = np.ones(volumes, bool)
    if not test.all():
        used[chosen[test]] = False
        used[chosen[~test]] = True
    return used
