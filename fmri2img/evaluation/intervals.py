"""From one score per item to a figure with an interval: the bootstrap over pictures.

Scores of one picture (several repeats, samples or subjects) are not independent, so whole pictures are drawn,
with all their items. The interval is the percentile one (Efron and Tibshirani 1993, chapter 13): it has no
width where all scores are equal, and with a handful of pictures it is too narrow.

Seeds are no pictures: an interval over pictures says how far the figure would move with other pictures, and nothing of
how far it would move had other noise been drawn. `spread_over_seeds` says that, beside it.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

from fmri2img.errors import InputError

CHUNK_DRAWS = 1 << 22
TINY = np.finfo(np.float64).tiny  # where a drawn sample has no weight at all its mean is 0


class Estimate(BaseModel):
    """A mean over items with its interval. `n` counts items, `units` what was resampled, named by `unit`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float
    n: int
    units: int
    unit: str = "picture"
    level: float = 0.95


class SeedSpread(BaseModel):
    """How far the mean over the same pictures moves from one seed (sample of every picture) to the next.

    `deviation` is the standard deviation of the means of `seeds` seeds, with one less in the denominator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seeds: int
    deviation: float
    low: float
    high: float


def spread_over_seeds(scores: np.ndarray, units: np.ndarray, seeds: np.ndarray) -> SeedSpread | None:
    """The spread over seeds of the mean over pictures, kept apart from the interval over pictures.

    Args:
        scores: (n,).
        units: (n,) picture id of each score.
        seeds: (n,) which sample of its picture each score is of.

    Returns:
        None where there is one seed, or where seeds are not all of the same pictures: then their means differ for
        another reason.
    """
    distinct, member = np.unique(np.asarray(seeds), return_inverse=True)
    groups = [np.sort(np.asarray(units)[member == k]) for k in range(len(distinct))]
    if len(distinct) < 2 or any(not np.array_equal(group, groups[0]) for group in groups):
        return None
    means = np.array([np.asarray(scores, np.float64)[member == k].mean() for k in range(len(distinct))])
    return SeedSpread(
        seeds=len(means),
        deviation=float(means.std(ddof=1)),
        low=float(means.min()),
        high=float(means.max()),
    )


def estimate(
    scores: np.ndarray,
    units: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """The mean of the scores with a percentile bootstrap interval.

    Args:
        scores: (n,) finite.
        units: (n,) picture id of each score; items of one picture are drawn together. Without it every item
            is its own unit.
        weights: (n,) not negative, for a weighted mean; equal ones otherwise.
        seed: of the resampling.
        resamples: bootstrap samples.
        level: coverage of the interval, between 0 and 1.

    Raises:
        InputError: scores that are not finite, or fewer than two units, whose spread nobody can know.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or (units is not None and units.shape != scores.shape):
        raise ValueError(
            f"scores {scores.shape} and units {None if units is None else units.shape}: both must be (n,)."
        )
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"level {level} and {resamples} resamples: use a level in (0, 1) and at least 1 resample."
        )
    if not np.isfinite(scores).all():
        raise InputError(
            f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite: drop or mend them."
        )
    if weights is not None and (weights.shape != scores.shape or (weights < 0).any() or not weights.any()):
        raise ValueError(f"weights {weights.shape} of scores {scores.shape}: give each one, not negative.")
    sums, counts = _unit_sums(scores, units, np.ones_like(scores) if weights is None else weights)
    if len(sums) < 2:
        raise InputError(
            f"{len(sums)} picture to average over: an interval needs at least 2. Judge more pictures."
        )
    means = _resampled_means(sums, counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    value = np.average(scores, weights=weights)
    return Estimate(
        value=float(value),
        # A mean of equal numbers may differ from them in the last digit; the interval holds its estimate.
        low=float(min(low, value)),
        high=float(max(high, value)),
        n=len(scores),
        units=len(sums),
        unit="item" if units is None else "picture",
        level=level,
    )


def estimate_difference(
    a: np.ndarray,
    b: np.ndarray,
    units: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """The mean of a - b, two methods' scores (n,) of the same items, with its paired bootstrap interval.

    Pairing removes what both methods find hard about a picture: two overlapping intervals may hide a clear
    difference.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"{np.shape(a)} and {np.shape(b)} scores: a paired difference needs the same items in order."
        )
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return estimate(difference, units, weights=weights, seed=seed, resamples=resamples, level=level)


def _unit_sums(
    scores: np.ndarray, units: np.ndarray | None, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of scores and sum of weights of every unit, both (u,)."""
    if units is None:
        return scores * weights, weights
    _, member = np.unique(np.asarray(units), return_inverse=True)
    return np.bincount(member, weights=scores * weights), np.bincount(member, weights=weights)


def _resampled_means(
    sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """The mean over items in every bootstrap sample of units, (resamples,)."""
    u = len(sums)
    rows = max(1, CHUNK_DRAWS // u)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(u, size=(min(rows, resamples - start), u))
        means.append(sums[drawn].sum(1) / np.maximum(counts[drawn].sum(1), TINY))
    return np.concatenate(means)
