"""Writes small folders in the layouts that others published, with the truth of what is in them beside."""

from __future__ import annotations

import copy
import io
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import webdataset
from PIL import Image

from fmri2img.datasets import Dataset, TrialSource

TRIALS = 750
PICTURES = 60
CAPTIONS = np.array([[f"{n} of {PICTURES}", "another" if n % 2 else "", ""] for n in range(PICTURES)])


@dataclass
class Truth:
    """What a folder holds: responses by (subject, session, trial number), pictures and captions by nsd_id."""

    root: Path
    responses: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    seen: dict[tuple[str, int, int], int] = field(default_factory=dict)
    pictures: dict[int, Any] = field(default_factory=dict)
    test: set[int] = field(default_factory=set)
    more: dict[str, Any] = field(default_factory=dict)

    def check(
        self, dataset: Dataset, normalised: dict[tuple[str, int, int], np.ndarray] | None = None
    ) -> None:
        """Every trial is in the data set once, with its response, picture and partition, and no other."""
        expected, found = normalised or self.responses, set()
        for subject in dataset.subjects:
            for partition in ("train", "test"):
                samples = dataset.samples(subject, partition)
                for i, n in enumerate(samples.nsd_id.tolist()):
                    assert (n in self.test) == (partition == "test")
                    self.check_picture(dataset.picture(samples, i), n)
                    for trial, response in zip(
                        dataset.trials(samples, i), dataset.responses(samples, i), strict=True
                    ):
                        place = (subject, trial["session"], trial["trial"])
                        assert self.seen[place] == n
                        np.testing.assert_allclose(response, expected[place], rtol=2e-3, atol=2e-3)
                        found.add(place)
        assert found == set(self.responses)

    def check_picture(self, shown: np.ndarray, nsd_id: int) -> None:
        picture = self.pictures[nsd_id]
        if isinstance(picture, bytes):
            picture = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        assert (shown == picture).all()

    def check_source(self, source: TrialSource) -> None:
        """The same of the source itself, before it is built."""
        found = set()
        for name, subject in source.subjects.items():
            for session in subject.sessions:
                trials = subject.session(session)
                numbers = np.arange(1, len(trials.nsd_ids) + 1) if trials.numbers is None else trials.numbers
                assert (np.diff(numbers) > 0).all()
                for number, n, response in zip(
                    numbers.tolist(), trials.nsd_ids.tolist(), trials.responses, strict=True
                ):
                    assert self.seen[name, session, number] == n
                    np.testing.assert_array_equal(response, self.responses[name, session, number])
                    assert source.is_test(name, n, session) == (n in self.test)
                    found.add((name, session, number))
        assert found == set(self.responses)


def jpeg(nsd_id: int) -> bytes:
    """A file as a camera writes it."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(nsd_id).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def behaviour_row(
    generator: np.random.Generator, picture: int, subject: int, session: int, trial: int
) -> Any:
    """The seventeen values of `behav.npy`; some of those that can be missing are."""
    run = trial // 63
    row = [
        picture,
        subject,
        session,
        run + 1,
        trial % 63 + 1,
        (session - 1) * TRIALS + trial,
        737_000 + session,
    ]
    answers = generator.choice([-1.0, 0.0, 1.0, 650.0], 9).tolist()
    return np.array([[*row, *answers, float(picture < 3)]])


SUBJECTS = {"subj04": 5, "subj08": 7}
"""Thirty sessions each."""


def write_mindeye2(root: Path) -> Truth:
    """Pictures 0 to 2 are shared, the others of one subject; the first 27 sessions are the old release."""
    truth = Truth(root, test={0, 1, 2})
    levels = np.random.default_rng(9).integers(0, 256, (PICTURES, 3, 6, 5))
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        file["images"] = (levels / 255).astype(np.float16)
    truth.pictures = {n: levels[n].transpose(1, 2, 0).astype(np.uint8) for n in range(PICTURES)}
    np.save(root / "COCO_73k_annots_curated.npy", CAPTIONS)
    masks = h5py.File(root / "brain_region_masks.hdf5", "w")
    for subject, voxels in SUBJECTS.items():
        generator = np.random.default_rng(voxels)
        for voxel, label in enumerate(("V1", "V2", "V3", "V4", "higher_vis")):
            masks[f"{subject}/{label}"] = np.arange(voxels) == voxel
        betas = generator.normal(size=(30 * TRIALS, voxels)).astype(np.float32)
        with h5py.File(root / f"betas_all_{subject}_fp32_renorm.hdf5", "w") as file:
            file["betas"] = betas
        own = range(3, 30) if subject == "subj04" else range(30, 57)
        for folder in ("train", "test", "new_test"):
            (root / "wds" / subject / folder).mkdir(parents=True)
        old = webdataset.TarWriter(str(root / "wds" / subject / "test" / "0.tar"))
        new = webdataset.TarWriter(str(root / "wds" / subject / "new_test" / "0.tar"))
        for session in range(1, 31):
            train = webdataset.TarWriter(str(root / "wds" / subject / "train" / f"{session - 1}.tar"))
            for trial in np.sort(generator.choice(TRIALS, 4, replace=False)).tolist():
                picture = int(generator.choice([0, 1, 2, *generator.choice(own, 5).tolist()]))
                number, place = (session - 1) * TRIALS + trial, (subject, session, trial + 1)
                behaviour = behaviour_row(generator, picture, int(subject[4:]), session, trial)
                sample = {"__key__": f"sample{number:09d}", "behav.npy": behaviour}
                sample |= {
                    "past_behav.npy": np.full((15, 17), -1.0),
                    "future_behav.npy": np.full((15, 17), -1.0),
                    "olds_behav.npy": np.full((3, 17), -1.0),
                }
                for tar in [train] if picture > 2 else [new, old] if session <= 27 else [new]:
                    tar.write(sample)
                truth.responses[place], truth.seen[place] = betas[number], picture
                truth.more[str(place)] = behaviour[0]
            train.close()
        old.close()
        new.close()
    masks.close()
    return truth


def write_mindeye1(root: Path) -> Truth:
    """Two training tars, one of validation, one of test; a tar takes the place of a session."""
    truth, generator = Truth(root, test={0, 1, 2}), np.random.default_rng(1)
    np.save(root / "COCO_73k_annots_curated.npy", CAPTIONS)
    base = root / "webdataset_avg_split"
    tars = {
        "train/train_subj01_0": [5, 3, 9, 7],
        "train/train_subj01_1": [8, 4, 20],
        "val/val_subj01_0": [6, 11],
        "test/test_subj01_0": [2, 0, 1],
    }
    for session, (name, ids) in enumerate(tars.items(), 1):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        number = 0
        with webdataset.TarWriter(str(base / f"{name}.tar")) as tar:
            for position, n in enumerate(ids):
                a, b, c = generator.normal(size=(3, 6)).astype(np.float16)
                rows = {1: [a, a, a], 2: [a, b, a] if position % 2 else [a, b, 0 * b], 3: [a, b, c]}
                repeats = 3 if n < 3 else 1 + position % 3
                truth.pictures[n] = jpeg(n)
                tar.write(
                    {
                        "__key__": f"sample{generator.integers(10**6):09d}",
                        "jpg": truth.pictures[n],
                        "nsdgeneral.npy": np.stack(rows[repeats]),
                        "coco73k.npy": np.array([n]),
                        "trial.npy": np.array([position]),
                        "num_uniques.npy": np.array([repeats]),
                        "wholebrain_3d.npy": np.zeros((3, 4, 4, 4)),
                    }
                )
                for response in [a, b, c][:repeats]:
                    number += 1
                    truth.responses["subj01", session, number] = response.astype(np.float32)
                    truth.seen["subj01", session, number] = n
    totals = {"train": 7, "val": 2, "test": 3}
    (base / "metadata_subj01.json").write_text(json.dumps({"totals": totals}))
    return truth


def write_braindiffuser(root: Path) -> Truth:
    """Pictures come in one by one over the sessions; those of sessions 38 to 40 are not in the arrays."""
    truth, generator = Truth(root, test=set()), np.random.default_rng(2)
    pictures = np.stack(
        [np.concatenate([np.arange(1000), 1000 + 9000 * s + np.arange(9000)]) % 73_000 for s in range(8)]
    )
    pictures[:, 1000:] = np.minimum(pictures[:, 1000:], 72_999)
    order = np.empty(40 * TRIALS, np.int64)
    known: list[int] = []
    for session in range(40):
        known += [session, 1000 + 2 * session] if session % 3 == 0 else [1000 + 2 * session]
        start = session * TRIALS
        order[start : start + TRIALS] = generator.choice(known, TRIALS)
        order[start + 7 * (session % 5) + 3] = known[-1]
    design = {
        "masterordering": order[None] + 1,
        "subjectim": pictures + 1,
        "sharedix": np.arange(1, 1001)[None],
    }
    scipy.io.savemat(root / "nsd_expdesign.mat", design)
    for subject, voxels in {"subj01": 6, "subj02": 4}.items():
        folder = root / "processed_data" / subject
        folder.mkdir(parents=True)
        betas = generator.normal(500, 300, (37 * TRIALS, voxels))
        trials: dict[int, list[int]] = {}
        for trial, number in enumerate(order[: 37 * TRIALS].tolist()):
            trials.setdefault(number, []).append(trial)
        for part in ("train", "test"):
            chosen = [number for number in trials if (number < 1000) == (part == "test")]
            ids = [int(pictures[int(subject[4:]) - 1, number]) for number in chosen]
            averages = np.stack([betas[trials[number]].mean(0) for number in chosen])
            stimuli = np.stack(
                [np.random.default_rng(n).integers(0, 256, (5, 4, 3)).astype(float) for n in ids]
            )
            captions = np.array([[f"caption of {n}", "", f"again {n}"] for n in ids])
            for what, array in {"fmriavg_nsdgeneral": averages, "stim": stimuli, "cap": captions}.items():
                np.save(folder / f"nsd_{part}_{what}_sub{int(subject[4:])}.npy", array)
            for number, n, average, picture in zip(chosen, ids, averages, stimuli, strict=True):
                session, trial = divmod(trials[number][0], TRIALS)
                place = (subject, session + 1, trial + 1)
                truth.responses[place], truth.seen[place] = average.astype(np.float32), n
                truth.pictures[n] = picture.astype(np.uint8)
            truth.more[f"{subject}-{part}"] = (ids, averages)
            truth.test |= set(ids) if part == "test" else set()
    return truth


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Truth]:
    """Each layout once, not to be changed."""
    writers = {"mindeye2": write_mindeye2, "mindeye1": write_mindeye1, "braindiffuser": write_braindiffuser}
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in writers.items()}


def copy_of(truth: Truth, root: Path) -> Truth:
    """The same in a folder that a test may change."""
    shutil.copytree(truth.root, root)
    return replace(copy.deepcopy(truth), root=root)


@pytest.fixture
def mindeye2(published: dict[str, Truth], tmp_path: Path) -> Truth:
    return copy_of(published["mindeye2"], tmp_path / "published")


@pytest.fixture
def mindeye1(published: dict[str, Truth], tmp_path: Path) -> Truth:
    return copy_of(published["mindeye1"], tmp_path / "published")


@pytest.fixture
def braindiffuser(published: dict[str, Truth], tmp_path: Path) -> Truth:
    return copy_of(published["braindiffuser"], tmp_path / "published")
