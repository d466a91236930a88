"""Brain-Diffuser's prepared arrays as a trial source: responses averaged over repeats, pictures, captions.

Layout that `data/prepare_nsddata.py` of github.com/ozcelikfu/brain-diffuser writes (Ozcelik & VanRullen 2023,
Scientific Reports 13). The arrays do not name their pictures: rows are in the order in which a subject first
saw them in sessions 1 to 37, so the design of the experiment is needed to know which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.datasets.array_files import ArrayFile, open_array
from fmri2img.datasets.nsd.design import SHARED, Design
from fmri2img.datasets.nsd.layout import SESSIONS, TRIALS, known_subject
from fmri2img.datasets.nsd.release import TERMS
from fmri2img.datasets.prepared.pictures import CuratedCaptions
from fmri2img.datasets.prepared.published_tars import damaged
from fmri2img.datasets.source import NamedSplit, SessionTrials
from fmri2img.errors import InputError
from fmri2img.files import digest_json

USED_SESSIONS = 37
PARTS = ("train", "test")


def first_seen(design: Design, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """nsd_ids of training and of test pictures, int64, in the order the subject first saw them."""
    train, test = _first_trials(design, subject)
    pictures = design.pictures[list(SESSIONS).index(known_subject(subject))]
    return pictures[design.order[train]], pictures[design.order[test]]


def _first_trials(design: Design, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """For each training and test picture its first trial of the experiment, from 0, ascending."""
    order = design.order[: USED_SESSIONS * TRIALS]
    first = np.sort(np.unique(order, return_index=True)[1])
    shared = order[first] < SHARED
    return first[~shared], first[shared]


@dataclass(frozen=True)
class BrainDiffuserSubject:
    """One subject's averages as a `SubjectSource`: a picture's session is that in which it was first seen.

    Attributes:
        responses: of the training and the test pictures, `(pictures, voxels)`, read by rows.
        ids, first: (pictures,) of both, the nsd_id and the first trial of the experiment, from 0.
    """

    responses: tuple[ArrayFile, ArrayFile]
    ids: tuple[np.ndarray, np.ndarray]
    first: tuple[np.ndarray, np.ndarray]

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return self.responses[0].shape[1]

    @property
    def sessions(self) -> list[int]:
        """Sessions in which a picture was seen for the first time."""
        return [int(session) for session in np.unique(np.concatenate(self.first) // TRIALS + 1)]

    def voxel_table(self) -> dict[str, np.ndarray]:
        """Nothing is known of the voxels but that they are nsdgeneral's."""
        return {}

    def session(self, session: int) -> SessionTrials:
        """Averages of the pictures first seen in a session, in the order seen."""
        rows = [np.flatnonzero(first // TRIALS + 1 == session) for first in self.first]
        parts = range(len(PARTS))
        first = np.concatenate([self.first[part][rows[part]] for part in parts])
        order = np.argsort(first)
        responses = np.concatenate([self.responses[part].rows(rows[part]) for part in parts])
        return SessionTrials(
            responses=responses[order].astype(np.float32),
            nsd_ids=np.concatenate([self.ids[part][rows[part]] for part in parts])[order],
            numbers=first[order] - (session - 1) * TRIALS + 1,
        )


class BrainDiffuserSource:
    """The arrays as a `TrialSource`.

    Args:
        root: the folder with `processed_data`.
        names: the subjects, such as `subj01`.
        design: `nsd_expdesign.mat`; where Brain-Diffuser's download puts it in `root` otherwise.

    Raises:
        InputError: a file that is missing, or arrays that are not those of the design.
    """

    name = "braindiffuser"
    terms = TERMS

    def __init__(self, root: str | Path, names: Sequence[str], *, design: str | Path | None = None) -> None:
        self.root = Path(root)
        path = Path(design) if design else self.root / "nsddata/experiments/nsd/nsd_expdesign.mat"
        if not path.is_file():
            raise InputError(
                f"There is no {path}, and without the design nobody knows of which pictures the arrays are: name "
                "the file with --design, or bring it with: fmri2img data fetch nsd"
            )
        if not names or len(set(names)) != len(names):
            raise InputError(f"Subjects {list(names)}: name at least one, and none twice.")
        self._design = Design.load(path)
        self._pictures: dict[int, tuple[ArrayFile, int]] = {}
        self._captions: dict[int, tuple[CuratedCaptions, int]] = {}
        self.subjects = {name: self._subject(known_subject(name)) for name in names}
        self._test = frozenset(n for subject in self.subjects.values() for n in subject.ids[1].tolist())

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from."""
        return {
            "release": "arrays of prepare_nsddata.py, github.com/ozcelikfu/brain-diffuser",
            "betas": "nsdgeneral, func1pt8mm, betas_fithrf_GLMdenoise_RR, averaged over repeats in sessions 1 to 37",
            "sessions": "a picture's session is that in which it was first seen",
            "captions": "some" if self._captions else "none",
            "pictures_sha256": digest_json(
                [[name, [ids.tolist() for ids in subject.ids]] for name, subject in self.subjects.items()]
            ),
        }

    @property
    def splits(self) -> dict[str, NamedSplit]:
        """The field's name of the test set."""
        return {"shared982": NamedSplit("test", description="the shared pictures seen in sessions 1 to 37")}

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`."""
        array, row = self._pictures[nsd_id]
        values = array.rows(np.array([row]))[0]
        if values.dtype == np.uint8:
            return values
        whole = np.round(values)
        if not ((whole >= 0) & (whole <= 255) & (whole == values)).all():
            raise damaged(
                self.root / array.reference, f"row {row} has values that are not whole numbers from 0 to 255"
            )
        return whole.astype(np.uint8)

    def captions(self, nsd_id: int) -> list[str]:
        """COCO's captions, where `nsd_*_cap_sub*.npy` is there."""
        if nsd_id not in self._captions:
            return []
        file, row = self._captions[nsd_id]
        return file.row(row)

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture is one of the shared ones."""
        return nsd_id in self._test

    def _subject(self, name: str) -> BrainDiffuserSubject:
        ids = first_seen(self._design, name)
        folder, number = Path("processed_data") / name, int(name[4:])
        responses = []
        for part, nsd_ids in zip(PARTS, ids, strict=True):
            file = f"{folder}/nsd_{part}_{{}}_sub{number}.npy"
            averages = self._array(file.format("fmriavg_nsdgeneral"), len(nsd_ids), dimensions=2)
            stimuli = self._array(file.format("stim"), len(nsd_ids), dimensions=4)
            texts = self.root / file.format("cap")
            captions = CuratedCaptions(texts) if texts.is_file() else None
            if captions and len(captions) != len(nsd_ids):
                raise _unlike(texts, len(captions), len(nsd_ids))
            for row, n in enumerate(nsd_ids.tolist()):
                self._pictures[n] = (stimuli, row)
                if captions:
                    self._captions[n] = (captions, row)
            responses.append(averages)
        if responses[0].shape[1] != responses[1].shape[1]:
            raise damaged(
                self.root / folder,
                f"training averages have {responses[0].shape[1]} voxels and test averages {responses[1].shape[1]}",
            )
        return BrainDiffuserSubject((responses[0], responses[1]), ids, _first_trials(self._design, name))

    def _array(self, file: str, count: int, *, dimensions: int) -> ArrayFile:
        array = open_array(self.root, file)
        if len(array.shape) != dimensions or array.dtype.kind not in "fiu":
            raise damaged(self.root / file, f"it is {array.dtype} {array.shape}")
        if array.shape[0] != count:
            raise _unlike(self.root / file, array.shape[0], count)
        return array


def _unlike(path: Path, found: int, wanted: int) -> InputError:
    return InputError(
        f"{path} has {found} rows, and the design has {wanted} such pictures in sessions 1 to {USED_SESSIONS}: "
        "give arrays of these sessions and the design they were made with."
    )
