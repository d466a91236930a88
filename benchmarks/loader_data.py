"""The data of `loader.py`: the same trials as our data set and in MindEye2's layout, from seeded generators."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmri2img.datasets import NamedSplit, SessionTrials, add_feature_space, build_dataset

SPACE = "tokens"
COLUMNS = 17  # of MindEye2's behavioural rows: 0 is the picture, 5 the row of the betas
PARTS = {"behav": 1, "past_behav": 15, "future_behav": 15, "olds_behav": 3}


@dataclass
class Subject:
    """Three sessions, each with one trial of every picture."""

    seed: int
    voxels: int
    pictures: int
    sessions: tuple[int, ...] = (1, 2, 3)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """One ROI."""
        return {"roi": np.array(["V1"] * self.voxels)}

    def session(self, session: int) -> SessionTrials:
        """Normal responses."""
        generator = np.random.default_rng([self.seed, session])
        responses = generator.standard_normal((self.pictures, self.voxels), dtype=np.float32)
        return SessionTrials(responses, generator.permutation(self.pictures))


@dataclass
class Source:
    """Two subjects; the first four pictures are for test."""

    voxels: int
    pictures: int
    name: str = "loader benchmark"
    terms: str = "free"
    provenance: dict[str, str] = field(default_factory=dict)
    splits: Mapping[str, NamedSplit] = field(default_factory=dict)
    count: int = 2

    @property
    def subjects(self) -> dict[str, Subject]:
        """By subject id."""
        return {f"subj{i + 1:02d}": Subject(i, self.voxels, self.pictures) for i in range(self.count)}

    def picture(self, nsd_id: int) -> np.ndarray:
        """Noise, which does not compress."""
        return np.random.default_rng(nsd_id).integers(0, 256, (96, 96, 3), dtype=np.uint8)

    def captions(self, nsd_id: int) -> list[str]:
        """None."""
        return []

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """The first four pictures."""
        return nsd_id < 4


def make(folder: Path, pictures: int, voxels: int, tokens: tuple[int, ...]) -> None:
    """Write `set`, `quarter/set`, `features` and `mindeye2` into a folder."""
    source = Source(voxels, pictures)
    build_dataset(source, folder / "set")
    (folder / "quarter").mkdir()
    build_dataset(Source(voxels, pictures // 4), folder / "quarter/set")
    few = Source(8, min(pictures, 200), count=1)
    build_dataset(few, folder / "features", samples_per_shard=32)
    generator = np.random.default_rng(0)
    values = generator.standard_normal(tokens, dtype=np.float32)
    add_feature_space(
        folder / "features",
        name=SPACE,
        shape=tokens,
        dtype="bfloat16",
        extractor={},
        compute=lambda pictures, _: np.stack([np.roll(values, int(p[0, 0, 0])) for p in pictures]),
    )
    _mindeye2(folder / "mindeye2", source)


def _mindeye2(folder: Path, source: Source) -> None:
    import h5py

    folder.mkdir()
    generator = np.random.default_rng(0)
    with h5py.File(folder / "coco_images_224_float16.hdf5", "w") as file:
        images = file.create_dataset("images", (source.pictures, 3, 224, 224), "float16")
        for nsd_id in range(source.pictures):
            images[nsd_id] = generator.random((3, 224, 224), np.float32).astype(np.float16)
    for name, subject in source.subjects.items():
        row = 0
        train = folder / "wds" / name / "train"
        train.mkdir(parents=True)
        with h5py.File(folder / f"betas_all_{name}_fp32_renorm.hdf5", "w") as file:
            shape = (3 * source.pictures, source.voxels)
            betas = file.create_dataset("betas", shape, "float32")
            for session in subject.sessions:
                trials = subject.session(session)
                kept = [
                    i for i, n in enumerate(trials.nsd_ids.tolist()) if not source.is_test(name, n, session)
                ]
                betas[row : row + len(trials.nsd_ids)] = trials.responses
                _tar(train / f"{session - 1}.tar", [(int(trials.nsd_ids[i]), row + i) for i in kept])
                row += len(trials.nsd_ids)


def _tar(path: Path, trials: list[tuple[int, int]]) -> None:
    with tarfile.open(path, "w") as tar:
        for nsd_id, row in trials:
            for part, rows in PARTS.items():
                behaviour = np.full((rows, COLUMNS), -1.0)
                behaviour[:, 0], behaviour[:, 5] = nsd_id, row
                buffer = io.BytesIO()
                np.save(buffer, behaviour)
                member = tarfile.TarInfo(f"sample{row:09d}.{part}.npy")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)
