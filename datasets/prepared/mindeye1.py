"""MindEye1's published set as a trial source: tars with all repeats of each picture's responses and the picture.

Layout of `webdataset_avg_split` (and, with all sessions, `webdataset_avg_new`) of
huggingface.co/datasets/pscotti/naturalscenesdataset (Scotti et al. 2023, NeurIPS). How it was made was never
published; that it is z-scored by session is said in issue 33 of github.com/MedARC-AI/fMRI-reconstruction-NSD.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.datasets.nsd.layout import known_subject
from fmri2img.datasets.nsd.release import TERMS
from fmri2img.datasets.prepared.pictures import CAPTIONS, CuratedCaptions
from fmri2img.datasets.prepared.published_tars import TarSample, damaged, numbered_tars, read_samples
from fmri2img.datasets.source import NamedSplit, SessionTrials
from fmri2img.errors import InputError
from fmri2img.files import digest_json

PARTS = ("train", "val", "test")
TEST_NAMES = {982: "shared982", 1000: "shared1000"}
"""The field's names of the test sets, by how many pictures they have."""


@dataclass(frozen=True)
class MindEye1Subject:
    """One subject's tars, as a `SubjectSource`: a tar takes the place of a session, which the set does not tell.

    Attributes:
        tars: samples of each tar, in the order train, val, test.
        ids: the picture of each sample of each tar.
        parts: of which part each tar is.
        voxels: their number.
    """

    tars: Sequence[Sequence[TarSample]]
    ids: Sequence[Sequence[int]]
    parts: Sequence[str]
    voxels: int

    @property
    def sessions(self) -> list[int]:
        """A number for each tar, from 1."""
        return list(range(1, len(self.tars) + 1))

    def voxel_table(self) -> dict[str, np.ndarray]:
        """Nothing is known of the voxels but that they are nsdgeneral's."""
        return {}

    def session(self, session: int) -> SessionTrials:
        """The trials of one tar: every distinct repeat of each of its samples."""
        samples, ids = self.tars[session - 1], self.ids[session - 1]
        found = [_repeats(sample, self.voxels) for sample in samples]
        return SessionTrials(
            np.concatenate(found).astype(np.float32), np.repeat(ids, [len(repeats) for repeats in found])
        )

    def pictures(self, part: str) -> set[int]:
        """The pictures of `train`, `val` or `test`."""
        return {n for ids, where in zip(self.ids, self.parts, strict=True) if where == part for n in ids}


class MindEye1Source:
    """The set as a `TrialSource`: train and val are the training partition, pictures are stored as they are.

    Args:
        root: the folder with `train`, `val`, `test`, or the one that has it as `webdataset_avg_split`.
        names: the subjects, such as `subj01`.
        captions: `COCO_73k_annots_curated.npy`; the one in `root` or above it otherwise, if it is there.

    Raises:
        InputError: a tar that is missing.
        DamageError: a tar that is broken, or samples that do not fit each other.
    """

    name = "mindeye1"
    terms = TERMS

    def __init__(self, root: str | Path, names: Sequence[str], *, captions: str | Path | None = None) -> None:
        self.root = Path(root)
        if not (self.root / "train").is_dir() and (self.root / "webdataset_avg_split").is_dir():
            self.root = self.root / "webdataset_avg_split"
        if not names or len(set(names)) != len(names):
            raise InputError(f"Subjects {list(names)}: name at least one, and none twice.")
        given = Path(captions) if captions else None
        self._captions = CuratedCaptions.find(given, self.root, self.root.parent)
        self.subjects = {name: self._subject(known_subject(name)) for name in names}
        self._where = {
            n: sample
            for subject in self.subjects.values()
            for samples, ids in zip(subject.tars, subject.ids, strict=True)
            for sample, n in zip(samples, ids, strict=True)
        }
        self._test = {name: subject.pictures("test") for name, subject in self.subjects.items()}

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from, and what is not known of it."""
        return {
            "release": f"huggingface.co/datasets/pscotti/naturalscenesdataset, {self.root.name}",
            "betas": "nsdgeneral, func1pt8mm, betas_fithrf_GLMdenoise_RR, z-scored by session by its authors, of "
            "whom nobody published how; whether test trials took part is not known",
            "sessions": "the set does not tell a trial's session: the tar it is in takes its place (train, val, test)",
            "captions": CAPTIONS if self._captions else "none",
            "samples_sha256": digest_json(
                [
                    [name, sample.path.name, sample.key, n]
                    for name, subject in self.subjects.items()
                    for samples, ids in zip(subject.tars, subject.ids, strict=True)
                    for sample, n in zip(samples, ids, strict=True)
                ]
            ),
        }

    @property
    def splits(self) -> dict[str, NamedSplit]:
        """The authors' training and validation pictures, and the field's name of the test set."""
        found = {
            f"mindeye1-{part}": NamedSplit(
                "train", self._of(part), description=f"the authors' {part} pictures"
            )
            for part in ("train", "val")
            if self._of(part)
        }
        test = self._of("test")
        if len(test) in TEST_NAMES:
            found[TEST_NAMES[len(test)]] = NamedSplit("test", test, description="the authors' test pictures")
        return found

    def picture(self, nsd_id: int) -> bytes:
        """The JPEG or PNG file in the tar, as it is."""
        return self._where[nsd_id].read("jpg", "png")

    def captions(self, nsd_id: int) -> list[str]:
        """COCO's captions, where their file is there."""
        return self._captions.row(nsd_id) if self._captions else []

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture is in the subject's test tars."""
        return nsd_id in self._test[subject]

    def _of(self, part: str) -> list[int]:
        return sorted(set().union(*(subject.pictures(part) for subject in self.subjects.values())))

    def _subject(self, name: str) -> MindEye1Subject:
        tars: list[list[TarSample]] = []
        parts: list[str] = []
        for part in PARTS:
            pattern = f"{part}_{name}_{{}}.tar"
            if part == "val" and not any((self.root / part).glob(pattern.format("*"))):
                continue  # the set of all sessions has none
            read = [read_samples(path) for path in numbered_tars(self.root / part, pattern)]
            self._check_total(name, part, sum(len(samples) for samples in read))
            tars += read
            parts += [part] * len(read)
        ids = [[sample.whole_number("coco73k.npy") for sample in samples] for samples in tars]
        seen: dict[int, TarSample] = {}
        for sample, n in ((s, n) for t, i in zip(tars, ids, strict=True) for s, n in zip(t, i, strict=True)):
            if n in seen or n < 0:
                other = f", as has {seen[n].key} of {seen[n].path.name}" if n in seen else ""
                raise damaged(sample.path, f"sample {sample.key} has picture {n}{other}")
            seen[n] = sample
        if not seen:
            raise InputError(f"{self.root} has no samples of {name}: fetch its tars.")
        return MindEye1Subject(tars, ids, parts, next(iter(seen.values())).array("nsdgeneral.npy").shape[-1])

    def _check_total(self, name: str, part: str, found: int) -> None:
        """Compare with what the set's own metadata say."""
        path = self.root / f"metadata_{name}.json"
        if not path.is_file():
            return
        try:
            total = int(json.loads(path.read_text("utf-8"))["totals"][part])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, f"it does not say how many samples {part} has ({error!r})") from None
        if total != found:
            raise InputError(
                f"The {part} tars of {name} in {self.root} hold {found} samples, and {path.name} says {total}: "
                "fetch the tars that are missing."
            )


def _repeats(sample: TarSample, voxels: int) -> np.ndarray:
    """The responses of each repeat `(repeats, voxels)`.

    Every sample has three rows; where a picture was seen less often, the rows left over repeat others or are
    empty, and `num_uniques.npy` says how many are not.
    """
    rows = sample.array("nsdgeneral.npy")
    if rows.ndim != 2 or rows.shape[1] != voxels or rows.dtype.kind != "f":
        raise damaged(
            sample.path,
            f"{sample.key}.nsdgeneral.npy is {rows.dtype} {rows.shape} and must be (repeats, {voxels})",
        )
    kept: list[np.ndarray] = []
    for row in rows:
        empty = not row.any() or bool(np.isnan(row).all())
        if not empty and not any(np.array_equal(row, other) for other in kept):
            kept.append(row)
    uniques = sample.whole_number("num_uniques.npy")
    if len(kept) != uniques or not kept:
        raise damaged(
            sample.path,
            f"{sample.key}.nsdgeneral.npy has {len(kept)} distinct repeats and num_uniques.npy says {uniques}",
        )
    return np.stack(kept)
