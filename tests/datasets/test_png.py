"""PNG files of ours hold every pixel, as others read them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fmri2img.datasets.png import encode


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (12, 12), (37, 53), (425, 425)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "black", "white"])
def test_a_picture_comes_back_as_it_was(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(shape)
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] + np.arange(3) * 40
    picture = {
        "noise": rng.integers(0, 256, (*shape, 3)),
        "smooth": ramp % 256,
        "black": np.zeros((*shape, 3)),
        "white": np.full((*shape, 3), 255),
    }[kind].astype(np.uint8)
    data = encode(picture)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.verify()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_a_part_of_an_array_is_packed_as_a_copy_of_it_is() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert encode(whole[::2, 3:9]) == encode(whole[::2, 3:9].copy())
