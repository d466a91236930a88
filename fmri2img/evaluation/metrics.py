"""The field's measures of features, one score per item: identification, retrieval, distance.

Pure functions on arrays. Averaging, and the interval around an average, belong to
`fmri2img.evaluation.intervals`; what compares pixels is in `metrics_pictures`. Results are those of float64, in
chunks that bound memory.

Legend of shapes: n items, m candidates (distinct pictures), d features.
"""

from dataclasses import dataclass

import numpy as np

from fmri2img.evaluation.similarity import TIE, Array, row_correlations, similarities

POOL, DRAWS, SEED = 300, 30, 42
"""Of MindEye2's published pools."""


def two_way_identification(
    predicted: Array, candidates: Array, truth: np.ndarray | None = None
) -> np.ndarray:
    """The share of wrong candidates that resemble the prediction less than the true one does.

    Resemblance is the Pearson correlation over features; a tie counts one half, so chance is one half. The
    field's `r = corrcoef(reals, preds)[:n, n:]; mean(r < diag(r))`, with ties and repeated pictures settled.

    Args:
        predicted: (n, d), or more dimensions, which are flattened.
        candidates: (m, d), the true features of m distinct pictures.
        truth: (n,) index into `candidates` of each item's picture; without it, m = n and item i is picture i.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ValueError: shapes or indices do not fit, or there is only one candidate.
    """
    index = _truth(predicted, candidates, truth)
    r = similarities(predicted, candidates, centre=True, index=index)
    correct = np.take_along_axis(r, index[:, None], axis=1)
    below = (r < correct - TIE).sum(1)
    tied = (np.abs(r - correct) <= TIE).sum(1) - 1
    return np.asarray((below + 0.5 * tied) / (r.shape[1] - 1))


@dataclass(frozen=True)
class Retrieval:
    """Top-1 retrieval: `image` and `brain` are (n,), the share of draws in which an item was found.

    `draws` (n,) says how often each item was in a pool, where pools were given.
    """

    image: np.ndarray
    brain: np.ndarray
    image_pool: int
    brain_pool: int
    draws: np.ndarray | None = None

    @property
    def image_chance(self) -> float:
        return 1 / self.image_pool

    @property
    def brain_chance(self) -> float:
        return 1 / self.brain_pool


def retrieval(
    predicted: Array,
    candidates: Array,
    truth: np.ndarray | None = None,
    *,
    pool: int = 300,
    draws: int = 30,
    seed: int = 0,
    pools: np.ndarray | None = None,
) -> Retrieval:
    """Top-1 retrieval by cosine similarity in random pools around the true one (Lin et al. 2022, MindEye).

    Image retrieval: a prediction picks its picture out of a pool of pictures. Brain retrieval: a picture
    picks its prediction out of a pool of predictions, the others being of other pictures. A tie for first
    place counts one over the number tied. (Several published codes carry the two names swapped.)

    Args:
        predicted: (n, d), or more dimensions, which are flattened.
        candidates: (m, d), the true features of m distinct pictures.
        truth: (n,) index into `candidates` of each item's picture; without it, m = n and item i is picture i.
        pool: pictures in a pool, the true one among them; fewer where there are fewer.
        draws: random pools per item.
        seed: of the pools.
        pools: (draws, size) candidates in each pool, shared by all items, instead of `pool`, `draws` and `seed`: the
            published way, `published_pools`. Then every candidate needs exactly one item, and the published figure is
            the mean of scores weighted by `draws` of the result.

    Returns:
        A `Retrieval` with the scores and the sizes of pool used.

    Raises:
        ValueError: shapes or indices do not fit, or there are not two distinct pictures on each side.
    """
    index = _truth(predicted, candidates, truth)
    similarity = similarities(predicted, candidates, centre=False, index=index)
    if pools is not None:
        return _in_pools(similarity, index, pools)
    rng = np.random.default_rng(seed)
    image_pool = min(pool, similarity.shape[1])
    brain_pool = min(pool, len(np.unique(index)))
    if min(image_pool, brain_pool) < 2 or draws < 1:
        raise ValueError(
            f"{brain_pool} distinct pictures in a pool and {draws} draws: retrieval needs at least 2 and 1."
        )
    correct = np.take_along_axis(similarity, index[:, None], axis=1)
    wrong = np.arange(similarity.shape[1])[None] != index[:, None]
    image = _found(similarity, correct, wrong, image_pool, draws, rng)
    wrong = index[None] != index[:, None]
    brain = _found(similarity.T[index], correct, wrong, brain_pool, draws, rng)
    return Retrieval(image, brain, image_pool, brain_pool)


def published_pools(candidates: int, *, pool: int = POOL, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """The pools that MindEye2's evaluation draws, (draws, pool): numpy's legacy generator, seeded once.

    A figure from these alone is one draw of what `retrieval` estimates for each item; its pools overlap, so the
    published interval over pools understates the error.
    """
    legacy = np.random.RandomState(seed)
    size = min(pool, candidates)
    return np.stack([legacy.choice(np.arange(candidates), size=size, replace=False) for _ in range(draws)])


def _in_pools(similarity: np.ndarray, index: np.ndarray, pools: np.ndarray) -> Retrieval:
    """Retrieval in pools of candidates; similarity (n, n), index (n,) a permutation."""
    n, m = similarity.shape
    if n != m or not np.array_equal(np.sort(index), np.arange(m)):
        raise ValueError(f"{n} items of {m} candidates: given pools need exactly one item of each candidate.")
    square = np.empty_like(similarity)
    square[index] = similarity  # rows in the order of the candidates
    counts, image, brain = (np.zeros(m) for _ in range(3))
    for pool in pools:
        part = square[np.ix_(pool, pool)]
        counts[pool] += 1
        for total, axis in ((image, 1), (brain, 0)):
            best = part.max(axis)
            winners = (part >= np.expand_dims(best, axis) - TIE).sum(axis)
            total[pool] += np.where(np.diag(part) >= best - TIE, 1 / winners, 0.0)
    often = np.maximum(counts, 1)
    size = pools.shape[1]
    return Retrieval((image / often)[index], (brain / often)[index], size, size, counts[index])


def correlation_distance(predicted: Array, true: Array) -> np.ndarray:
    """One minus the Pearson correlation of each prediction's features with its picture's, scipy's `correlation`.

    Lower is better: 0 for equal features, 1 for unrelated ones and for a prediction without variance.

    Args:
        predicted: (n, d), or more dimensions, which are flattened.
        true: the same shape, the features of each item's picture.

    Returns:
        (n,) float64 in [0, 2].

    Raises:
        ValueError: the two shapes differ.
    """
    if tuple(predicted.shape) != tuple(true.shape):
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and true {tuple(true.shape)} must be one shape."
        )
    return np.asarray(1.0 - row_correlations(predicted, true))


def _found(
    similarity: np.ndarray,
    correct: np.ndarray,
    wrong: np.ndarray,
    pool: int,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Share of draws in which the true one wins; similarity and wrong (n, c), correct (n, 1).

    How many of the better and the tied land in a random pool follows the hypergeometric law, so drawing the
    counts is drawing the pools.
    """
    better = (wrong & (similarity > correct + TIE)).sum(1)
    tied = (wrong & (np.abs(similarity - correct) <= TIE)).sum(1)
    rest = wrong.sum(1) - better
    shape = (draws, len(better))
    ahead = rng.hypergeometric(better, rest, pool - 1, size=shape)
    # The second draw matters only where nobody is ahead: then the whole pool comes from the rest.
    beside = rng.hypergeometric(tied, rest - tied, np.minimum(pool - 1, rest), size=shape)
    return np.asarray(np.where(ahead == 0, 1 / (1 + beside), 0.0).mean(0))


def _truth(predicted: Array, candidates: Array, truth: np.ndarray | None) -> np.ndarray:
    """The index of each item's picture, after checking that the three arguments fit together."""
    n, m = len(predicted), len(candidates)
    index = np.arange(n) if truth is None else np.asarray(truth)
    if tuple(predicted.shape[1:]) != tuple(candidates.shape[1:]) or index.shape != (n,) or m < 2 or n < 1:
        raise ValueError(
            f"predicted {tuple(predicted.shape)}, candidates {tuple(candidates.shape)} and truth "
            f"{index.shape} do not fit: they must be (n, d), (m, d) and (n,) with m at least 2."
        )
    if index.min() < 0 or index.max() >= m:
        raise ValueError(f"truth runs from {index.min()} to {index.max()}: indices must lie in 0 to {m - 1}.")
    return index
