"""The numbers of the audit: what a decoder's scores would be worth if it knew less than they suggest.

Shirakawa et al. (*Spurious reconstruction from brain activity*, arXiv 2405.10078) show how far classification into
clusters of the training pictures, and a generator that invents the rest, go in the field's metrics. These functions
measure each of the ways in which that shows. What is a finding, `fmri2img.evaluation.verdicts` decides.

Legend of shapes: n items, m candidates (distinct pictures), t training pictures, d features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fmri2img.evaluation.similarity import CHUNK_FEATURES, TIE, similarities

JACKKNIFE = 50


def exchanged(nsd_ids: np.ndarray, seed: int) -> np.ndarray:
    """For every item an item of another picture, (n,): whose response it is given. No picture keeps its own.

    Items of one picture get items of one other picture, sample for sample, as far as that one has as many.
    """
    distinct, member = np.unique(nsd_ids, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    other = np.empty(len(distinct), np.int64)
    other[order] = np.roll(order, -1)  # one cycle through all pictures
    items = [np.flatnonzero(member == k) for k in range(len(distinct))]
    given = np.empty(len(nsd_ids), np.int64)
    for k, own in enumerate(items):
        given[own] = np.resize(items[other[k]], len(own))
    return given


@dataclass(frozen=True)
class Identified:
    """Identification among candidates of the same cluster and of the others, (n,) each in [0, 1].

    NaN where there is no such candidate.
    """

    within: np.ndarray
    across: np.ndarray


def identified_by_cluster(
    predicted: np.ndarray, candidates: np.ndarray, index: np.ndarray, label: np.ndarray, *, centre: bool
) -> Identified:
    """Two-way identification, apart for wrong candidates of the true picture's cluster and of other clusters.

    Over all candidates the two, weighted by their number, give two-way identification again.

    Args:
        predicted: (n, d), or more dimensions, which are flattened.
        candidates: (m, d).
        index: (n,) place of each item's picture among the candidates.
        label: (m,) cluster of each candidate.
        centre: Pearson correlation over features, else cosine.
    """
    r = similarities(predicted, candidates, centre=centre, index=index)
    own = np.take_along_axis(r, index[:, None], axis=1)
    beaten = (r < own - TIE) + 0.5 * (np.abs(r - own) <= TIE)
    same = label[index][:, None] == label[None]
    wrong = np.arange(len(label))[None] != index[:, None]
    return Identified(_share(beaten, same & wrong), _share(beaten, ~same & wrong))


def _share(beaten: np.ndarray, among: np.ndarray) -> np.ndarray:
    counts = among.sum(1)
    return np.where(counts > 0, (beaten * among).sum(1) / np.maximum(counts, 1), np.nan)


def stand_ins(index: np.ndarray, label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For every item another picture of its picture's cluster, and one of another cluster: places, (n,) each.

    A metric without candidates, such as PixCorr, is compared with what it gives for these in place of the picture
    seen. -1 where there is none.
    """
    rng = np.random.default_rng(seed)
    found = np.full((2, len(index)), -1, np.int64)
    for i, place in enumerate(index):
        same = label == label[place]
        for row, among in enumerate((same & (np.arange(len(label)) != place), ~same)):
            if among.any():
                found[row, i] = rng.choice(np.flatnonzero(among))
    return found[0], found[1]


def participation_ratio(features: np.ndarray) -> float:
    """Effective dimension: (sum of eigenvalues of the covariance)^2 / sum of their squares; 0 without variance.

    k equal eigenvalues give k. Computed from the inner products of the n rows, so d may be large.
    """
    products = _centred_products(features)
    return float(_ratio(products, np.ones((len(products), 1)))[0])


def _centred_products(features: np.ndarray) -> np.ndarray:
    """Inner products (n, n) of centred rows, in blocks of columns, so that wide features need no float64 copy."""
    x = np.asarray(features).reshape(len(features), -1)
    total = np.zeros((len(x), len(x)))
    for start in range(0, x.shape[1], CHUNK_FEATURES):
        block = x[:, start : start + CHUNK_FEATURES].astype(np.float64)
        block -= block.mean(0)
        total += block @ block.T
    return total


def coordinates(features: np.ndarray) -> np.ndarray:
    """Rows (n, n) as far apart as features (n, d) are: principal coordinates, for wide features to be clustered by."""
    values, vectors = np.linalg.eigh(_centred_products(features))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _ratio(products: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Participation ratios (k,) of rows weighted by each column of `weight` (n, k), each centred on its own mean."""
    count = weight.sum(0)
    moved = products @ weight
    total = (weight * moved).sum(0)
    trace = np.diag(products) @ weight - total / count
    squares = (weight * (products**2 @ weight)).sum(0)
    squares += -2 * (weight * moved**2).sum(0) / count + (total / count) ** 2
    none = trace <= 1e-12 * np.maximum(np.diag(products).sum(), 1e-300)
    return np.where(none, 0.0, trace**2 / np.where(none, 1.0, squares))


@dataclass(frozen=True)
class Dimensions:
    """Effective dimensions of predicted and of true features, and the ratio of the two with its interval."""

    predicted: float
    true: float
    ratio: float
    low: float
    high: float


def dimensions(
    predicted: np.ndarray, true: np.ndarray, units: np.ndarray, *, level: float = 0.95
) -> Dimensions:
    """How many dimensions predictions (n, d) keep of those of the true features (n, d) of the same items.

    The interval is of the logarithm of the ratio, from the jackknife over groups of pictures: the bootstrap draws
    pictures twice, and copies alone lower a dimension.

    Args:
        units: (n,) picture id of each item; those of one picture are left out together.
    """
    _, member = np.unique(units, return_inverse=True)
    group = member % min(JACKKNIFE, member.max() + 1)
    weight = (group[:, None] != np.arange(group.max() + 1)[None]).astype(np.float64)
    products = [_centred_products(value) for value in (predicted, true)]
    whole = [float(_ratio(p, np.ones((len(p), 1)))[0]) for p in products]
    if not whole[0] or not whole[1]:
        return Dimensions(whole[0], whole[1], 0.0, 0.0, 0.0)
    apart = np.log(np.maximum(_ratio(products[0], weight), 1e-12)) - np.log(_ratio(products[1], weight))
    groups = weight.shape[1]
    error = np.sqrt((groups - 1) / groups * np.square(apart - apart.mean()).sum())
    middle = np.log(whole[0] / whole[1])
    margin = NormalDist().inv_cdf((1 + level) / 2) * error
    low, high = np.exp(middle - margin), np.exp(middle + margin)
    return Dimensions(whole[0], whole[1], float(np.exp(middle)), float(low), float(high))


@dataclass(frozen=True)
class Nearest:
    """The most similar training picture of each row: its id and the similarity, (n,) each."""

    ids: np.ndarray
    similarity: np.ndarray


def nearest(rows: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], *, centre: bool) -> Nearest:
    """Find for each row the nearest training picture; of equally near ones the first.

    Args:
        rows: (n, d), or more dimensions, which are flattened.
        blocks: ids (b,) and features (b, d) of training pictures, so that they need not be in memory at once.
        centre: Pearson correlation over features, else cosine.
    """
    ids = np.full(len(rows), -1, np.int64)
    best = np.full(len(rows), -np.inf)
    for names, features in blocks:
        r = similarities(rows, features, centre=centre)
        place = r.argmax(1)
        found = r[np.arange(len(rows)), place]
        better = found > best + TIE
        ids[better], best[better] = np.asarray(names)[place[better]], found[better]
    return Nearest(ids, best)
