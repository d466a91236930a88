"""Clusters of similar pictures, by their features: k-means with k-means++ starts, the same for the same seed.

Ours because scipy's only warns of an empty cluster, and fills none.

Legend of shapes: n pictures, d features, k clusters.
"""

from dataclasses import dataclass

import numpy as np

from fmri2img.errors import InputError

STARTS, ROUNDS = 8, 100


@dataclass(frozen=True)
class Clusters:
    """`label` (n,) of every picture, `centre` (k, d), and the sum of squared distances to the nearest centre."""

    label: np.ndarray
    centre: np.ndarray
    inertia: float


def how_many(pictures: int) -> int:
    """A number of clusters that leaves about ten pictures in each, 2 to 50."""
    return int(np.clip(round(pictures / 10), 2, 50))


def cluster(features: np.ndarray, count: int, *, seed: int = 0, starts: int = STARTS) -> Clusters:
    """The best of several k-means (Lloyd 1982; starts of Arthur and Vassilvitskii 2007, k-means++).

    Args:
        features: (n, d), or more dimensions, which are flattened.
        count: k, at least 2 and at most n.

    Raises:
        InputError: there are fewer distinct pictures than clusters.
    """
    x = np.asarray(features, np.float64).reshape(len(features), -1)
    distinct = len(np.unique(x, axis=0))
    if not 2 <= count <= distinct:
        raise InputError(
            f"{count} clusters of {distinct} distinct pictures: use at least 2 and at most {distinct}."
        )
    rng = np.random.default_rng(seed)
    return min((_lloyd(x, _plus_plus(x, count, rng)) for _ in range(starts)), key=lambda found: found.inertia)


def nearest_centre(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The cluster (n,) of pictures that took no part in the clustering."""
    x = np.asarray(features, np.float64).reshape(len(features), -1)
    return np.asarray(_distances(x, centre).argmin(1))


def _distances(x: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Squared distances (n, k)."""
    squares = np.square(x).sum(1)[:, None] - 2 * x @ centre.T + np.square(centre).sum(1)
    return np.asarray(np.maximum(squares, 0.0))


def _plus_plus(x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """First centres: pictures drawn in proportion to their squared distance from those drawn before."""
    chosen = [int(rng.integers(len(x)))]
    away = _distances(x, x[chosen])[:, 0]
    while len(chosen) < count:
        away[chosen] = 0.0
        chosen.append(int(rng.choice(len(x), p=away / away.sum())))
        away = np.minimum(away, _distances(x, x[chosen[-1:]])[:, 0])
    return x[chosen]


def _lloyd(x: np.ndarray, centre: np.ndarray) -> Clusters:
    """Assign and average in turn until nothing changes; an empty cluster takes the picture farthest from its centre."""
    label = np.full(len(x), -1)
    for _ in range(ROUNDS):
        away = _distances(x, centre)
        found = away.argmin(1)
        for empty in np.flatnonzero(np.bincount(found, minlength=len(centre)) == 0):
            own = away[np.arange(len(x)), found] * (np.bincount(found, minlength=len(centre))[found] > 1)
            found[own.argmax()] = empty
        if np.array_equal(found, label):
            break
        label = found
        centre = np.stack([x[label == k].mean(0) for k in range(len(centre))])
    inertia = float(np.square(x - centre[label]).sum())
    return Clusters(label, centre, inertia)
