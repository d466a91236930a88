"""Every measure against brute force, a closed form or scikit-image."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from fmri2img.evaluation.metrics import pixcorr, resize, retrieval, ssim, two_way_identification

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


def test_ssim_equals_scikit_image(smooth: Smooth, rng: np.random.Generator) -> None:
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
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b, size=60) == pytest.approx(expected, abs=1e-9)


def test_ssim_has_its_golden_values() -> None:
    y, x = np.mgrid[:48, :48] / 48
    seen = np.stack([np.stack([x, y, x * y]), np.stack([np.sin(9 * x) / 2 + 0.5, y, x])])
    made = np.stack([np.stack([y, x, x * y]), np.stack([np.cos(9 * x) / 2 + 0.5, y**2, x])])
    assert ssim(made, seen, size=48) == pytest.approx(GOLDEN_SSIM, abs=1e-9)


def test_ssim_is_one_for_the_same_picture_and_symmetric(smooth: Smooth) -> None:
    a, b = smooth(3, seed=1), smooth(3, seed=2)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, b, size=64) == pytest.approx(ssim(b, a, size=64))


def brute_two_way(predicted: np.ndarray, candidates: np.ndarray, truth: np.ndarray) -> list[float]:
    scores = []
    for prediction, right in zip(predicted, truth, strict=True):
        r = [np.corrcoef(prediction, candidate)[0, 1] for candidate in candidates]
        others = [value for j, value in enumerate(r) if j != right]
        scores.append(
            np.mean([1.0 if v < r[right] - 1e-12 else 0.5 if v < r[right] + 1e-12 else 0.0 for v in others])
        )
    return [float(score) for score in scores]


def test_two_way_identification_equals_a_loop_over_pairs(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((17, 30))
    truth = rng.integers(17, size=40)
    predicted = candidates[truth] + 3 * rng.standard_normal((40, 30)) + 5
    expected = brute_two_way(predicted, candidates, truth)
    assert two_way_identification(predicted, candidates, truth) == pytest.approx(expected)
    assert two_way_identification(predicted[:17], candidates) == pytest.approx(
        brute_two_way(predicted[:17], candidates, np.arange(17))
    )


def test_square_two_way_identification_equals_the_published_expression(rng: np.random.Generator) -> None:
    reals = rng.standard_normal((25, 40))
    predictions = reals + 2 * rng.standard_normal((25, 40))
    r = np.corrcoef(reals, predictions)[:25, 25:]
    published = np.mean(np.sum(r < np.diag(r), 0)) / 24
    assert two_way_identification(predictions, reals).mean() == pytest.approx(published)


def test_identification_is_perfect_for_the_truth_and_even_for_noise(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((200, 50))
    assert (two_way_identification(2 * candidates + 1, candidates) == 1).all()
    assert two_way_identification(rng.standard_normal((200, 50)), candidates).mean() == pytest.approx(
        0.5, abs=0.06
    )


def test_a_tie_counts_one_half(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((3, 8))
    candidates[2] = candidates[0]
    assert two_way_identification(candidates, candidates).tolist() == [0.75, 1.0, 0.75]
    assert two_way_identification(np.ones((3, 8)), candidates).tolist() == [0.5, 0.5, 0.5]
    assert two_way_identification(np.zeros((3, 8)), candidates).tolist() == [0.5, 0.5, 0.5]


def test_many_features_in_blocks_give_the_same_scores(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = rng.standard_normal((10, 7, 15)).astype(np.float32)
    predicted = candidates + 4 * rng.standard_normal((10, 7, 15)).astype(np.float32)
    whole = two_way_identification(predicted, candidates), retrieval(predicted, candidates, pool=4).image
    monkeypatch.setattr("fmri2img.evaluation.metrics.CHUNK_FEATURES", 13)
    blocks = (
        two_way_identification(torch.from_numpy(predicted), candidates),
        retrieval(predicted, candidates, pool=4).image,
    )
    assert np.array_equal(whole, blocks)


def test_shapes_and_indices_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        two_way_identification(np.ones((4, 3)), np.ones((4, 5)))
    with pytest.raises(ValueError, match="indices must lie in 0 to 4"):
        two_way_identification(np.ones((2, 3)), np.ones((5, 3)), np.array([0, 5]))
    with pytest.raises(ValueError, match="1 distinct pictures"):
        retrieval(np.ones((2, 3)), np.ones((5, 3)), np.array([1, 1]))


def brute_retrieval(similarity: np.ndarray, pool: int, draws: int, seed: int) -> np.ndarray:
    """Pools really drawn, for a square matrix whose rows are queries."""
    rng = np.random.default_rng(seed)
    n = len(similarity)
    found = np.zeros((draws, n))
    for draw in range(draws):
        for i in range(n):
            others = rng.choice(np.delete(np.arange(n), i), pool - 1, replace=False)
            found[draw, i] = similarity[i, i] > similarity[i, others].max()
    return found.mean(0)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def test_retrieval_agrees_with_pools_really_drawn_in_both_directions(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((30, 12))
    predicted = candidates + 1.2 * rng.standard_normal((30, 12))
    result = retrieval(predicted, candidates, pool=8, draws=1000, seed=1)
    similarity = cosine(predicted, candidates)
    # Two means of 1000 draws each: within 0.08 for all 30 items.
    assert result.image == pytest.approx(brute_retrieval(similarity, 8, 1000, 2), abs=0.08)
    assert result.brain == pytest.approx(brute_retrieval(similarity.T, 8, 1000, 3), abs=0.08)
    assert not np.allclose(result.image, result.brain, atol=0.1)


def test_retrieval_tends_to_its_closed_form(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((40, 10))
    truth = rng.integers(40, size=60)
    predicted = candidates[truth] + rng.standard_normal((60, 10))
    similarity = cosine(predicted, candidates)
    better = (similarity > similarity[np.arange(60), truth][:, None]).sum(1)
    exact = hypergeom(39, better, 9).pmf(0)
    assert retrieval(predicted, candidates, truth, pool=10, draws=5000).image == pytest.approx(
        exact, abs=0.03
    )


def test_retrieval_of_the_truth_is_certain_and_of_a_constant_is_chance(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((50, 20))
    perfect = retrieval(candidates, candidates)
    assert (perfect.image == 1).all() and (perfect.brain == 1).all()
    assert (perfect.image_pool, perfect.brain_pool, perfect.image_chance) == (50, 50, 0.02)
    constant = retrieval(np.ones((50, 20)), candidates - candidates.mean(1, keepdims=True), pool=5)
    assert constant.image == pytest.approx(0.2) and constant.brain == pytest.approx(0.2)


def test_noise_retrieves_at_chance(rng: np.random.Generator) -> None:
    result = retrieval(rng.standard_normal((400, 20)), rng.standard_normal((400, 20)), pool=10)
    assert result.image.mean() == pytest.approx(0.1, abs=0.05)
    assert result.brain.mean() == pytest.approx(0.1, abs=0.05)


def test_a_whole_pool_is_plain_top_1(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((20, 6))
    predicted = candidates + rng.standard_normal((20, 6))
    similarity = cosine(predicted, candidates)
    result = retrieval(predicted, candidates, pool=300)
    assert result.image.tolist() == (similarity.argmax(1) == np.arange(20)).tolist()
    assert result.brain.tolist() == (similarity.argmax(0) == np.arange(20)).tolist()


def test_repeats_of_one_picture_do_not_compete_with_each_other(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((4, 6))
    truth = np.array([0, 0, 1, 1, 2])
    result = retrieval(candidates[truth], candidates, truth)
    assert (result.brain == 1).all()
    assert (result.image_pool, result.brain_pool) == (4, 3)


def test_the_seed_alone_decides_the_pools(rng: np.random.Generator) -> None:
    candidates = rng.standard_normal((60, 6))
    predicted = candidates + 2 * rng.standard_normal((60, 6))
    first, again, other = (retrieval(predicted, candidates, pool=9, seed=seed).image for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
