"""Single-trial betas of one session at the chosen voxels, in per cent signal change, without reading the rest.

The release stores betas times 300 as int16 (`export.m` of github.com/cvnlab/nsddatapaper): in `.hdf5` as
`betas`, whose axes Python sees as (trials, z, y, x), in chunks that hold all trials of one voxel; in `.nii.gz` as
(x, y, z, trials). So an HDF5 file is read by voxels, and a NIfTI file, which is one compressed stream, trial by
trial. A file of floating-point numbers is taken as per cent already.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import h5py
import numpy as np

from fmri2img.datasets.nsd.volumes import open_volumes
from fmri2img.errors import DamageError, InputError

KEY = "betas"
SCALE = np.float32(300)
GAP = 4
"""Voxels of a row that are this near each other are read at once."""
SLAB = 64 << 20
"""Bytes read at once from a file whose chunks do not hold all trials."""


def read_betas(path: Path, shape: tuple[int, ...], positions: np.ndarray, *, trials: int) -> np.ndarray:
    """float32 `(trials, voxels)`, per cent signal change.

    A voxel that is not a number on every trial of the session lies outside the session's field of view and
    reads as 0, which is what the int16 files of the release hold there.

    Args:
        shape: `(x, y, z)` of the volumes that `positions` are meant for.
        positions: int64 `(voxels,)` in the flattened volume (C order), ascending.
        trials: how many trials the session has by the design.

    Raises:
        InputError: the volumes have another shape.
        DamageError: the file is damaged or holds another number of trials, or a voxel is not a number on some
            trials only.
    """
    if path.suffix == ".hdf5":
        betas = _from_hdf5(path, shape, positions, trials)
    else:
        betas = _from_volumes(path, shape, positions, trials)
    missing = ~np.isfinite(betas)
    if missing.any():
        whole = missing.all(axis=0)
        betas[:, whole] = 0
        if (bad := missing[:, ~whole]).any():
            trial, column = (int(index[0]) for index in np.nonzero(bad))
            where = np.unravel_index(positions[~whole][column], shape)
            raise DamageError(
                f"{path}, trial {trial + 1}: the beta of voxel {tuple(int(n) for n in where)} is not a number, "
                "though other trials of it are. Fetch it again."
            )
    return betas


def _from_hdf5(path: Path, shape: tuple[int, ...], positions: np.ndarray, trials: int) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            data = file.get(KEY)
            if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
                raise DamageError(
                    f"{path} holds no {KEY!r}, only {', '.join(file) or 'nothing'}. Fetch it again."
                )
            if data.ndim != 4 or data.dtype.kind not in "if":
                raise DamageError(
                    f"{path}: {KEY} are {data.dtype} {data.shape}, and must be numbers (trials, z, y, x). "
                    "Fetch it again."
                )
            _check(path, shape, data.shape[:0:-1], data.shape[0], trials)
            by_voxel = data.chunks is not None and data.chunks[0] >= trials
            stored = (_by_voxels if by_voxel else _by_trials)(data, shape, positions)
    except (OSError, RuntimeError, KeyError) as error:
        raise DamageError(f"{path} cannot be read: {error}. Fetch it again.") from None
    return _percent(stored)


def _by_voxels(data: h5py.Dataset, shape: tuple[int, ...], positions: np.ndarray) -> np.ndarray:
    """`(trials, voxels)`, from a file whose chunks hold all trials of a voxel: one read for a run along x."""
    x, y, z = np.unravel_index(positions, shape)
    order = np.lexsort((x, y, z))
    row = (z * shape[1] + y)[order]
    cuts = np.flatnonzero((np.diff(row) != 0) | (np.diff(x[order]) > GAP)) + 1
    found = np.empty((len(positions), data.shape[0]), data.dtype)
    for run in np.split(order, cuts):
        first, last = int(x[run[0]]), int(x[run[-1]]) + 1
        found[run] = data[:, int(z[run[0]]), int(y[run[0]]), first:last].T[x[run] - first]
    return found.T


def _by_trials(data: h5py.Dataset, shape: tuple[int, ...], positions: np.ndarray) -> np.ndarray:
    """`(trials, voxels)`, from a file that is contiguous or chunked by trials: slabs of some trials."""
    x, y, z = np.unravel_index(positions, shape)
    stored = np.ravel_multi_index((z, y, x), shape[::-1])
    step = data.chunks[0] if data.chunks else 1
    step *= max(1, SLAB // (step * prod(shape) * data.dtype.itemsize))
    found = np.empty((data.shape[0], len(positions)), data.dtype)
    for start in range(0, data.shape[0], step):
        slab = data[start : start + step]
        found[start : start + len(slab)] = slab.reshape(len(slab), -1)[:, stored]
    return found


def _from_volumes(path: Path, shape: tuple[int, ...], positions: np.ndarray, trials: int) -> np.ndarray:
    file = open_volumes(path)
    _check(path, shape, file.shape, file.volumes, trials)
    found = np.empty((trials, len(positions)), np.float32)
    for trial, values in enumerate(file.read(positions)):
        found[trial] = values
    if file.dtype.kind in "iu" and file.slope == 1:
        found /= SCALE
    return found


def _percent(stored: np.ndarray) -> np.ndarray:
    betas = stored.astype(np.float32, order="C")
    return betas / SCALE if stored.dtype.kind == "i" else betas


def _check(path: Path, shape: tuple[int, ...], found: tuple[int, ...], count: int, trials: int) -> None:
    if tuple(found) != tuple(shape):
        raise InputError(
            f"{path} holds volumes of {tuple(found)}, and the ROI volumes of this subject are {tuple(shape)}: "
            "betas and ROIs must be of one subject and one space."
        )
    if count != trials:
        raise DamageError(
            f"{path} holds {count} trials, and the session has {trials} by the design. Fetch it again."
        )
