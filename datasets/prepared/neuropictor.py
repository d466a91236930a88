"""NeuroPictor's flat maps of visual cortex, straight from the folder as downloaded, as a trial source.

Huo et al., ECCV 2024; layout of huggingface.co/Fudan-fMRI/neuropictor with its archives unpacked:

    NSD/fmri_npy/01_norm/surf_000000.npy   one map (256, 256), the mean over a picture's repeats
    NSD/fmri_npy/01_label.npy              nsd_id of each map of subject 1
    NSD/sub1257_shared_triallabel.npy      nsd_ids of the 982 test pictures
    NSD/COCO_73k_annots_curated.npy        captions (73000, k), padded with ""
    NSD/nsddata_stimuli/stimuli/images/image_000000.png

The maps have no sessions; what stands for them here are blocks of maps in the order of their numbers. Training
pictures are those of one subject alone: `unique_triallabel.npy`, which says the same, is a pickle and never read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fmri2img.datasets.npy import unpack
from fmri2img.datasets.prepared.flat_maps import FlatMaps, FlatMapSubject
from fmri2img.datasets.source import NamedSplit, SubjectSource
from fmri2img.errors import DamageError, InputError

OFFICIAL_TEST = 982


@dataclass
class NeuroPictorSource:
    """The whole set, as a `TrialSource`.

    Attributes:
        root: the folder that holds `NSD`, or `NSD` itself.
        names: subjects such as `subj01`; all there are if empty.
        whole_map: keep every pixel; else those that are zero or no number in every training map are dropped, the
            same for all subjects, found in one pass.

    Raises:
        InputError: a missing folder or file, or a subject that is not there.
        DamageError: a damaged file, or labels that do not fit the maps.
    """

    root: Path
    names: Sequence[str] = ()
    whole_map: bool = False
    name: str = "neuropictor"
    terms: str = "NSD Terms and Conditions, https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"
    _maps: dict[str, FlatMaps] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.root = self.root / "NSD" if (self.root / "NSD").is_dir() else self.root
        folder = self.root / "fmri_npy"
        labels = {
            f"subj{path.name[:2]}": _numbers(path)
            for path in sorted(folder.glob("*_label.npy"))
            if re.fullmatch(r"\d\d_label\.npy", path.name)
        }
        if not labels:
            raise InputError(
                f"{folder} holds no 01_label.npy or the like: give the folder of NSD/fmri_npy, unpacked."
            )
        unknown = sorted(set(self.names) - set(labels))
        if unknown:
            raise InputError(f"{unknown[0]} is not in {folder}: use {', '.join(labels)}.")
        self._test = frozenset(_numbers(self.root / "sub1257_shared_triallabel.npy").tolist())
        several = _in_several(list(labels.values())) - self._test
        self._left_out = 0
        for subject in self.names or labels:
            used = ~np.isin(labels[subject], sorted(several))
            self._left_out += int((~used).sum())
            maps = FlatMaps(
                folder / f"{subject[-2:]}_norm", np.flatnonzero(used), labels[subject][used].astype(np.int64)
            )
            _check_files(maps.folder, len(labels[subject]))
            self._maps[subject] = maps
        self._told_apart = len(labels) > 1
        self._shape = next(iter(self._maps.values())).read(0).shape

    @property
    def provenance(self) -> dict[str, str]:
        """The set, its maps and pictures, and what was left out."""
        others = (
            f"{self._left_out} maps of pictures that several subjects saw and that are no test pictures"
            if self._told_apart
            else "none: one subject's labels do not tell which pictures are shared"
        )
        return {
            "release": "NeuroPictor, huggingface.co/Fudan-fMRI/neuropictor",
            "responses": "normalised flat maps, mean over repeats; sessions are blocks of maps",
            "map": f"{self._shape[0]} x {self._shape[1]}, {len(self.pixels)} pixels kept",
            "left_out": others,
            "captions": "COCO_73k_annots_curated.npy" if self._captions is not None else "none",
        }

    @cached_property
    def pixels(self) -> np.ndarray:
        """int64, ascending positions in the flattened map of the pixels kept."""
        size = self._shape[0] * self._shape[1]
        if self.whole_map:
            return np.arange(size)
        alive = np.zeros(size, bool)
        for maps in self._maps.values():
            for position in np.flatnonzero(~np.isin(maps.nsd_ids, sorted(self._test))).tolist():
                values = maps.read(position).reshape(-1)
                if values.shape != alive.shape:
                    raise DamageError(
                        f"{maps.path(position)} has {len(values)} pixels, "
                        f"and other maps {size}. Unpack it again."
                    )
                alive |= np.isfinite(values) & (values != 0)
        if not alive.any():
            raise InputError(f"{self.root}: every training map is empty: bring the maps, or use --whole-map.")
        return np.flatnonzero(alive)

    @cached_property
    def subjects(self) -> Mapping[str, SubjectSource]:
        """By subject id."""
        shape = (self._shape[0], self._shape[1])
        return {name: FlatMapSubject(maps, shape, self.pixels) for name, maps in self._maps.items()}

    @property
    def splits(self) -> Mapping[str, NamedSplit]:
        """`shared982`, where the test pictures are these."""
        if len(self._test) != OFFICIAL_TEST:
            return {}
        words = "the shared pictures of the sessions before the Algonauts 2023 challenge, mean over repeats"
        return {"shared982": NamedSplit("test", description=words)}

    def picture(self, nsd_id: int) -> bytes:
        """The bytes of the PNG file."""
        path = self.root / f"nsddata_stimuli/stimuli/images/image_{nsd_id:06d}.png"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"There is no picture {path}: unpack NSD/nsddata_stimuli.zip.") from None

    def captions(self, nsd_id: int) -> list[str]:
        """COCO's captions; none where their file is not there."""
        if self._captions is None:
            return []
        return [str(text) for text in np.atleast_1d(self._captions[nsd_id]) if str(text)]

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture is one of the test pictures."""
        return nsd_id in self._test

    @cached_property
    def _captions(self) -> np.ndarray | None:
        path = self.root / "COCO_73k_annots_curated.npy"
        if not path.is_file():
            return None
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except ValueError as error:
            raise DamageError(
                f"{path} cannot be read: {error}. Fetch it again, or remove it to go without."
            ) from None


def _numbers(path: Path) -> np.ndarray:
    """Picture numbers from 0: int64 `(n,)`."""
    try:
        values = unpack(path.read_bytes()).reshape(-1)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: fetch it from Fudan-fMRI/neuropictor.") from None
    except ValueError as error:
        raise DamageError(f"{path} cannot be read: {error}. Fetch it again.") from None
    whole = values.dtype.kind in "iuf" and bool(np.isfinite(values).all())
    if not whole or (values != np.round(values)).any() or not len(values) or values.min() < 0:
        raise DamageError(f"{path} must hold picture numbers from 0, and does not. Fetch it again.")
    return values.astype(np.int64)


def _in_several(labels: list[np.ndarray]) -> set[int]:
    """Pictures in the labels of more than one subject."""
    ids, counts = np.unique(np.concatenate([np.unique(of_one) for of_one in labels]), return_counts=True)
    return set(ids[counts > 1].tolist())


def _check_files(folder: Path, count: int) -> None:
    """Refuse a folder whose maps are not number 0 to `count - 1`."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: unpack NSD/fmri_npy.zip.")
    there = {path.name for path in folder.glob("surf_*.npy")}
    missing = [n for n in range(count) if f"surf_{n:06d}.npy" not in there]
    if missing or len(there) != count:
        first = f", surf_{missing[0]:06d}.npy not among them" if missing else ""
        raise DamageError(
            f"{folder} holds {len(there)} maps{first}, and {folder.name[:2]}_label.npy names {count}. "
            "Unpack NSD/fmri_npy.zip again."
        )
