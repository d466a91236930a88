"""Brain correlation: against numpy's correlation, a planted encoding model, and the published way of averaging."""

import numpy as np
import pytest

from fmri2img.errors import InputError
from fmri2img.evaluation.metrics_brain import brain_correlation, mean_response, predict_responses, rois_of


def test_it_is_the_correlation_of_each_picture_over_the_voxels_of_a_region(rng: np.random.Generator) -> None:
    predicted, measured = rng.standard_normal((2, 5, 12)).astype(np.float32)
    rois = {"V1": np.arange(12) < 4, "rest": np.arange(4, 12)}
    found = brain_correlation(predicted, measured, rois)
    for name, chosen in rois.items():
        wanted = [np.corrcoef(a[chosen], b[chosen])[0, 1] for a, b in zip(predicted, measured, strict=True)]
        assert found[name] == pytest.approx(wanted, abs=1e-6)


def test_a_response_without_variance_scores_zero_and_a_region_of_one_voxel_is_refused() -> None:
    assert brain_correlation(np.ones((2, 3)), np.eye(2, 3), {"a": np.ones(3, bool)})["a"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="'b' has 1 voxels"):
        brain_correlation(np.eye(2, 3), np.eye(2, 3), {"b": np.arange(3) == 1})
    with pytest.raises(ValueError, match="one shape"):
        brain_correlation(np.eye(2), np.eye(3), {})


def test_an_encoding_model_finds_a_planted_one(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxels in blocks, features of very different scales, one of them constant."""
    monkeypatch.setattr("fmri2img.evaluation.metrics_brain.BLOCK_VOXELS", 7)
    features = rng.standard_normal((300, 2, 5)) * np.array([1e3, 1, 1, 1e-3, 1]) + 5
    features[:, 1, 4] = 2.5
    weights = rng.standard_normal((10, 20))
    standard = (features - features.mean(0)) / np.where(features.std(0) > 1e-9, features.std(0), np.inf)
    signal = standard.reshape(300, 10) @ weights
    train, test = slice(0, 240), slice(240, 300)
    noisy = (signal[train] + 0.5 * rng.standard_normal((240, 20))).astype(np.float32)
    made = features[test].astype(np.float32)
    predicted = predict_responses(features[train].astype(np.float32), noisy, np.arange(240), made)
    assert brain_correlation(predicted, signal[test], {"all": np.ones(20, bool)})["all"].min() > 0.95


def test_too_many_features_are_refused() -> None:
    big = np.zeros((9000, 8193), np.float16)
    with pytest.raises(InputError, match="8193 features of 9000 pictures are too many"):
        predict_responses(big, np.zeros((9000, 2)), np.arange(9000), big[:2])


def test_two_repeats_are_padded_to_three_as_published() -> None:
    repeats = np.array([[1.0, 4.0], [4.0, 1.0]])
    locations = np.array([7, 9]).repeat(2)[:3]  # the published expression: first, first, second
    wanted = repeats[np.searchsorted([7, 9], locations)].mean(0)
    assert mean_response(repeats, padded=True).tolist() == wanted.tolist() == [2.0, 3.0]
    assert mean_response(repeats, padded=False).tolist() == [2.5, 2.5]
    assert mean_response(repeats[:1], padded=True).tolist() == [1.0, 4.0]


def test_halves_of_an_area_are_also_the_area() -> None:
    found = rois_of(np.array(["V1v", "V1d", "V1d", "hV4", "hV4", "V2v", ""]))
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"all": 7, "V1": 3, "V1d": 2, "hV4": 2}
