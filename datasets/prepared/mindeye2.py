"""MindEye2's published set as a trial source: betas in HDF5 files, and tars that point to them trial by trial.

Layout of huggingface.co/datasets/pscotti/mindeyev2 (Scotti et al. 2024, ICML), made by `dataset_creation.ipynb`
of github.com/MedARC-AI/MindEyeV2. The tars hold behaviour and, in it, the row of the betas and the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.datasets.array_files import ArrayFile, open_array
from fmri2img.datasets.nsd.layout import SESSIONS, TRIALS, known_subject
from fmri2img.datasets.nsd.release import TERMS
from fmri2img.datasets.prepared.pictures import CAPTIONS, CuratedCaptions, PlanarPictures
from fmri2img.datasets.prepared.published_tars import TarSample, damaged, numbered_tars, read_samples
from fmri2img.datasets.source import NamedSplit, SessionTrials
from fmri2img.errors import InputError

PICTURE, SUBJECT, SESSION, ROW = 0, 1, 2, 5
BEHAVIOUR = {
    "run": 3, "trial_in_run": 4, "time": 6, "isold": 7, "iscorrect": 8, "rt": 9, "changemind": 10,
    "isoldcurrent": 11, "iscorrectcurrent": 12, "total1": 13, "total2": 14, "button": 15,
}  # fmt: skip
"""Columns of `behav.npy` that are kept, where -1 stands for a missing value."""
COLUMNS = 17


@dataclass(frozen=True)
class MindEye2Subject:
    """One subject's betas and the trials that the tars point to, as a `SubjectSource`.

    Attributes:
        betas: `(trials of the experiment, voxels)`, read by rows.
        train, test: float64 `(trials, 17)`, `behav.npy` of each training and test trial.
    """

    betas: ArrayFile
    train: np.ndarray
    test: np.ndarray
    table: Mapping[str, np.ndarray]

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return self.betas.shape[1]

    @property
    def sessions(self) -> list[int]:
        """Sessions with trials."""
        return [int(s) for s in np.unique(np.concatenate([self.train[:, SESSION], self.test[:, SESSION]]))]

    def voxel_table(self) -> dict[str, np.ndarray]:
        """`roi`, where `brain_region_masks.hdf5` is there."""
        return dict(self.table)

    def session(self, session: int) -> SessionTrials:
        """The trials of one session, in the order shown; only their rows of the betas are read."""
        trials = np.concatenate([self.train, self.test])
        trials = trials[trials[:, SESSION] == session]
        trials = trials[np.argsort(trials[:, ROW])]
        rows = trials[:, ROW].astype(np.int64)
        behaviour = {name: trials[:, column] for name, column in BEHAVIOUR.items()}
        return SessionTrials(
            responses=self.betas.rows(rows).astype(np.float32),
            nsd_ids=trials[:, PICTURE].astype(np.int64),
            numbers=rows - (session - 1) * TRIALS + 1,
            behaviour={name: np.where(values == -1, np.nan, values) for name, values in behaviour.items()},
        )


class MindEye2Source:
    """The set as a `TrialSource`: `new_test` is the test partition.

    Args:
        root: the folder with `wds`, the betas and `coco_images_224_float16.hdf5`.
        names: the subjects, such as `subj01`.
        last_session: training trials of sessions 1 to this one only; test trials are of all sessions.
        captions: `COCO_73k_annots_curated.npy`; the one in `root` otherwise, if it is there.

    Raises:
        InputError: a file or tar that is missing.
        DamageError: a tar that is broken, or trials that point to what is not there.
    """

    name = "mindeye2"
    terms = TERMS

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        *,
        last_session: int | None = None,
        captions: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        if not names or len(set(names)) != len(names):
            raise InputError(f"Subjects {list(names)}: name at least one, and none twice.")
        self._pictures = PlanarPictures(self.root / "coco_images_224_float16.hdf5", "images")
        self._captions = CuratedCaptions.find(Path(captions) if captions else None, self.root)
        self.subjects = {name: self._subject(known_subject(name), last_session) for name in names}
        self._test = {name: frozenset(_ids(subject.test)) for name, subject in self.subjects.items()}
        self._notes: dict[str, str] = {}
        self._last = last_session
        digest = hashlib.sha256()
        for subject in self.subjects.values():
            digest.update(subject.train.tobytes() + subject.test.tobytes())
        self._digest = digest.hexdigest()
        self.splits = self._splits()

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from, and what was done to the betas before."""
        return {
            "release": "huggingface.co/datasets/pscotti/mindeyev2",
            "betas": "betas_all_subj0X_fp32_renorm.hdf5: nsdgeneral, func1pt8mm, betas_fithrf, z-scored by session "
            "by its authors, whose published code includes the test trials in mean and standard deviation",
            "training_sessions": "all" if self._last is None else f"1 to {self._last}",
            "captions": CAPTIONS if self._captions else "none",
            "trials_sha256": self._digest,
        } | self._notes

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(224, 224, 3)`."""
        return self._pictures.picture(nsd_id)

    def captions(self, nsd_id: int) -> list[str]:
        """COCO's captions, where their file is there."""
        return self._captions.row(nsd_id) if self._captions else []

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether `new_test` has the picture."""
        return nsd_id in self._test[subject]

    def _subject(self, name: str, last_session: int | None) -> MindEye2Subject:
        count = SESSIONS[name] if last_session is None else last_session
        if not 1 <= count <= SESSIONS[name]:
            raise InputError(
                f"{name} has sessions 1 to {SESSIONS[name]}, not 1 to {count}: choose among these."
            )
        path = self.root / f"betas_all_{name}_fp32_renorm.hdf5"
        betas = open_array(self.root, f"{path.name}:betas")
        if len(betas.shape) != 2 or betas.dtype.kind != "f":
            raise damaged(path, f"betas are {betas.dtype} {betas.shape} and must be floats (trials, voxels)")
        train = self._trials(
            name, numbered_tars(self.root / "wds" / name / "train", "{}.tar", count=count), betas
        )
        test = self._trials(name, numbered_tars(self.root / "wds" / name / "new_test", "{}.tar"), betas)
        both = set(_ids(train)) & set(_ids(test))
        if both:
            raise damaged(self.root / "wds" / name, f"picture {min(both)} is in train and in new_test")
        rows, counts = np.unique(np.concatenate([train[:, ROW], test[:, ROW]]), return_counts=True)
        if (counts > 1).any():
            raise damaged(
                self.root / "wds" / name, f"two trials have row {int(rows[counts > 1][0])} of the betas"
            )
        return MindEye2Subject(betas, train, test, self._rois(name, betas.shape[1]))

    def _trials(self, name: str, tars: Sequence[Path], betas: ArrayFile) -> np.ndarray:
        rows = [self._trial(name, sample, betas) for tar in tars for sample in read_samples(tar)]
        return np.array(rows, np.float64).reshape(-1, COLUMNS)

    def _trial(self, name: str, sample: TarSample, betas: ArrayFile) -> np.ndarray:
        """`behav.npy` of one sample, checked."""
        array = sample.array("behav.npy")
        if array.shape != (1, COLUMNS):
            raise damaged(sample.path, f"{sample.key}.behav.npy is {array.shape} and must be (1, {COLUMNS})")
        values = array[0].astype(np.float64)
        picture, subject, session, row = (values[column] for column in (PICTURE, SUBJECT, SESSION, ROW))
        rules = {
            f"picture {picture:g} is none of the {len(self._pictures)}": picture
            in range(len(self._pictures)),
            f"it is of subject {subject:g}": subject == int(name[4:]),
            f"row {row:g} is none of the {betas.shape[0]} of the betas": _counts(row, betas.shape[0]),
            f"row {row:g} of the betas is not of session {session:g}": row // TRIALS == session - 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise damaged(sample.path, f"{sample.key}: {rule}")
        return values

    def _rois(self, name: str, voxels: int) -> dict[str, np.ndarray]:
        path = self.root / "brain_region_masks.hdf5"
        if not path.is_file():
            return {}
        roi = np.full(voxels, "", "<U16")
        for label in ("higher_vis", "V4", "V3", "V2", "V1"):
            mask = open_array(self.root, f"{path.name}:{name}/{label}").all().reshape(-1)
            if mask.shape != (voxels,):
                raise damaged(path, f"{name}/{label} has {len(mask)} voxels and the betas have {voxels}")
            roi[mask.astype(bool)] = label
        return {"roi": roi}

    def _splits(self) -> dict[str, NamedSplit]:
        """`new_test` and, where its trials are those of whole first sessions, `test`, by the field's names."""
        found = {
            "shared1000": NamedSplit(
                "test",
                sorted(frozenset().union(*self._test.values())),
                description="the shared pictures, all sessions: new_test of MindEye2",
            ),
            "session1": NamedSplit(
                "train",
                last_session=dict.fromkeys(self.subjects, 1),
                description="training trials of the first session: about one hour of data",
            ),
        }
        folders = {name: self.root / "wds" / name / "test" for name in self.subjects}
        if not all(folder.is_dir() for folder in folders.values()):
            return found
        old = {
            name: self._trials(name, numbered_tars(folder, "{}.tar"), self.subjects[name].betas)
            for name, folder in folders.items()
        }
        ids = sorted({n for trials in old.values() for n in _ids(trials)})
        last = {name: int(trials[:, SESSION].max(initial=1)) for name, trials in old.items()}
        for name, trials in old.items():
            test = self.subjects[name].test
            split = test[np.isin(test[:, PICTURE], ids) & (test[:, SESSION] <= last[name])]
            if set(split[:, ROW]) != set(trials[:, ROW]):
                self._notes["shared982"] = (
                    f"left out: the {len(trials)} trials of wds/{name}/test are not those of new_test in "
                    f"sessions 1 to {last[name]}"
                )
                return found
        found["shared982"] = NamedSplit(
            "test", ids, last, "the shared pictures in the sessions public before 2023: test of MindEye2"
        )
        return found


def _counts(value: float, count: int) -> bool:
    """Whether it is one of 0, 1, ... below `count`."""
    return bool(0 <= value < count and value == np.floor(value))


def _ids(trials: np.ndarray) -> list[int]:
    return [int(n) for n in np.unique(trials[:, PICTURE])]
