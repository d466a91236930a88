"""Makes folders in the exact layout of the NSD release, of any size, with a design of the published counts.

Chunks of HDF5 files that nothing was written to take no disk, so that a release of full-size volumes and forty
sessions holds little more than the chosen voxels. Also used by `benchmarks/nsd_build.py`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io

SESSIONS = {f"subj{n:02d}": count for n, count in enumerate([40, 40, 32, 30, 40, 32, 40, 30], 1)}
RUNS = (63, 62) * 6
BETAS = {"b1": "betas_assumehrf", "b2": "betas_fithrf", "b3": "betas_fithrf_GLMdenoise_RR"}
LAST = (1, 27, 29, 30, 32, 37, 40)
"""Last sessions of the stretches of the experiment for which counts are published."""
SHARED_TRIALS = (62, 1985, 2113, 2188, 2371, 2770, 3000)
"""Trials of shared pictures up to these sessions."""


def published_order(seed: int = 0) -> np.ndarray:
    """`masterordering`: int64 `(30000,)` from 1, random but for the counts that are published of the real one.

    The first session has 688 trials of 536 unshared pictures, 413 of them seen once; of the shared ones, 907, 766
    and 515 are seen at least once, twice and three times within 30 sessions, 930 within 32, 982 within 37; of all,
    9209, 7846 and 5445 within 30, 9411 within 32; trials of shared pictures are as in `SHARED_TRIALS`.
    """
    rng = np.random.default_rng(seed)
    shared_counts = np.diff([0, *SHARED_TRIALS])
    all_counts = np.diff([0, *LAST]) * 750
    shared = _stretches(rng, 1000, (93, 141, 251, 515), shared_counts, (23, 52, 18), None)
    unshared = _stretches(
        rng, 9000, (698, 1222, 2150, 4930), all_counts - shared_counts, (179, 378, 141), (413, 94, 29)
    )
    order = []
    for stretch in range(len(LAST)):
        numbers = np.concatenate([shared[stretch], unshared[stretch] + 1000])
        order.append(rng.permutation(numbers))
    return np.concatenate(order) + 1


def _stretches(
    rng: np.random.Generator,
    count: int,
    early: tuple[int, ...],
    trials: np.ndarray,
    first_late: tuple[int, ...],
    in_first: tuple[int, ...] | None,
) -> list[np.ndarray]:
    """Numbers 0 to `count`, three trials each, dealt to the seven stretches.

    Args:
        early: how many numbers have 0, 1, 2 and 3 trials in the first four stretches (30 sessions).
        trials: of each stretch.
        first_late: how many of those with none are first seen in each of the last three stretches.
        in_first: how many numbers have 1, 2 and 3 trials in the first stretch; None for any.
    """
    times = rng.permutation(np.repeat(np.arange(4), early))
    dealt: list[list[np.ndarray]] = [[] for _ in trials]
    left = times.copy()
    if in_first is not None:
        for wanted, many in zip((3, 2, 1), in_first[::-1], strict=True):
            fit = np.flatnonzero((times >= wanted) & (left == times))
            numbers = rng.choice(fit, many, replace=False)
            left[numbers] -= wanted
            dealt[0].append(np.repeat(numbers, wanted))
    pool = rng.permutation(np.repeat(np.arange(count), left))
    _deal(pool, trials[:4], dealt[:4])
    new = np.split(rng.permutation(np.flatnonzero(times == 0)), np.cumsum(first_late)[:2])
    dealt[4].append(new[0])
    dealt[5] += [new[1], new[1]]
    dealt[6] += [new[1], np.repeat(new[2], 3)]
    open_late = np.where(times == 0, 0, 3 - times)
    open_late[new[0]] = 2
    _deal(rng.permutation(np.repeat(np.arange(count), open_late)), trials[4:], dealt[4:])
    return [np.concatenate(numbers) for numbers in dealt]


def _deal(pool: np.ndarray, trials: np.ndarray, dealt: list[list[np.ndarray]]) -> None:
    for wanted, numbers in zip(trials, dealt, strict=True):
        take = int(wanted) - sum(map(len, numbers))
        numbers.append(pool[:take])
        pool = pool[take:]
    assert not len(pool)


@dataclass
class Release:
    """A release being made in `root`; methods write its parts, attributes say what is in them.

    Attributes:
        shape: of the volumes, `(x, y, z)`.
        mask: bool, of that shape: the voxels of nsdgeneral.
    """

    root: Path
    shape: tuple[int, int, int]
    mask: np.ndarray
    space: str = "func1pt8mm"
    side: int = 425
    seed: int = 0
    subjects: list[str] = field(default_factory=list)

    @cached_property
    def order(self) -> np.ndarray:
        return published_order(self.seed)

    @cached_property
    def pictures(self) -> np.ndarray:
        """`subjectim`: int64 `(8, 10000)` from 1; a thousand shared, nine thousand of one's own."""
        ids = np.random.default_rng([self.seed, 73]).permutation(73_000) + 1
        own = ids[1000:].reshape(8, 9000)
        return np.concatenate([np.repeat(np.sort(ids[:1000])[None], 8, axis=0), own], axis=1)

    def nsd_ids(self, subject: str, session: int) -> np.ndarray:
        """int64 `(750,)` from 0."""
        trials = self.order[(session - 1) * 750 : session * 750] - 1
        return self.pictures[int(subject[-2:]) - 1, trials] - 1

    def betas(self, subject: str, session: int) -> np.ndarray:
        """int16 `(750, voxels)`, 300 times per cent, of the voxels of the mask in the order of `argwhere`."""
        rng = np.random.default_rng([self.seed, int(subject[-2:]), session])
        values = rng.standard_normal((750, int(self.mask.sum())), np.float32)
        return np.round(values * 600 + 100).astype(np.int16)

    def path(self, name: str) -> Path:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        return self.root / name

    def write_design(self) -> Release:
        stimpattern = np.zeros((40, 12, 75))
        for run, trials in enumerate(RUNS):
            stimpattern[:, run, 3 : 3 + trials] = 1
        scipy.io.savemat(
            self.path("nsddata/experiments/nsd/nsd_expdesign.mat"),
            {
                "masterordering": self.order[None].astype(float),
                "subjectim": self.pictures.astype(float),
                "sharedix": self.pictures[:1, :1000].astype(float),
                "stimpattern": stimpattern,
            },
        )
        return self

    def write_table(self, ids: Iterable[int] | None = None) -> Release:
        """`nsd_stim_info_merged.csv`, whole or of some pictures; even nsd_ids are of COCO's val2017."""
        shared = set((self.pictures[0, :1000] - 1).tolist())
        with open(self.path("nsddata/experiments/nsd/nsd_stim_info_merged.csv"), "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "shared1000"])
            for n in range(73_000) if ids is None else ids:
                split = "val2017" if n % 2 == 0 else "train2017"
                table.writerow([n, 100_000 + n, split, "(0, 0, 0.1, 0.1)", 0.0, n, False, n in shared])
        return self

    def write_captions(self, ids: Iterable[int]) -> Release:
        """Two captions a picture, in COCO's two files, which also hold pictures of nobody."""
        files: dict[str, list[dict[str, object]]] = {"train2017": [], "val2017": []}
        for n in ids:
            for k in range(2):
                files["val2017" if n % 2 == 0 else "train2017"].append(
                    {"image_id": 100_000 + n, "id": 2 * n + k, "caption": f"Picture {n}, é {k}\n"}
                )
        for split, entries in files.items():
            entries.insert(0, {"image_id": 1, "id": 0, "caption": "nobody's"})
            path = self.path(f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json")
            images = [{"id": 1, "file_name": "1.jpg"}]
            path.write_text(json.dumps({"info": {"year": 2017}, "images": images, "annotations": entries}))
        return self

    def write_rois(self, subject: str) -> Release:
        """nsdgeneral and prf-visualrois with both hemispheres, streams without; tables of the first two."""
        rng = np.random.default_rng([self.seed, int(subject[-2:]), 7])
        left = np.zeros(self.shape, bool)
        left[: self.shape[0] // 2] = True
        folder = f"nsddata/ppdata/{subject}/{self.space}/roi"
        visual = np.where(self.mask, rng.integers(0, 4, self.shape), -1)
        volumes = {"nsdgeneral": np.where(self.mask, 1, 0), "prf-visualrois": visual}
        for name, volume in volumes.items():
            self.write_volume(f"{folder}/{name}.nii.gz", volume)
            self.write_volume(f"{folder}/lh.{name}.nii.gz", np.where(left, volume, -1))
            self.write_volume(f"{folder}/rh.{name}.nii.gz", np.where(left, -1, volume))
        self.write_volume(f"{folder}/streams.nii.gz", np.where(self.mask, rng.integers(0, 3, self.shape), -1))
        labels = self.path(f"nsddata/freesurfer/{subject}/label/prf-visualrois.mgz.ctab")
        labels.write_text("0 Unknown\n1 V1v\n2 V1d\n3 V2v\n")
        self.path(f"nsddata/freesurfer/{subject}/label/nsdgeneral.mgz.ctab").write_text("1 nsdgeneral\n")
        return self

    def write_ncsnr(self, subject: str, version: str = "b3") -> np.ndarray:
        """float32 volume; one voxel of the mask is not a number, as invalid voxels are in the release."""
        ncsnr = np.random.default_rng([self.seed, 8]).random(self.shape, np.float32)
        ncsnr[tuple(np.argwhere(self.mask)[0])] = np.nan
        self.write_volume(f"{self._betas(subject, version)}/ncsnr.nii.gz", ncsnr)
        return ncsnr

    def write_volume(self, name: str, volume: np.ndarray) -> Path:
        dtype = np.float32 if volume.dtype.kind == "f" else np.int16
        image = nibabel.Nifti1Image(volume.astype(dtype), np.diag([1.8, 1.8, 1.8, 1.0]))
        nibabel.save(image, self.path(name))
        return self.root / name

    def write_session(
        self, subject: str, session: int, version: str = "b3", *, form: str = "hdf5", trials: int = 750
    ) -> Path:
        """`betas_sessionNN.hdf5`, chunked as the release's and empty outside the mask, or `.nii.gz`."""
        values = self.betas(subject, session)[:trials]
        path = self.path(f"{self._betas(subject, version)}/betas_session{session:02d}.{form}")
        places = np.argwhere(self.mask)
        if form == "nii.gz":
            volumes = np.zeros((*self.shape, trials), np.int16)
            volumes[self.mask] = values.T
            nibabel.save(nibabel.Nifti1Image(volumes, np.diag([1.8, 1.8, 1.8, 1.0])), path)
            return path
        with h5py.File(path, "w") as file:
            data = file.create_dataset(
                "betas", (trials, *self.shape[::-1]), np.int16, chunks=(trials, 1, 1, 1)
            )
            columns = np.ascontiguousarray(values.T)
            for (x, y, z), column in zip(places.tolist(), columns, strict=True):
                data.id.write_direct_chunk((0, z, y, x), column.tobytes())
        return path

    def write_behaviour(self, subject: str, sessions: Iterable[int]) -> Release:
        header = ["SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID", "TIME", "ISOLD", "ISCORRECT", "RT"]
        header += ["CHANGEMIND", "MEMORYRECENT", "MEMORYFIRST", "ISOLDCURRENT", "ISCORRECTCURRENT"]
        header += ["TOTAL1", "TOTAL2", "BUTTON", "MISSINGDATA"]
        runs = np.repeat(np.arange(1, 13), RUNS)
        within = np.concatenate([np.arange(1, n + 1) for n in RUNS])
        with open(self.path(f"nsddata/ppdata/{subject}/behav/responses.tsv"), "w") as file:
            file.write("\t".join(header) + "\n")
            for session in sessions:
                for trial, nsd_id in enumerate(self.nsd_ids(subject, session)):
                    row = [int(subject[-2:]), session, runs[trial], within[trial], nsd_id + 1, 1, 0.5, 0, 1]
                    row += [600 + trial if trial % 10 else "NaN", 0, "NaN", "NaN", 0, 1, 1, 0, 1, 0]
                    file.write("\t".join(map(str, row)) + "\n")
        return self

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(side, side, 3)`."""
        rng = np.random.default_rng([self.seed, nsd_id])
        return rng.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)

    def write_stimuli(self, ids: Iterable[int]) -> Release:
        """`nsd_stimuli.hdf5` with all 73,000 places, and pictures in some."""
        shape = (73_000, self.side, self.side, 3)
        with h5py.File(self.path("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"), "w") as file:
            data = file.create_dataset("imgBrick", shape, np.uint8, chunks=(1, *shape[1:]))
            for n in ids:
                data.id.write_direct_chunk((int(n), 0, 0, 0), self.picture(int(n)).tobytes())
        return self

    def seen(self, subjects: Iterable[str], sessions: int) -> list[int]:
        """nsd_ids that some subjects see in sessions 1 to `sessions`."""
        chosen = [self.nsd_ids(s, n) for s in subjects for n in range(1, min(sessions, SESSIONS[s]) + 1)]
        return [int(n) for n in np.unique(np.concatenate(chosen))]

    def _betas(self, subject: str, version: str) -> str:
        return f"nsddata_betas/ppdata/{subject}/{self.space}/{BETAS[version]}"


def small_release(root: Path, subjects: Iterable[str] = ("subj01", "subj04"), sessions: int = 2) -> Release:
    """Everything of some subjects and sessions, at volumes of 6 x 7 x 5 voxels and pictures of 12 pixels."""
    subjects = list(subjects)
    mask = np.random.default_rng(5).random((6, 7, 5)) < 0.2
    release = Release(root, mask.shape, mask, side=12, subjects=subjects)
    seen = release.seen(subjects, sessions)
    release.write_design().write_table().write_captions(seen).write_stimuli(seen)
    for subject in subjects:
        release.write_rois(subject).write_behaviour(subject, range(1, sessions + 1))
        release.write_ncsnr(subject)
        for session in range(1, sessions + 1):
            release.write_session(subject, session)
    return release
