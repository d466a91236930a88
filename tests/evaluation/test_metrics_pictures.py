"""PixCorr and SSIM against brute force, a closed form and scikit-image; resizing against Pillow and by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmri2img.evaluation.metrics_pictures import Resizing, pixcorr, resize, ssim

Smooth = Callable[..., np.ndarray]
# scikit-image 0.26.0, float64, for the formulas in the test that uses them.
GOLDEN_SSIM = [0.716666638202, 0.556138323321]


def test_pixcorr_is_the_correlation_of_flattened_pictures(smooth: Smooth) -> None:
    a, b = smooth(11, seed=1), smooth(11, seed=2)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    assert pixcorr(a, b, size=32) == pytest.approx(expected, abs=1e-12)


def test_pixcorr_ignores_contrast_and_brightness_and_sees_negatives(smooth: Smooth) -> None:
    a = smooth(3)
    assert pixcorr(0.2 + 0.5 * a, a) == pytest.approx(1.0)
    assert pixcorr(1 - a, a) == pytest.approx(-1.0)


def test_a_constant_reconstruction_correlates_with_nothing(smooth: Smooth) -> None:
    constant = np.full((4, 3, 20, 20), 0.3)
    assert pixcorr(constant, smooth(4)).tolist() == [0, 0, 0, 0]
    assert pixcorr(constant.astype(np.float32), smooth(4)).tolist() == [0, 0, 0, 0]


def test_pictures_of_different_sizes_and_types_are_compared(smooth: Smooth) -> None:
    small, large = smooth(2, size=16), resize(smooth(2, size=16), 64)
    assert (pixcorr(small, large) > 0.99).all()
    eight_bit = np.round(small * 255).astype(np.uint8)
    assert pixcorr(eight_bit, torch.from_numpy(small).float()) == pytest.approx(1.0, abs=1e-3)


def test_bilinear_resize_keeps_a_ramp_and_a_mean() -> None:
    ramp = np.broadcast_to(np.arange(8) / 8, (1, 3, 8, 8))
    grown = resize(ramp.copy(), 16)[0, 0, 0]
    # Pixel centres: output i lies at (i + 0.5) / 2 - 0.5 in the input, held at the borders.
    assert grown.numpy() == pytest.approx(np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7) / 8)
    checks = np.indices((8, 8)).sum(0) % 2 * np.ones((1, 3, 1, 1))
    assert resize(checks, 2).numpy() == pytest.approx(0.5, abs=0.02)


def test_pictures_that_do_not_fit_are_refused(smooth: Smooth) -> None:
    with pytest.raises(ValueError, match="must be"):
        pixcorr(smooth(2).transpose(0, 2, 3, 1), smooth(2))
    with pytest.raises(ValueError, match="2 reconstructions and 3 pictures"):
        pixcorr(smooth(2), smooth(3))
    with pytest.raises(ValueError, match="window"):
        ssim(smooth(2), smooth(2), size=10)


@pytest.mark.parametrize("meaning", ["2d", "columns"])
def test_ssim_equals_scikit_image(smooth: Smooth, rng: np.random.Generator, meaning: Any) -> None:
    """`channel_axis=-1` on a grey picture is what `multichannel=True` meant before scikit-image 0.20."""
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed: golden values only")
    metrics = pytest.importorskip("skimage.metrics")
    a = smooth(9, size=60, seed=3)
    b = (a + 0.2 * rng.standard_normal(a.shape)).clip(0, 1)
    expected = [
        metrics.structural_similarity(
            color.rgb2gray(x.transpose(1, 2, 0)),
            color.rgb2gray(y.transpose(1, 2, 0)),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1 if meaning == "columns" else None,
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b, size=60, meaning=meaning) == pytest.approx(expected, abs=1e-9)


def test_the_two_meanings_of_ssim_are_not_the_same(smooth: Smooth, rng: np.random.Generator) -> None:
    a = smooth(4, size=60)
    b = (a + 0.2 * rng.standard_normal(a.shape)).clip(0, 1)
    assert (np.abs(ssim(a, b, size=60, meaning="columns") - ssim(a, b, size=60)) > 0.01).all()


def test_the_older_torchvision_samples_a_shrinking_picture_and_the_newer_one_averages_it() -> None:
    checks = np.indices((8, 8)).sum(0) % 2 * np.ones((1, 1, 1, 1))
    ramp = np.broadcast_to(np.arange(8.0) / 8, (1, 1, 8, 8)).copy()
    # Of 8 to 4 by sampling, output i is the mean of inputs 2i and 2i + 1; of 8 to 2, of 4i + 1 and 4i + 2.
    assert Resizing(2, by="tensor")(ramp)[0, 0, 0].tolist() == [1.5 / 8, 5.5 / 8]
    stripes = checks.copy()
    stripes[:] = np.array([0, 0, 1, 0] * 2)
    assert Resizing(2, by="tensor")(stripes)[0, 0, 0].tolist() == [0.5, 0.5]
    assert Resizing(2)(stripes)[0, 0, 0].numpy() == pytest.approx([0.3, 0.3], abs=0.05)


def test_growing_is_the_same_with_and_without_averaging(smooth: Smooth) -> None:
    small = smooth(2, size=20)
    sampled, averaged = Resizing(33, by="tensor")(small), Resizing(33, by="antialias")(small)
    assert sampled.numpy() == pytest.approx(averaged.numpy(), abs=1e-12)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_pillow_resizes_eight_bit_pictures(smooth: Smooth, name: Any) -> None:
    eight_bit = (smooth(1, size=40) * 255).round().astype(np.uint8)
    image = Image.fromarray(eight_bit[0].transpose(1, 2, 0)).resize((17, 17), Image.Resampling[name.upper()])
    found = Resizing(17, name, by="pillow")(eight_bit)[0]
    assert np.array_equal((found.numpy() * 255).round().transpose(1, 2, 0), np.asarray(image))
    assert (Resizing(40, name, by="pillow")(eight_bit)[0] * 255).numpy() == pytest.approx(eight_bit[0])


def test_another_preparation_takes_the_place_of_the_size(smooth: Smooth) -> None:
    a, b = smooth(2, size=40, seed=1), smooth(2, size=40, seed=2)
    twice = lambda pictures: Resizing(30)(Resizing(20, by="tensor")(pictures))  # noqa: E731
    assert pixcorr(a, b, prepare=twice) == pytest.approx(pixcorr(twice(a), twice(b), size=30))
    assert ssim(a, b, prepare=twice) == pytest.approx(ssim(twice(a), twice(b), size=30))
    assert ssim(a, b, prepare=twice, linear=True) == pytest.approx(ssim(a, b, prepare=twice), abs=1e-12)


def test_ssim_has_its_golden_values() -> None:
    y, x = np.mgrid[:48, :48] / 48
    seen = np.stack([np.stack([x, y, x * y]), np.stack([np.sin(9 * x) / 2 + 0.5, y, x])])
    made = np.stack([np.stack([y, x, x * y]), np.stack([np.cos(9 * x) / 2 + 0.5, y**2, x])])
    assert ssim(made, seen, size=48) == pytest.approx(GOLDEN_SSIM, abs=1e-9)


def test_ssim_is_one_for_the_same_picture_and_symmetric(smooth: Smooth) -> None:
    a, b = smooth(3, seed=1), smooth(3, seed=2)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, b, size=64) == pytest.approx(ssim(b, a, size=64))
