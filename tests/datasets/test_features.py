"""A feature space is added whole or not at all, its statistics are over training pictures, each once."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, add_feature_space, build_dataset, verify
from fmri2img.datasets.croissant import croissant
from fmri2img.datasets.feature_columns import plan
from fmri2img.errors import DamageError, InputError

TONE: dict[str, Any] = {
    "name": "tone",
    "shape": (3,),
    "dtype": "float32",
    "extractor": {"model": "mean colour"},
}


def tone(pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
    return np.stack([picture.mean((0, 1)) for picture in pictures])


def test_features_are_those_of_the_pictures(tiny: Dataset, make_source: Any) -> None:
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    for split in ("train", "test"):
        samples = dataset.samples("subj02", split)
        expected = [make_source().picture(n).mean((0, 1)) for n in samples.nsd_id.tolist()]
        np.testing.assert_allclose(
            dataset.read_features(samples, range(len(samples)), "tone"), expected, rtol=1e-6
        )
        np.testing.assert_allclose(dataset.feature(samples, 1, "tone"), expected[1], rtol=1e-6)
    assert verify(tiny.path) == []


def test_statistics_are_over_distinct_training_pictures(tiny: Dataset, make_source: Any) -> None:
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    training = {n for s in dataset.subjects for n in dataset.samples(s, "train").nsd_id.tolist()}
    features = np.stack([make_source().picture(n).mean((0, 1)) for n in sorted(training)])
    mean, std = dataset.feature_statistics("tone")
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, features.std(0), rtol=1e-6)


def test_constant_features_are_harmless_to_divide_by(tiny: Dataset) -> None:
    dataset = add_feature_space(
        tiny.path, **TONE, compute=lambda pictures, _: np.full((len(pictures), 3), 0.1)
    )
    np.testing.assert_array_equal(dataset.feature_statistics("tone")[1], 1)


def test_adding_a_space_changes_no_byte_and_not_the_fingerprint(tiny: Dataset) -> None:
    told = ("dataset.json", "croissant.json")
    before = {p: p.read_bytes() for p in tiny.path.rglob("*") if p.is_file() and p.name not in told}
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    assert dataset.fingerprint == tiny.fingerprint
    assert all(path.read_bytes() == data for path, data in before.items())
    samples = tiny.samples("subj01", "train")
    assert (tiny.responses(samples, 0) == dataset.responses(samples, 0)).all()


def test_the_croissant_file_tells_of_the_space(tiny: Dataset) -> None:
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    told = json.loads((tiny.path / "croissant.json").read_text())
    assert told == croissant(dataset.manifest)
    assert "tone.tar" in json.dumps(told)


def test_a_space_that_is_there_is_left_alone(tiny: Dataset) -> None:
    add_feature_space(tiny.path, **TONE, compute=tone)
    manifest = (tiny.path / "dataset.json").read_bytes()

    def never(pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
        raise AssertionError("computed again")

    add_feature_space(tiny.path, **TONE, compute=never)
    assert (tiny.path / "dataset.json").read_bytes() == manifest
    other = TONE | {"extractor": {"model": "another"}}
    with pytest.raises(InputError, match=r"already has a feature space tone, .*: choose another name"):
        add_feature_space(tiny.path, **other, compute=tone)


class Dies:
    """An extractor that is stopped at its n-th call; before that it is `tone` plus `offset`."""

    def __init__(self, at: int, offset: float = 0.0) -> None:
        self.at, self.offset, self.calls = at, offset, 0

    def __call__(self, pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return tone(pictures, captions) + self.offset


def bytes_of(dataset: Dataset) -> dict[str, bytes]:
    return {
        str(path.relative_to(dataset.path)): path.read_bytes()
        for path in dataset.path.rglob("*")
        if path.is_file()
    }


def test_a_job_that_dies_leaves_a_sound_data_set_that_shows_no_part_of_it(
    tiny: Dataset, reading: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        add_feature_space(tiny.path, **TONE, compute=Dies(3))
    reading(tiny.path)
    assert Dataset.open(tiny.path).feature_spaces == {}
    left = {problem.file for problem in verify(tiny.path)}
    assert left == {
        f"subj01/{shard}.tone.{end}"
        for shard in ("train-00000", "train-00001")
        for end in ("tar", "index.npz")
    }


def test_the_same_job_goes_on_shard_by_shard_to_the_same_bytes(
    tiny: Dataset, built: Path, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "undisturbed")
    whole = add_feature_space(tmp_path / "undisturbed", **TONE, compute=tone)
    shards, calls = fresh(tiny), 0
    for _ in range(2, shards, 2):
        again = Dies(at=3)  # two shards a job
        with pytest.raises(KeyboardInterrupt):
            add_feature_space(tiny.path, **TONE, compute=again)
        calls += 2
        assert len(list(tiny.path.glob("*/*.tone*.tar"))) >= calls
    last = Dies(at=0)
    assert bytes_of(add_feature_space(tiny.path, **TONE, compute=last)) == bytes_of(whole)
    assert calls + last.calls == shards


def fresh(dataset: Dataset) -> int:
    """Shards that have a picture which none before them has."""
    seen, count = set[int](), 0
    for number in range(len(dataset.manifest.shards)):
        ids = set(dataset.shard_samples(number).nsd_id.tolist())
        count += bool(ids - seen)
        seen |= ids
    return count


def test_a_picture_that_several_subjects_saw_is_computed_once(tiny: Dataset, make_source: Any) -> None:
    shown: list[bytes] = []

    def remembered(pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
        shown.extend(picture.tobytes() for picture in pictures)
        return tone(pictures, captions)

    add_feature_space(tiny.path, **TONE, compute=remembered)
    tables = [tiny.shard_samples(number) for number in range(len(tiny.manifest.shards))]
    distinct = {n for table in tables for n in table.nsd_id.tolist()}
    assert sorted(shown) == sorted(make_source().picture(n).tobytes() for n in distinct)
    assert len(distinct) < sum(len(table) for table in tables)


def test_a_shard_of_new_and_known_pictures_is_put_together(
    tmp_path: Path, make_source: Any, make_subject: Any
) -> None:
    def few(session: int, trials: Any) -> None:
        trials.nsd_ids[:] %= 6  # subj02 sees 0 to 9: its shards hold pictures that subj01 saw and others

    subjects = {"subj01": make_subject(1, 5, edit=few), "subj02": make_subject(2, 7)}
    source = make_source(subjects=subjects)
    mixed = build_dataset(source, tmp_path / "mixed", normalise="none", samples_per_shard=4)
    works = plan(mixed)
    assert any(len(work.new) and len(work.copied) for work in works)
    shutil.copytree(mixed.path, tmp_path / "killed")
    whole = add_feature_space(mixed.path, **TONE, compute=tone)
    for subject, split in itertools.product(whole.subjects, ("train", "test")):
        samples = whole.samples(subject, split)
        if len(samples):
            expected = [make_source().picture(n).mean((0, 1)) for n in samples.nsd_id.tolist()]
            found = whole.read_features(samples, range(len(samples)), "tone")
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert verify(mixed.path) == [] and not list(mixed.path.glob("*/*.part.*"))
    for _ in range(fresh(mixed) - 1):
        with pytest.raises(KeyboardInterrupt):
            add_feature_space(tmp_path / "killed", **TONE, compute=Dies(2))
    dataset = add_feature_space(tmp_path / "killed", **TONE, compute=Dies(0))
    assert bytes_of(dataset) == bytes_of(whole)


def test_bytes_that_are_no_picture_are_named(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    key = str(tiny.samples("subj01", "train").keys[1])
    member = Dataset._member

    def broken(self: Dataset, samples: Any, i: int, column: str, ending: str) -> bytes:
        if column == "stimuli" and ending != "json" and samples.keys[i] == key:
            return b"no picture"
        return member(self, samples, i, column, ending)

    monkeypatch.setattr(Dataset, "_member", broken)
    with pytest.raises(DamageError, match=rf"stimuli\.tar: {key}: it is no picture"):
        add_feature_space(tiny.path, **TONE, compute=tone)


KILLED = """
import os, signal, sys
import numpy as np
from fmri2img.datasets import add_feature_space

calls = 0

def kill(pictures, captions):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.stack([picture.mean((0, 1)) for picture in pictures])

add_feature_space(
    sys.argv[1], name="tone", shape=(3,), dtype="float32", extractor={"model": "mean colour"}, compute=kill
)
"""


def test_a_process_that_is_killed_is_taken_up_by_the_next(tiny: Dataset, built: Path, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(tiny.path)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    job = Dies(at=0)
    dataset = add_feature_space(tiny.path, **TONE, compute=job)
    assert job.calls == fresh(tiny) - 2
    shutil.copytree(built, tmp_path / "undisturbed")
    assert bytes_of(dataset) == bytes_of(add_feature_space(tmp_path / "undisturbed", **TONE, compute=tone))


def test_a_finished_column_that_is_damaged_is_made_again(tiny: Dataset, damage: Any, built: Path) -> None:
    for harm in (
        lambda: damage.flip("subj01/train-00000.tone.tar", 700),
        lambda: damage.remove("subj01/train-00000.tone.index.npz"),
    ):
        with pytest.raises(KeyboardInterrupt):
            add_feature_space(tiny.path, **TONE, compute=Dies(2))
        harm()
    (tiny.path / "subj01" / ".train-00000.tone.index.npz.tmp-12345678").write_bytes(b"half")
    with open(tiny.path / "features" / ".tone.journal", "ab") as journal:
        journal.write(b'["subj01/train-00001", {"file":')  # killed within a line
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    assert verify(tiny.path) == [] and not list(tiny.path.glob("*/.*"))
    samples = dataset.samples("subj01", "train")
    expected = tone([dataset.picture(samples, i) for i in range(7)], [])
    np.testing.assert_allclose(dataset.read_features(samples, range(7), "tone"), expected, rtol=1e-6)


def test_another_identity_starts_afresh(tiny: Dataset) -> None:
    with pytest.raises(KeyboardInterrupt):
        add_feature_space(tiny.path, **TONE, compute=Dies(3, offset=1))
    job = Dies(at=0)
    dataset = add_feature_space(tiny.path, **TONE | {"extractor": {"model": "another"}}, compute=job)
    assert job.calls == fresh(tiny)
    samples = dataset.samples("subj01", "train")
    expected = tone([dataset.picture(samples, i) for i in range(7)], [])
    np.testing.assert_allclose(dataset.read_features(samples, range(7), "tone"), expected, rtol=1e-6)
    assert not list(tiny.path.rglob(".*"))


def test_two_spaces_live_side_by_side(tiny: Dataset) -> None:
    add_feature_space(tiny.path, **TONE, compute=tone)
    count: dict[str, Any] = {
        "name": "words",
        "shape": (1, 1),
        "dtype": "float16",
        "extractor": {"model": "captions"},
    }
    dataset = add_feature_space(
        tiny.path, **count, compute=lambda _, captions: np.array([[[len(c)]] for c in captions], float)
    )
    samples = dataset.samples("subj01", "train")
    assert sorted(dataset.feature_spaces) == ["tone", "words"]
    assert dataset.feature(samples, 0, "words").shape == (1, 1)
    assert dataset.feature(samples, 0, "words")[0, 0] == len(dataset.captions(samples, 0))
    assert verify(tiny.path) == []


@pytest.mark.parametrize(
    ("change", "result", "message"),
    [
        ({"name": "a.b"}, 0.0, "'a.b' cannot name a feature space"),
        ({"name": "responses"}, 0.0, "no name of"),
        ({"dtype": "int8"}, 0.0, "use float16, float32 or bfloat16"),
        ({"shape": (4,)}, 0.0, "returned float64 .* instead of floats"),
        ({}, np.nan, "not finite in float32"),
        ({"dtype": "float16"}, 1e6, "not finite in float16"),
        ({"dtype": "bfloat16"}, 3.4e38, "not finite in bfloat16"),
        ({"dtype": "bfloat16"}, np.nan, "not finite in bfloat16"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    tiny: Dataset, change: dict[str, Any], result: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        add_feature_space(
            tiny.path, **TONE | change, compute=lambda pictures, _: np.full((len(pictures), 3), result)
        )
    assert Dataset.open(tiny.path).feature_spaces == {}


def test_a_data_set_without_training_pictures_has_no_statistics(tmp_path: Path, make_source: Any) -> None:
    dataset = build_dataset(make_source(test=lambda *_: True), tmp_path / "set", normalise="none")
    assert len(dataset.samples("subj01", "train")) == 0
    with pytest.raises(InputError, match="no training pictures"):
        add_feature_space(dataset.path, **TONE, compute=tone)
