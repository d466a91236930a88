"""The manifest's models are the source of the committed JSON Schema, and its seals cover what they say."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from fmri2img.datasets import Dataset, verify
from fmri2img.datasets.manifest import (
    MANIFEST,
    read_manifest,
    schema_path,
    schema_text,
    seal,
    write_manifest,
)
from fmri2img.errors import DamageError

GOLDEN = Path(__file__).parent / "golden" / "v1"
WINDOWS = GOLDEN.with_name("v1-windows")
FINGERPRINT = "2d5b9a9011cc03f17ff4491cf319beabec4ce3cbb9c0ec12a1a74f38e9266e7e"


def test_the_committed_schema_is_that_of_the_models() -> None:
    assert schema_path().read_text() == schema_text(), "run fmri2img.datasets.manifest.write_schema()"


def test_the_fingerprint_is_of_the_data_and_not_of_words_about_them(tiny: Dataset) -> None:
    plain = tiny.manifest.model_dump()
    renamed = seal(plain | {"name": "other", "terms": "others", "provenance": {}})
    assert renamed.fingerprint == tiny.fingerprint
    assert renamed.digest != tiny.manifest.digest
    plain["shards"][0]["columns"]["responses"]["sha256"] = "0" * 64
    assert seal(plain).fingerprint != tiny.fingerprint


def test_a_named_split_is_a_part_of_a_partition(tiny: Dataset) -> None:
    plain = tiny.manifest.model_dump()
    plain["splits"]["few"] = {"partition": "test", "nsd_ids": [0, 2, 77]}
    few = Dataset(tiny.path, seal(plain)).samples("subj01", "few")
    assert few.nsd_id.tolist() == [0, 2]


def test_an_old_manifest_keeps_its_seals_when_it_is_written_anew() -> None:
    stored = json.loads((GOLDEN / MANIFEST).read_text())
    manifest = read_manifest(GOLDEN)
    assert manifest.model_dump() == stored
    again = seal(manifest.model_dump())
    assert (again.fingerprint, again.digest) == (stored["fingerprint"], stored["digest"])
    jsonschema.validate(stored, json.loads(schema_path().read_text()))


def test_keys_that_old_manifests_lack_are_sealed_where_they_are_used(tiny: Dataset) -> None:
    plain = tiny.manifest.model_dump()
    plain["splits"]["hour"] = {"partition": "train", "last_session": {"subj01": 1}}
    hour = seal(plain)
    plain["splits"]["hour"]["last_session"]["subj01"] = 2
    assert seal(plain).fingerprint != hour.fingerprint
    write_manifest(tiny.path, hour)
    assert read_manifest(tiny.path) == hour
    edited = (tiny.path / MANIFEST).read_text().replace('"subj01": 1\n', '"subj01": 2\n')
    (tiny.path / MANIFEST).write_text(edited)
    with pytest.raises(DamageError, match="its digest is not that of its contents"):
        read_manifest(tiny.path)


def test_a_default_written_into_a_stored_manifest_is_an_edit(tiny: Dataset) -> None:
    plain = json.loads((tiny.path / MANIFEST).read_text())
    plain["subjects"]["subj01"]["window"] = None
    (tiny.path / MANIFEST).write_text(json.dumps(plain))
    with pytest.raises(DamageError, match="so it was edited or damaged"):
        read_manifest(tiny.path)


def test_a_data_set_written_by_version_1_is_still_read() -> None:
    assert verify(GOLDEN) == []
    dataset = Dataset.open(GOLDEN)
    assert dataset.fingerprint == FINGERPRINT
    samples = dataset.samples("subj01", "train")
    assert samples.keys.tolist() == ["subj01_nsd00000", "subj01_nsd00001"]
    assert samples.sessions.tolist() == [[1, 1, 2, 2]] * 2
    expected = []
    for session in (1, 2):
        trial = np.arange(6)
        picture = (trial + session) % 3
        raw = (np.cos(np.outer(trial + 7 * session, np.arange(1, 5))) * 3 + session).astype(np.float32)
        basis = raw[picture != 2].astype(np.float64)
        expected.append(((raw - basis.mean(0)) / basis.std(0))[picture == 1])
    np.testing.assert_allclose(dataset.responses(samples, 1), np.concatenate(expected), rtol=1e-3)
    assert dataset.picture(samples, 1)[0, 0].tolist() == [1, 2, 3]
    assert dataset.captions(samples, 1) == ["picture 1"]
    assert dataset.feature(samples, 1, "tone").tolist() == [29.5, 30.5, 31.5]
    assert dataset.voxel_table("subj01")["roi"].tolist() == ["V1", "V1", "V2", ""]


def test_a_data_set_of_windows_with_behaviour_and_a_split_of_a_session_is_still_read() -> None:
    assert verify(WINDOWS) == []
    dataset = Dataset.open(WINDOWS)
    assert dataset.fingerprint == "42689b9b9be4b33473708c5a35c6c728f0d7829f52ae7c26264ff99f77adff5d"
    assert dataset.manifest.subjects["subj01"].window == 2
    assert dataset.manifest.subjects["subj01"].behaviour == ["isold", "rt"]
    samples = dataset.samples("subj01", "train")
    values = {
        session: (np.cos(np.arange(24).reshape(4, 2, 3) * session) * 3 + session).astype(np.float32)
        for session in (1, 2)
    }
    for i, picture in enumerate(samples.nsd_id.tolist()):
        expected, trials = [], []
        for session, raw in values.items():
            seen = (np.arange(4) + session) % 3
            basis = raw[seen != 2].reshape(-1, 3).astype(np.float64)
            expected += list(((raw - basis.mean(0)) / basis.std(0))[seen == picture])
            for trial in np.flatnonzero(seen == picture).tolist():
                speed = None if trial == 1 else trial / 4
                trials.append({"session": session, "trial": 2 * trial + 1, "rt": speed, "isold": trial % 2})
        np.testing.assert_allclose(dataset.responses(samples, i), expected, rtol=2e-3, atol=1e-3)
        assert dataset.trials(samples, i) == trials
        assert abs(int(dataset.picture(samples, i)[4, 4, 0]) - (60 * picture + 20)) <= 2
    first = dataset.samples("subj01", "first")
    assert first.sessions.max() == 1
    assert dataset.responses(first, 0).shape == (int(first.repeats[0]), 2, 3)
