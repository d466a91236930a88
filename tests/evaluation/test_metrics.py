"""Every measure of features against brute force, a closed form or scipy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import correlation
from scipy.stats import hypergeom

from fmri2img.evaluation.metrics import (
    correlation_distance,
    published_pools,
    retrieval,
    two_way_identification,
)
from fmri2img.evaluation.similarity import similarities


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
    monkeypatch.setattr("fmri2img.evaluation.similarity.CHUNK_FEATURES", 13)
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


def test_single_precision_gives_the_order_of_double_precision(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twins of candidates and of predictions, a hair apart or equal, are where rounding would decide."""
    seen = rng.standard_normal((30, 400)).astype(np.float32) + 3
    seen[5], seen[6] = seen[4], seen[4] * np.float32(1.0000001)
    made = seen + 2 * rng.standard_normal((30, 400)).astype(np.float32)
    made[8], made[9], seen[12] = made[7], 1.5, 2.5
    exact, drawn = two_way_identification(made, seen), retrieval(made, seen, pool=30, draws=1)
    monkeypatch.setattr("fmri2img.evaluation.similarity.CHUNK_FEATURES", 64)
    assert np.array_equal(two_way_identification(made, seen), exact)
    again = retrieval(made, seen, pool=30, draws=1)
    assert np.array_equal(again.image, drawn.image) and np.array_equal(again.brain, drawn.brain)
    plain = similarities(made, seen, centre=True)
    assert similarities(made, seen, centre=True, index=np.arange(30)) == pytest.approx(plain, abs=1e-6)


def test_where_nearly_all_is_tied_double_precision_is_used_throughout(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmri2img.evaluation.similarity.CHUNK_FEATURES", 16)
    row = rng.standard_normal(50).astype(np.float32)
    same = np.tile(row, (200, 1))
    assert (two_way_identification(same, same) == 0.5).all()


def published_retrieval(predicted: np.ndarray, seen: np.ndarray, seed: int) -> tuple[float, float]:
    """By the words of the published evaluation: 30 pools, cosine similarity, first place, mean over pools."""
    np.random.seed(seed)  # noqa: NPY002
    image, brain = [], []
    for _ in range(30):
        pool = np.random.choice(np.arange(len(seen)), size=20, replace=False)  # noqa: NPY002
        a, b = (v[pool] / np.linalg.norm(v[pool], axis=1, keepdims=True) for v in (predicted, seen))
        similarity = a @ b.T
        image.append((similarity.argmax(1) == np.arange(20)).mean())
        brain.append((similarity.argmax(0) == np.arange(20)).mean())
    return float(np.mean(image)), float(np.mean(brain))


def test_published_pools_give_the_published_figure(rng: np.random.Generator) -> None:
    seen = rng.standard_normal((50, 12))
    predicted = seen + 1.5 * rng.standard_normal((50, 12))
    image, brain = published_retrieval(predicted, seen, 42)
    order = rng.permutation(50)  # items in another order than their pictures
    pools = published_pools(50, pool=20)
    found = retrieval(predicted[order], seen, order, pools=pools)
    assert found.draws is not None and found.draws.sum() == 30 * 20
    assert np.average(found.image, weights=found.draws) == pytest.approx(image, abs=1e-12)
    assert np.average(found.brain, weights=found.draws) == pytest.approx(brain, abs=1e-12)
    # And it is a draw of what our own pools estimate.
    assert retrieval(predicted, seen, pool=20, draws=300).image.mean() == pytest.approx(image, abs=0.03)
    with pytest.raises(ValueError, match="exactly one item of each"):
        retrieval(predicted, seen, np.zeros(50, int), pools=pools)


def test_correlation_distance_is_that_of_scipy(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 9, 4, 5)).astype(np.float32)
    expected = [
        correlation(x.ravel().astype(float), y.ravel().astype(float)) for x, y in zip(a, b, strict=True)
    ]
    assert correlation_distance(a, b) == pytest.approx(expected, abs=1e-12)
    assert correlation_distance(a, 2 * a + 1) == pytest.approx(0, abs=1e-6)
    assert correlation_distance(np.ones((2, 5)), b[:2, 0]).tolist() == [1, 1]
    with pytest.raises(ValueError, match="one shape"):
        correlation_distance(a, b[:, :2])
