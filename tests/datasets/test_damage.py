"""Nothing passes silently: each kind of damage is found by `verify` and by reading, and the file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, add_feature_space, verify
from fmri2img.datasets.manifest import BETAS
from fmri2img.errors import DamageError, InputError

TAR = "subj01/train-00000.responses.tar"
STIMULI = "subj02/test-00000.stimuli.tar"
INDEX = "subj01/train-00001.stimuli.index.npz"

KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a tar cut inside a member": (TAR, lambda d: d.truncate(TAR, 1100)),
    "a tar cut at a member": (TAR, lambda d: d.truncate(TAR, 1536)),
    "a tar cut in its padding": (TAR, lambda d: d.truncate(TAR, 10239)),
    "a missing member": (TAR, lambda d: d.drop_member(TAR, 0)),
    "a missing last member": (STIMULI, lambda d: d.drop_member(STIMULI, 5)),
    "a missing shard": (STIMULI, lambda d: d.remove(STIMULI)),
    "a missing index": (INDEX, lambda d: d.remove(INDEX)),
    "a damaged index": (INDEX, lambda d: d.flip(INDEX, 300)),
    "a cut index": (INDEX, lambda d: d.truncate(INDEX, 100)),
    "a missing voxel table": ("subjects/subj02.npz", lambda d: d.remove("subjects/subj02.npz")),
    "a damaged voxel table": ("subjects/subj02.npz", lambda d: d.flip("subjects/subj02.npz", 200)),
    "a stray shard": (
        "subj01/train-00099.responses.tar",
        lambda d: d.copy(TAR, "subj01/train-00099.responses.tar"),
    ),
    "a stray shard outside": (
        "train-00000.stimuli.tar",
        lambda d: d.copy(STIMULI, "train-00000.stimuli.tar"),
    ),
    "a shard in another's place": (TAR, lambda d: d.copy("subj01/train-00001.responses.tar", TAR)),
    "a damaged manifest": ("dataset.json", lambda d: d.flip("dataset.json", 60)),
    "a cut manifest": ("dataset.json", lambda d: d.truncate("dataset.json", 500)),
}


def test_a_sound_data_set_has_no_problems(tiny: Dataset, reading: Callable[[Path], None]) -> None:
    seen: list[tuple[str, int, int]] = []
    assert verify(tiny.path, lambda *step: seen.append(step)) == []
    assert seen[-1][1] == seen[-1][2] > 0
    reading(tiny.path)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_by_verify_and_by_reading(
    damage: Any, reading: Callable[[Path], None], kind: str
) -> None:
    file, inflict = KINDS[kind]
    inflict(damage)
    problems = verify(damage.root)
    assert file in {problem.file for problem in problems}
    with pytest.raises(DamageError, match=file.split("/")[-1]):
        reading(damage.root)


@pytest.mark.parametrize("column", ["responses", "stimuli"])
def test_a_flipped_byte_in_any_member_is_found_with_its_key(
    tiny: Dataset, damage: Any, reading: Callable[[Path], None], column: str
) -> None:
    index = tiny.index(0, column)
    file = tiny.manifest.shards[0].columns[column].file
    sound = (tiny.path / file).read_bytes()
    for row, key in enumerate(index.keys.tolist()):
        for place in range(len(index.fields)):
            last = int(index.offset[row, place] + index.size[row, place]) - 1
            damage.flip(file, last)
            found = [(p.file, p.key) for p in verify(tiny.path)]
            assert (file, key) in found
            with pytest.raises(DamageError, match=f"{file}: {key}: the crc32"):
                reading(tiny.path)
            (tiny.path / file).write_bytes(sound)


def test_a_flipped_byte_anywhere_in_a_tar_is_found_by_verify(tiny: Dataset, damage: Any) -> None:
    sound = (tiny.path / TAR).read_bytes()
    for position in np.random.default_rng(0).choice(len(sound), 40, replace=False).tolist():
        damage.flip(TAR, position)
        assert {problem.file for problem in verify(tiny.path)} == {TAR}
        (tiny.path / TAR).write_bytes(sound)


def test_a_damaged_trial_is_found_when_it_alone_is_read(tiny: Dataset, damage: Any) -> None:
    samples, index = tiny.samples("subj01", "train"), tiny.index(2, "responses")
    number = int(samples.shard[0])
    index = tiny.index(number, "responses")
    field = index.fields.index(BETAS)
    end = int(index.offset[0, field] + index.size[0, field])
    damage.flip(tiny.manifest.shards[number].columns["responses"].file, end - 1)
    last = int(samples.repeats[0]) - 1
    tiny.read_trials(samples, [0], [0])
    with pytest.raises(DamageError, match=f"{samples.keys[0]}: the crc32"):
        tiny.read_trials(samples, [0], [last])


def test_verify_goes_on_to_the_last_problem(damage: Any) -> None:
    damage.truncate(TAR, 1100).remove(STIMULI).flip(INDEX, 300).copy(TAR, "subj02/notes.txt")
    assert {problem.file for problem in verify(damage.root)} == {TAR, STIMULI, INDEX, "subj02/notes.txt"}


def test_damage_in_a_feature_column_is_found(
    tiny: Dataset, damage: Any, reading: Callable[[Path], None]
) -> None:
    add_feature_space(
        tiny.path,
        name="tone",
        shape=(2,),
        dtype="float32",
        extractor={},
        compute=lambda pictures, _: np.stack([p.mean((0, 1))[:2] for p in pictures]),
    )
    file = "subj01/test-00000.tone.tar"
    damage.flip(file, 512 + 130)
    assert {problem.file for problem in verify(tiny.path)} == {file}
    with pytest.raises(DamageError, match=file):
        reading(tiny.path)


@pytest.mark.parametrize("file", ["/etc/passwd", "../x.tar", "subj01/../../x.tar", "a\\b"])
def test_the_manifest_cannot_name_files_outside_its_folder(tiny: Dataset, file: str) -> None:
    manifest = tiny.path / "dataset.json"
    plain = json.loads(manifest.read_text())
    plain["shards"][0]["columns"]["responses"]["file"] = file
    manifest.write_text(json.dumps(plain))
    with pytest.raises(DamageError, match="leaves the data set folder"):
        Dataset.open(tiny.path)


def test_an_edited_manifest_is_found_by_its_digest(tiny: Dataset) -> None:
    manifest = tiny.path / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"terms": "free"', '"terms": "none"'))
    with pytest.raises(
        DamageError, match=r"dataset\.json is damaged: its digest is not that of its contents"
    ):
        Dataset.open(tiny.path)


def test_an_unknown_schema_version_is_the_users_matter(tiny: Dataset) -> None:
    manifest = tiny.path / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(InputError, match="has schema version 7, and this fmri2img reads 1: use the version"):
        Dataset.open(tiny.path)
    with pytest.raises(InputError, match="schema version 7"):
        verify(tiny.path)
