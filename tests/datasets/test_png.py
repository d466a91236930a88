"""Our PNG bytes are what every decoder reads, pixel for pixel, and do not depend on the processor."""

from __future__ import annotations

import hashlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmri2img.datasets.png import encode_png


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.verify()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 256), st.integers(0, 2**32 - 1))
def test_what_is_encoded_is_decoded_pixel_for_pixel(height: int, width: int, levels: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)
    assert (decoded(encode_png(picture)) == picture).all()


@pytest.mark.parametrize("view", [np.s_[::2, ::3], np.s_[::-1], np.s_[:, ::-1, ::-1]])
def test_views_of_larger_arrays_are_encoded_too(view: tuple[slice, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)[view]
    assert (decoded(encode_png(picture)) == picture).all()


def test_flat_pictures_are_small() -> None:
    assert len(encode_png(np.full((425, 425, 3), 128, np.uint8))) < 8000


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="this Python comes with zlib-ng")
def test_the_bytes_are_those_of_every_machine_with_the_same_zlib() -> None:
    y, x = np.mgrid[:50, :60]
    picture = np.stack([x * y % 251, x + y, (x - y) % 256], axis=-1).astype(np.uint8)
    digest = hashlib.sha256(encode_png(picture)).hexdigest()
    assert digest == "25da4f2e97c8330793ce3a1d06c8dc8a0aed0da281764f8245b1a2049afd5f98"
