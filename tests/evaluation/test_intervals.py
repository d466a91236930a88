"""Intervals: they cover a simulated truth, they respect pictures, they are reproducible."""

import numpy as np
import pytest
from pydantic import ValidationError

from fmri2img.errors import InputError
from fmri2img.evaluation.intervals import Estimate, estimate, estimate_difference, spread_over_seeds


def test_the_interval_is_the_normal_one_for_many_scores(rng: np.random.Generator) -> None:
    scores = rng.normal(0.3, 0.2, 900)
    found = estimate(scores)
    assert found.value == pytest.approx(scores.mean())
    half = 1.96 * scores.std() / 30
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)
    assert (found.n, found.units, found.unit, found.level) == (900, 900, "item", 0.95)


def test_ninety_five_percent_intervals_cover_the_truth_about_that_often(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(300):
        found = estimate(rng.beta(2, 3, 60), seed=seed, resamples=400)
        covered += found.low <= 0.4 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_items_of_one_picture_are_drawn_together(rng: np.random.Generator) -> None:
    per_picture = rng.random(50)
    scores, units = np.repeat(per_picture, 4), np.repeat(np.arange(50), 4)
    by_picture, by_item = estimate(scores, units), estimate(scores)
    # Four copies of a score say no more than one: naive intervals are half as wide as they should be.
    assert (by_picture.high - by_picture.low) / (by_item.high - by_item.low) == pytest.approx(2, rel=0.12)
    once = estimate(per_picture)
    assert (by_picture.low, by_picture.high) == pytest.approx((once.low, once.high))
    assert (by_picture.n, by_picture.units, by_picture.unit) == (200, 50, "picture")


def test_coverage_holds_where_pictures_differ_and_naive_resampling_fails(rng: np.random.Generator) -> None:
    units = np.repeat(np.arange(40), 5)
    covered = {"picture": 0, "item": 0}
    for seed in range(200):
        scores = np.repeat(rng.normal(0, 1, 40), 5) + rng.normal(0, 0.3, 200)
        for name, by in (("picture", units), ("item", None)):
            found = estimate(scores, by, seed=seed, resamples=300)
            covered[name] += found.low <= 0 <= found.high
    assert covered["picture"] >= 178 and covered["item"] <= 140


def test_unequal_numbers_of_items_keep_the_mean_over_items() -> None:
    found = estimate(np.array([1.0, 0.0, 0.0, 0.0]), np.array([5, 9, 9, 9]))
    assert found.value == 0.25 and (found.low, found.high) == (0.0, 1.0)


def test_weights_are_copies(rng: np.random.Generator) -> None:
    scores, copies = rng.random(20), rng.integers(0, 4, 20)
    weighted = estimate(scores, np.arange(20), weights=copies.astype(float))
    copied = estimate(np.repeat(scores, copies), np.repeat(np.arange(20), copies))
    assert weighted.value == pytest.approx(copied.value)
    assert weighted.low == pytest.approx(copied.low, abs=0.05)
    assert estimate(scores, weights=np.full(20, 3.0)) == estimate(scores)
    with pytest.raises(ValueError, match="not negative"):
        estimate(scores, weights=-np.ones(20))


def test_seeds_are_kept_apart_from_pictures(rng: np.random.Generator) -> None:
    """Pictures differ much and seeds hardly: the interval is wide, the spread over seeds is that of the seeds."""
    units, seeds = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
    offsets = np.array([0.00, 0.02, 0.04, 0.06])
    scores = np.repeat(rng.normal(0, 1, 60), 4) + offsets[seeds]
    found = spread_over_seeds(scores, units, seeds)
    assert found is not None and found.seeds == 4
    assert found.deviation == pytest.approx(offsets.std(ddof=1))
    assert found.high - found.low == pytest.approx(0.06)
    interval = estimate(scores, units)
    assert interval.high - interval.low > 10 * found.deviation
    assert interval.units == 60


def test_one_seed_or_seeds_of_different_pictures_have_no_spread() -> None:
    scores, units = np.arange(4.0), np.array([7, 7, 8, 8])
    assert spread_over_seeds(scores, units, np.zeros(4)) is None
    assert spread_over_seeds(scores, units, np.array([0, 0, 1, 1])) is None
    assert spread_over_seeds(scores, units, np.array([0, 1, 0, 1])) is not None


def test_equal_scores_have_no_spread() -> None:
    found = estimate(np.full(7, 0.1))
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    assert found.low <= found.value <= found.high


def test_a_paired_difference_sees_what_two_intervals_hide(rng: np.random.Generator) -> None:
    difficulty = rng.normal(0, 1, 80)
    a, b = difficulty + 0.2 + rng.normal(0, 0.1, 80), difficulty + rng.normal(0, 0.1, 80)
    assert estimate(b).high > estimate(a).low
    found = estimate_difference(a, b)
    assert found.low > 0 and found.value == pytest.approx(a.mean() - b.mean())
    assert estimate_difference(b, a).value == pytest.approx(-found.value)


def test_the_seed_decides_the_interval_and_not_the_value(rng: np.random.Generator) -> None:
    scores = rng.random(30)
    assert estimate(scores, seed=1) == estimate(scores, seed=1)
    assert estimate(scores, seed=1).low != estimate(scores, seed=2).low
    assert estimate(scores, seed=1).value == estimate(scores, seed=2).value


def test_large_resamplings_run_in_chunks_with_the_same_result(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = rng.random(50)
    whole = estimate(scores)
    monkeypatch.setattr("fmri2img.evaluation.intervals.CHUNK_DRAWS", 777)
    assert estimate(scores) == whole


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        estimate(np.array([0.5, 0.6]), np.array([4, 4]))
    with pytest.raises(InputError, match="1 of 3 scores are not finite"):
        estimate(np.array([0.5, np.nan, 0.1]))
    with pytest.raises(ValueError, match="same items"):
        estimate_difference(np.zeros(3), np.zeros(4))


def test_an_estimate_is_frozen_and_survives_json(rng: np.random.Generator) -> None:
    found = estimate(rng.random(20))
    assert Estimate.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValidationError):
        found.value = 1.0  # type: ignore[misc]
