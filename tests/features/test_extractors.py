"""Feature spaces against a truth: averages over areas by hand, and captions that mean the same or not."""

import os
import subprocess
import sys

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fmri2img.errors import InputError
from fmri2img.features.extractors import AnyExtractor, CaptionWords, Pixels

LUMINANCE = np.array([0.2125, 0.7154, 0.0721])


def pictures(n: int, height: int, width: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n)]


def areas(picture: np.ndarray, size: int) -> np.ndarray:
    """The mean of every area of a picture (H, W, 3), as (3, size, size) in [0, 1]."""
    height, width, _ = picture.shape
    rows = [slice(i * height // size, -(-(i + 1) * height // size)) for i in range(size)]
    columns = [slice(j * width // size, -(-(j + 1) * width // size)) for j in range(size)]
    means = [[picture[r, c].reshape(-1, 3).mean(0) / 255 for c in columns] for r in rows]
    return np.array(means).transpose(2, 0, 1)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 4), (12, 20, 4), (10, 7, 3), (6, 6, 1)])
def test_pixels_are_means_over_areas(height: int, width: int, size: int) -> None:
    shown = pictures(3, height, width)
    features = Pixels(size=size).compute(shown, [[]] * 3)
    assert features.dtype == np.float32 and features.shape == (3, *Pixels(size=size).shape)
    np.testing.assert_allclose(features, np.stack([areas(p, size) for p in shown]), atol=1e-6)


def test_one_channel_is_the_luminance_of_the_means() -> None:
    shown = pictures(2, 8, 8)
    features = Pixels(size=2, channels=1).compute(shown, [[]] * 2)
    truth = np.stack([np.tensordot(LUMINANCE, areas(p, 2), 1)[None] for p in shown])
    assert features.shape == (2, 1, 2, 2)
    np.testing.assert_allclose(features, truth, atol=1e-6)


def test_pictures_of_unequal_sizes_give_equal_shapes() -> None:
    assert Pixels(size=4).compute([*pictures(1, 8, 8), *pictures(1, 16, 12)], [[], []]).shape == (2, 3, 4, 4)


def embed(*captions: list[str], size: int = 256) -> np.ndarray:
    return CaptionWords(size=size).compute(pictures(len(captions), 2, 2), list(captions))


def test_caption_vectors_have_length_one() -> None:
    np.testing.assert_allclose(np.linalg.norm(embed(["a red ball"], ["two dogs"]), axis=1), 1, rtol=1e-6)


def test_the_order_of_captions_does_not_change_a_bit() -> None:
    captions = ["a red ball on the grass", "one ball", "a small red ball lies on green grass", "grass"]
    forward, backward = embed(captions, captions[::-1])
    assert forward.tobytes() == backward.tobytes()


@pytest.mark.slow
def test_every_process_makes_the_same_bytes() -> None:
    # Sets of strings have another order in every process, unless PYTHONHASHSEED says otherwise.
    script = (
        "from fmri2img.features.extractors import CaptionWords as C;"
        "c = ['a red ball lies on the green grass near two white dogs', 'dogs and a ball in a park'];"
        "print(C(size=64).compute([None], [c]).tobytes().hex())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-P", "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(told) == 1


def test_captions_that_share_words_are_nearer_than_those_that_do_not() -> None:
    ball, balls_too, dog = embed(["a red ball on grass"], ["a red ball on sand"], ["two dogs asleep"])
    assert ball @ balls_too > 0.4
    assert abs(ball @ dog) < 0.25


def test_pairs_of_words_tell_which_thing_is_red() -> None:
    one, other = embed(["a red ball and a blue box"], ["a blue ball and a red box"])
    assert one @ other < 0.9


def test_articles_and_case_say_nothing() -> None:
    one, other = embed(["A RED ball"], ["red ball"])
    np.testing.assert_array_equal(one, other)


def test_a_word_in_all_captions_counts_more_than_a_word_in_one() -> None:
    mixed, often, seldom = embed(["ball", "ball", "dog"], ["ball"], ["dog"])
    assert mixed @ often > mixed @ seldom + 0.2


def test_a_picture_without_captions_is_an_input_error() -> None:
    with pytest.raises(InputError, match="a picture without one; use pixels alone"):
        embed(["a ball"], [])


@pytest.mark.parametrize(
    "written", [{"kind": "pixels", "size": 0}, {"kind": "pixels", "colour": 3}, {"kind": "vgg"}]
)
def test_what_a_recipe_cannot_mean_is_refused(written: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(AnyExtractor).validate_python(written)
