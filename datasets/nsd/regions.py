"""Which voxels of a subject go into a data set, and what is known of each: ROI labels, place, noise ceiling.

ROI volumes hold -1 outside cortex, 0 in cortex but outside the ROIs, and labels from 1 (as written by
`analysis_surfaceroistovolume.m` of github.com/cvnlab/nsddatapaper); the labels' names are in the release's
`.mgz.ctab` files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmri2img.datasets.nsd.labels import chosen_labels, label_names
from fmri2img.datasets.nsd.layout import NsdLayout
from fmri2img.datasets.nsd.volumes import read_volume
from fmri2img.errors import DamageError, InputError

LABELLED = (
    "prf-visualrois",
    "floc-faces",
    "floc-bodies",
    "floc-places",
    "floc-words",
    "streams",
    "nsdgeneral",
)
"""ROI volumes that are put into the voxel table where the release has them; the first ones name a voxel."""

REPEATS = 3
"""NSD shows each picture three times; noise ceilings are those of the mean of three trials."""


@dataclass(frozen=True)
class Voxels:
    """The chosen voxels of a subject.

    Attributes:
        shape: of the volume, `(x, y, z)`.
        positions: int64 `(voxels,)`, ascending, in the flattened volume (C order): the order of
            `numpy.argwhere(mask)`, and so of the arrays that published systems cut out of NIfTI volumes.
        table: per-voxel arrays, as `SubjectSource.voxel_table` gives them.
    """

    shape: tuple[int, ...]
    positions: np.ndarray
    table: dict[str, np.ndarray]


def select_voxels(
    layout: NsdLayout, subject: str, rois: Sequence[str], *, space: str, version: str
) -> Voxels:
    """The union of some ROIs.

    Args:
        rois: names of ROI volumes (`nsdgeneral`, `lh.streams`), each for all its labels or, as in
            `prf-visualrois:V1v`, for one label by its name.

    Raises:
        InputError: an ROI or a label that the release has not, or ROIs without a voxel.
        DamageError: volumes of a subject that differ in shape, or a damaged file.
    """
    if not rois:
        raise InputError("No ROI was named: name at least one, such as nsdgeneral.")
    asked = {spec: spec.partition(":")[0] for spec in rois}
    names = list(dict.fromkeys([*LABELLED, *asked.values()]))
    present = layout.rois(subject, space)
    names = [name for name in names if name in present or name in asked.values()]
    volumes = {name: _labels(layout, subject, space, name) for name in names}
    shape = volumes[names[0]].shape
    for name, volume in volumes.items():
        if volume.shape != shape:
            raise DamageError(
                f"{layout.roi(subject, space, name)} is {volume.shape} and {names[0]} {shape}: all volumes of "
                f"{subject} in {space} must have one shape. Fetch them again."
            )
    texts = {name: _names(layout, subject, name, volume) for name, volume in volumes.items()}
    mask = np.zeros(shape, bool)
    for spec, name in asked.items():
        mask |= chosen_labels(spec, volumes[name], texts[name])
    positions = np.flatnonzero(mask)
    if not len(positions):
        raise InputError(f"{', '.join(rois)} of {subject} in {space} hold no voxel: name other ROIs.")
    columns = {name: _text(volumes[name].reshape(-1)[positions], texts[name]) for name in names}
    table = {"roi": _first(columns, list(asked.values()))} | columns
    table |= _places(shape, positions) | _hemispheres(layout, subject, space, names, positions)
    return Voxels(shape, positions, table | _ceilings(layout, subject, space, version, shape, positions))


def noise_ceiling(ncsnr: np.ndarray, repeats: int = REPEATS) -> np.ndarray:
    """The share of variance, in [0, 1], that a perfect model explains of the mean of some trials.

    `ncsnr^2 / (ncsnr^2 + 1/n)` (Allen et al. 2022, Methods, "Noise ceiling estimation"); 0 where ncsnr is not
    a number, which the release has for voxels without valid data.
    """
    squared = np.nan_to_num(np.asarray(ncsnr, np.float64), nan=0.0, posinf=0.0, neginf=0.0) ** 2
    return np.asarray(squared / (squared + 1 / repeats), np.float32)


def _labels(layout: NsdLayout, subject: str, space: str, name: str) -> np.ndarray:
    path = layout.roi(subject, space, name)
    values = read_volume(path)
    if values.ndim != 3 or not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise DamageError(f"{path} must hold whole numbers in a volume, and does not. Fetch it again.")
    return values.astype(np.int16)


def _names(layout: NsdLayout, subject: str, name: str, volume: np.ndarray) -> dict[int, str]:
    plain = name.removeprefix("lh.").removeprefix("rh.")
    table = layout.find_labels(subject, plain) or layout.find_labels("fsaverage", plain)
    return label_names(table, plain, volume)


def _text(labels: np.ndarray, texts: dict[int, str]) -> np.ndarray:
    return np.array([texts.get(int(label), "") for label in labels], np.str_)


def _first(columns: dict[str, np.ndarray], asked: list[str]) -> np.ndarray:
    """For each voxel its first label that is not empty: of the labelled volumes in order, then of those asked."""
    order = [name for name in LABELLED if name in columns] + [name for name in asked if name not in LABELLED]
    width = max(columns[name].dtype.itemsize for name in order) // 4
    roi = np.zeros(len(columns[order[0]]), f"<U{max(width, 1)}")
    for name in order:
        roi = np.where(roi == "", columns[name], roi)
    return roi


def _places(shape: tuple[int, ...], positions: np.ndarray) -> dict[str, np.ndarray]:
    indices = np.unravel_index(positions, shape)
    return {axis: index.astype(np.int16) for axis, index in zip("xyz", indices, strict=True)}


def _hemispheres(
    layout: NsdLayout, subject: str, space: str, names: list[str], positions: np.ndarray
) -> dict[str, np.ndarray]:
    """`lh`, `rh` or nothing, where the release has the ROI volumes of one hemisphere (-1 is the other one)."""
    present = layout.rois(subject, space)
    for name in names:
        if f"lh.{name}" in present and f"rh.{name}" in present:
            left, right = (
                _labels(layout, subject, space, f"{side}.{name}").reshape(-1)[positions] >= 0
                for side in ("lh", "rh")
            )
            return {"hemisphere": np.where(left, "lh", np.where(right, "rh", ""))}
    return {}


def _ceilings(
    layout: NsdLayout, subject: str, space: str, version: str, shape: tuple[int, ...], positions: np.ndarray
) -> dict[str, np.ndarray]:
    path = layout.find_ncsnr(subject, space, version)
    if path is None:
        return {}
    volume = read_volume(path)
    if volume.shape != shape:
        raise DamageError(
            f"{path} is {volume.shape}, and the ROI volumes of {subject} are {shape}. Fetch both again."
        )
    ncsnr = volume.reshape(-1)[positions]
    return {
        "ncsnr": np.nan_to_num(ncsnr, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32),
        "noise_ceiling": noise_ceiling(ncsnr),
    }
