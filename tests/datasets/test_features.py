"""A feature space is added whole or not at all, its statistics are over training pictures, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, add_feature_space, build_dataset, verify
from fmri2img.errors import InputError

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
    before = {p: p.read_bytes() for p in tiny.path.rglob("*") if p.is_file() and p.name != "dataset.json"}
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    assert dataset.fingerprint == tiny.fingerprint
    assert all(path.read_bytes() == data for path, data in before.items())
    samples = tiny.samples("subj01", "train")
    assert (tiny.responses(samples, 0) == dataset.responses(samples, 0)).all()


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


def test_an_attempt_that_dies_leaves_a_sound_data_set_and_can_be_repeated(
    tiny: Dataset, reading: Any
) -> None:
    calls = 0

    def dies(pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return tone(pictures, captions) + 1

    with pytest.raises(KeyboardInterrupt):
        add_feature_space(tiny.path, **TONE, compute=dies)
    reading(tiny.path)
    left = {problem.file for problem in verify(tiny.path)}
    assert left == {
        f"subj01/{shard}.tone.{end}"
        for shard in ("train-00000", "train-00001")
        for end in ("tar", "index.npz")
    }
    dataset = add_feature_space(tiny.path, **TONE, compute=tone)
    assert verify(tiny.path) == []
    samples = dataset.samples("subj01", "train")
    np.testing.assert_allclose(
        dataset.read_features(samples, range(7), "tone"),
        tone([dataset.picture(samples, i) for i in range(7)], []),
        rtol=1e-6,
    )


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
        ({"dtype": "int8"}, 0.0, "use float16 or float32"),
        ({"shape": (4,)}, 0.0, "returned float64 .* instead of floats"),
        ({}, np.nan, "not finite in float32"),
        ({"dtype": "float16"}, 1e6, "not finite in float16"),
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
