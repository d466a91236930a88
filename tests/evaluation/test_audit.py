"""The audit's numbers against brute force."""

from itertools import pairwise

import numpy as np
import pytest

from fmri2img.errors import InputError
from fmri2img.evaluation.audit import (
    coordinates,
    dimensions,
    exchanged,
    identified_by_cluster,
    nearest,
    participation_ratio,
    stand_ins,
)
from fmri2img.evaluation.clusters import cluster, nearest_centre
from fmri2img.evaluation.metrics import two_way_identification


def test_nobody_keeps_the_own_response_and_every_picture_gives_its_own_to_one_other() -> None:
    ids = np.repeat([7, 3, 9, 4, 11], [3, 1, 2, 2, 2])
    given = exchanged(ids, seed=5)
    assert (ids[given] != ids).all()
    sources = [set(ids[given[ids == one]]) for one in np.unique(ids)]
    assert all(len(source) == 1 for source in sources)
    assert set.union(*sources) == set(ids.tolist())
    assert len(set(given[ids == 9].tolist())) == 2 or ids[given[ids == 9]][0] == 3


def test_identification_within_and_across_clusters_is_that_of_every_pair(rng: np.random.Generator) -> None:
    label = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    candidates = rng.normal(size=(10, 6))
    index = np.array([4, 0, 9, 7, 7, 1])
    predicted = candidates[index] + rng.normal(size=(6, 6))
    predicted[2] = 0.0  # ties with everything
    found = identified_by_cluster(predicted, candidates, index, label, centre=True)
    for i, place in enumerate(index):
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for j in range(10):
            if j != place:
                pair = [0.0 if i == 2 else np.corrcoef(predicted[i], candidates[k])[0, 1] for k in (place, j)]
                kinds[bool(label[j] == label[place])].append(float(np.sign(pair[0] - pair[1]) / 2 + 0.5))
        for same, score in ((True, found.within[i]), (False, found.across[i])):
            expected = np.mean(kinds[same]) if kinds[same] else np.nan
            np.testing.assert_allclose(score, expected, atol=1e-12)
    assert np.isnan(found.within[2])


def test_within_and_across_together_are_two_way_identification(rng: np.random.Generator) -> None:
    label = np.repeat([0, 1, 2], 5)
    candidates = rng.normal(size=(15, 8))
    predicted = candidates + 2 * rng.normal(size=(15, 8))
    found = identified_by_cluster(predicted, candidates, np.arange(15), label, centre=True)
    whole = (4 * found.within + 10 * found.across) / 14
    np.testing.assert_allclose(whole, two_way_identification(predicted, candidates), atol=1e-12)


def test_stand_ins_are_of_the_same_and_of_another_cluster() -> None:
    label = np.array([0, 0, 0, 1, 1, 2])
    index = np.array([0, 3, 5, 2, 2])
    same, other = stand_ins(index, label, seed=1)
    assert same[2] == -1 and (same[[0, 1, 3, 4]] != index[[0, 1, 3, 4]]).all()
    assert (label[same[[0, 1, 3, 4]]] == label[index[[0, 1, 3, 4]]]).all()
    assert (label[other] != label[index]).all()
    one_cluster = stand_ins(index, np.zeros(6, int), seed=1)[1]
    assert (one_cluster == -1).all()


def test_the_participation_ratio_is_that_of_the_covariances_eigenvalues(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 12)) * np.arange(1, 13) + 5
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert participation_ratio(x) == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert participation_ratio(np.ones((5, 3))) == 0.0
    axes = np.vstack([np.eye(4), -np.eye(4)])
    assert participation_ratio(axes) == pytest.approx(4)


def test_principal_coordinates_keep_every_distance(rng: np.random.Generator) -> None:
    x = rng.normal(size=(7, 9000)) * 10 + 3
    flat = coordinates(x.reshape(7, 90, 100))
    for i in range(7):
        for j in range(7):
            expected = np.linalg.norm(x[i] - x[j])
            assert np.linalg.norm(flat[i] - flat[j]) == pytest.approx(expected, abs=1e-6)


def test_the_interval_of_dimensions_is_the_jackknife_by_refitting(rng: np.random.Generator) -> None:
    true = rng.normal(size=(18, 7))
    predicted = true * np.array([1, 1, 0.3, 0.1, 0, 0, 0]) + 0.1 * rng.normal(size=(18, 7))
    units = np.repeat(np.arange(9), 2)
    found = dimensions(predicted, true, units)

    def log_ratio(keep: np.ndarray) -> float:
        return float(np.log(participation_ratio(predicted[keep]) / participation_ratio(true[keep])))

    apart = np.array([log_ratio(units != unit) for unit in range(9)])
    error = np.sqrt(8 / 9 * np.square(apart - apart.mean()).sum())
    middle = log_ratio(np.ones(18, bool))
    assert found.ratio == pytest.approx(np.exp(middle))
    assert found.low == pytest.approx(np.exp(middle - 1.959964 * error), rel=1e-6)
    assert found.high == pytest.approx(np.exp(middle + 1.959964 * error), rel=1e-6)


def test_predictions_that_never_vary_have_no_dimension(rng: np.random.Generator) -> None:
    true = rng.normal(size=(10, 4))
    found = dimensions(np.tile(true[:1], (10, 1)), true, np.arange(10))
    assert (found.predicted, found.ratio, found.high) == (0.0, 0.0, 0.0) and found.true > 1


@pytest.mark.parametrize("centre", [True, False])
def test_the_nearest_training_picture_is_found_over_blocks(rng: np.random.Generator, centre: bool) -> None:
    rows, train = rng.normal(size=(6, 3, 3)), rng.normal(size=(20, 3, 3)) + 0.5
    ids = 100 + np.arange(20)
    found = nearest(rows, ((ids[a:b], train[a:b]) for a, b in pairwise((0, 7, 9, 20))), centre=centre)
    for i, row in enumerate(rows.reshape(6, -1)):
        x, y = row, train.reshape(20, -1)
        if centre:
            x, y = x - x.mean(), y - y.mean(1, keepdims=True)
        cosine = y @ x / np.linalg.norm(y, axis=1) / np.linalg.norm(x)
        assert found.ids[i] == ids[cosine.argmax()]
        assert found.similarity[i] == pytest.approx(cosine.max())


def test_clusters_that_lie_apart_are_found(rng: np.random.Generator) -> None:
    truth = np.repeat(np.arange(6), 10)
    x = 20 * rng.normal(size=(6, 5))[truth] + rng.normal(size=(60, 5))
    found = cluster(x, 6, seed=3)
    assert len({(a, b) for a, b in zip(truth, found.label, strict=True)}) == 6
    by_hand = sum(np.square(x[truth == k] - x[truth == k].mean(0)).sum() for k in range(6))
    assert found.inertia == pytest.approx(by_hand)
    assert np.array_equal(nearest_centre(x, found.centre), found.label)
    assert np.array_equal(cluster(x, 6, seed=3).label, found.label)


def test_no_cluster_is_empty_even_where_pictures_coincide() -> None:
    x = np.array([[0.0]] * 8 + [[1.0], [1.1], [50.0]])
    found = cluster(x, 4, seed=0)
    assert sorted(np.bincount(found.label).tolist()) == [1, 1, 1, 8] and found.inertia == 0
    with pytest.raises(InputError, match="5 clusters of 4 distinct pictures"):
        cluster(x, 5)
