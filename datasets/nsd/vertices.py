"""Which vertices of fsaverage go into a data set: those of label files of the release, or of masks.

Label files hold 0 outside the ROIs and labels from 1, whose names are in `.mgz.ctab` files beside them. Vertices
of both hemispheres are numbered together, left first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.datasets.nsd.labels import chosen_labels, label_names
from fmri2img.datasets.nsd.layout import HEMISPHERES, NsdLayout
from fmri2img.datasets.nsd.volumes import read_volume
from fmri2img.errors import DamageError, InputError

OWNER = "fsaverage"
LABELLED = ("Kastner2015", "streams", "nsdgeneral")
"""Label files that go into the voxel table where the release has them; the first ones name a vertex."""
MASKS = (".npy", ".mgh", ".mgz")


@dataclass(frozen=True)
class Vertices:
    """Chosen vertices of fsaverage.

    Attributes:
        counts: vertices of the left and of the right hemisphere (163,842 each).
        positions: int64 `(vertices,)`, ascending; those of the right hemisphere begin at `counts[0]`.
        table: per-vertex arrays: `hemisphere`, `vertex` (from 0 in its hemisphere), `roi`, one of each label file.
    """

    counts: tuple[int, int]
    positions: np.ndarray
    table: dict[str, np.ndarray]

    def of(self, hemisphere: str) -> np.ndarray:
        """Chosen vertices of one hemisphere, numbered from 0 in it."""
        left = self.counts[0]
        if hemisphere == "lh":
            return self.positions[self.positions < left]
        return self.positions[self.positions >= left] - left

    def only(self, kept: np.ndarray) -> Vertices:
        """Those that `kept`, bool `(vertices,)`, says."""
        table = {name: column[kept] for name, column in self.table.items()}
        return Vertices(self.counts, self.positions[kept], table)


def select_vertices(layout: NsdLayout, rois: Sequence[str]) -> Vertices:
    """The union of label files and masks.

    Args:
        rois: names of fsaverage label files (`nsdgeneral`, `streams`), each for all its labels or, as in
            `streams:early`, for one; or a mask file of the left hemisphere (`.npy`, `.mgh`, `.mgz`; not 0 is in)
            with `lh.` in its name, beside that of the right one, as in Algonauts 2023
            (`lh.all-vertices_fsaverage_space.npy`).

    Raises:
        InputError: a label file, label or mask that is not there, or no vertex.
        DamageError: files of different numbers of vertices.
    """
    if not rois:
        raise InputError("No ROI was named: name at least one, such as nsdgeneral.")
    files: dict[str, np.ndarray] = {}
    counts: tuple[int, int] | None = None
    chosen: list[np.ndarray] = []
    texts: dict[str, dict[int, str]] = {}
    for spec in [*rois, *_present(layout)]:
        name = spec if spec.endswith(MASKS) else spec.partition(":")[0]
        if name not in files:
            halves = [_half(layout, name, hemisphere) for hemisphere in HEMISPHERES]
            found = (len(halves[0]), len(halves[1]))
            counts = counts or found
            if found != counts:
                raise DamageError(
                    f"{name} has {found} vertices (left, right), and {rois[0]} {counts}: "
                    "all must be labels of one surface, such as fsaverage's 163842."
                )
            files[name] = np.concatenate(halves)
            if not spec.endswith(MASKS):
                texts[name] = _names(layout, name, files[name])
        if spec in rois:
            chosen.append(_of_label(spec, files[name], texts.get(name)))
    positions = np.flatnonzero(np.any(chosen, axis=0))
    if counts is None or not len(positions):
        raise InputError(f"{', '.join(rois)} hold no vertex of fsaverage: name other ROIs.")
    labels = {
        name: np.array([texts[name].get(int(label), "") for label in files[name][positions]], np.str_)
        for name in texts
    }
    right = positions >= counts[0]
    table = {
        "hemisphere": np.where(right, "rh", "lh"),
        "vertex": np.where(right, positions - counts[0], positions).astype(np.int32),
        "roi": _first(labels, len(positions)),
    }
    return Vertices(counts, positions, table | labels)


def _present(layout: NsdLayout) -> list[str]:
    """Which of `LABELLED` the release at hand has."""
    folder = layout.root / "nsddata/freesurfer" / OWNER / "label"
    return [name for name in LABELLED if all((folder / f"{h}.{name}.mgz").is_file() for h in HEMISPHERES)]


def _half(layout: NsdLayout, name: str, hemisphere: str) -> np.ndarray:
    """Labels of one hemisphere: int64 `(vertices,)`."""
    if not name.endswith(MASKS):
        path = layout.surface_roi(OWNER, hemisphere, name)
        values = read_volume(path)
    else:
        path = Path(name)
        if "lh." not in path.name:
            raise InputError(f"{name}: give the mask of the left hemisphere, with lh. in its name.")
        path = path.with_name(path.name.replace("lh.", f"{hemisphere}.", 1))
        if not path.is_file():
            raise InputError(f"There is no mask {path}: give lh. and rh. files side by side.")
        values = _npy(path) if path.suffix == ".npy" else read_volume(path)
    values = values.reshape(-1)
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all() or (values != np.round(values)).any():
        raise DamageError(f"{path} must hold one whole number a vertex, and does not. Bring it again.")
    return values.astype(np.int64)


def _npy(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise DamageError(f"{path} cannot be read: {error}. Bring it again.") from None


def _names(layout: NsdLayout, name: str, labels: np.ndarray) -> dict[int, str]:
    table = layout.find_labels(OWNER, name) or layout.find_labels("subj01", name)
    return label_names(table, name, labels)


def _of_label(spec: str, labels: np.ndarray, texts: dict[int, str] | None) -> np.ndarray:
    """bool `(vertices,)`: in the label file, in the one label asked for, or in the mask."""
    if texts is None:
        return np.asarray(labels != 0)
    return chosen_labels(spec, labels, texts)


def _first(labels: dict[str, np.ndarray], count: int) -> np.ndarray:
    """For each vertex its first label that is not empty."""
    order = [name for name in labels if name not in LABELLED] + [name for name in LABELLED if name in labels]
    roi = np.full(count, "", "<U64")
    for name in order:
        roi = np.where(roi == "", labels[name], roi)
    return roi.astype(np.str_)
