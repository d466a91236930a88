"""A tiny trial source with known responses, a built data set of it, and an object that damages one."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fmri2img.datasets import Dataset, NamedSplit, SessionTrials, build_dataset


@dataclass
class TinySubject:
    """Twelve trials a session of pictures 0 to 9; `edit` may change a session before it is given."""

    seed: int
    voxels: int
    sessions: list[int] = field(default_factory=lambda: [1, 2, 3])
    edit: Callable[[int, SessionTrials], None] | None = None

    def voxel_table(self) -> dict[str, np.ndarray]:
        return {
            "roi": np.array(["V1"] * 2 + ["FFA"] * (self.voxels - 2)),
            "noise_ceiling": np.linspace(0, 1, self.voxels),
        }

    def session(self, session: int) -> SessionTrials:
        generator = np.random.default_rng([self.seed, session])
        responses = generator.normal(5 * session, 2 + self.seed, (12, self.voxels)).astype(np.float32)
        trials = SessionTrials(responses, generator.permutation(np.arange(12) % 10))
        if self.edit is not None:
            self.edit(session, trials)
        return trials


@dataclass
class TinySource:
    """Two subjects; pictures below 3 are test pictures unless `test` says otherwise."""

    name: str = "tiny"
    terms: str = "free"
    provenance: dict[str, str] = field(default_factory=lambda: {"made": "for tests"})
    subjects: dict[str, TinySubject] = field(
        default_factory=lambda: {"subj02": TinySubject(2, 7), "subj01": TinySubject(1, 5)}
    )
    test: Callable[[str, int, int], bool] = lambda subject, nsd_id, session: nsd_id < 3

    @property
    def splits(self) -> dict[str, NamedSplit]:
        return {}

    def picture(self, nsd_id: int) -> np.ndarray:
        return np.random.default_rng(nsd_id).integers(0, 256, (8, 6, 3), dtype=np.uint8)

    def captions(self, nsd_id: int) -> list[str]:
        return [f"picture {nsd_id}", "été"][: nsd_id % 3]

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        return self.test(subject, nsd_id, session)


@dataclass
class Damage:
    """Does to a data set folder what disks, copies and people do."""

    root: Path

    def flip(self, file: str, position: int) -> Damage:
        data = bytearray((self.root / file).read_bytes())
        data[position] ^= 0xFF
        (self.root / file).write_bytes(data)
        return self

    def truncate(self, file: str, size: int) -> Damage:
        os.truncate(self.root / file, size)
        return self

    def remove(self, file: str) -> Damage:
        (self.root / file).unlink()
        return self

    def copy(self, file: str, to: str) -> Damage:
        shutil.copy(self.root / file, self.root / to)
        return self

    def swap(self, one: str, other: str) -> Damage:
        first, second = self.root / one, self.root / other
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
        return self

    def repeat_member(self, file: str, number: int, *, size: int | None = None) -> Damage:
        """Append one member of a tar once more; in the room at its end where `size` is the size it had."""
        path, buffer = self.root / file, io.BytesIO()
        with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w") as new:
            members = old.getmembers()
            for member in [*members, members[number]]:
                new.addfile(member, old.extractfile(member))
        data = buffer.getvalue()
        path.write_bytes(data if size is None else data.ljust(size, b"\0")[:size])
        return self

    def drop_member(self, file: str, number: int) -> Damage:
        """Rewrite a tar without one member and pad it to the size it had."""
        path = self.root / file
        size, buffer = path.stat().st_size, io.BytesIO()
        with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w") as new:
            for position, member in enumerate(old.getmembers()):
                if position != number:
                    new.addfile(member, old.extractfile(member))
        path.write_bytes(buffer.getvalue().ljust(size, b"\0")[:size])
        return self


def read_everything(path: Path) -> None:
    """Open a data set and read each sample of each partition from each column."""
    dataset = Dataset.open(path)
    for subject in dataset.subjects:
        dataset.voxel_table(subject)
        for partition in ("train", "test"):
            samples = dataset.samples(subject, partition)
            for i in range(len(samples)):
                dataset.responses(samples, i)
                dataset.trials(samples, i)
                dataset.picture(samples, i)
                dataset.captions(samples, i)
                for space in dataset.feature_spaces:
                    dataset.feature(samples, i, space)
            for space in dataset.feature_spaces:
                dataset.feature_statistics(space)


@pytest.fixture
def make_source() -> type[TinySource]:
    return TinySource


@pytest.fixture
def make_subject() -> type[TinySubject]:
    return TinySubject


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny source as a data set of shards of four samples, not to be changed."""
    return build_dataset(TinySource(), tmp_path_factory.mktemp("built") / "tiny", samples_per_shard=4).path


@pytest.fixture
def tiny(tmp_path: Path, built: Path) -> Dataset:
    """A copy of `built` that a test may change."""
    shutil.copytree(built, tmp_path / "tiny")
    return Dataset.open(tmp_path / "tiny")


@pytest.fixture
def damage(tiny: Dataset) -> Damage:
    return Damage(tiny.path)


@pytest.fixture
def reading() -> Callable[[Path], None]:
    return read_everything
