"""Judging as a whole: metrics found, refusals that name what is wrong, a JSON file that comes back equal."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmri2img.errors import DamageError, InputError
from fmri2img.evaluation.evaluate import evaluate
from fmri2img.evaluation.given import Reconstructions, Truth
from fmri2img.evaluation.judged import Judged
from fmri2img.evaluation.metrics import published_pools, retrieval
from fmri2img.evaluation.published import Measured
from fmri2img.evaluation.results import Evaluation, EvaluationSettings, difference

Smooth = Callable[..., np.ndarray]
FAST = EvaluationSettings(size=32, resamples=200)


@pytest.fixture
def truth(rng: np.random.Generator, smooth: Smooth) -> Truth:
    """Twelve pictures, whose ids are not sorted."""
    pictures = (smooth(12) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    features = {"scene": rng.standard_normal((12, 9)), "tokens": rng.standard_normal((12, 3, 5))}
    return Truth(
        rng.permutation(12) * 7 + 100, pictures, {k: v.astype(np.float32) for k, v in features.items()}
    )


@pytest.fixture
def perfect(truth: Truth) -> Reconstructions:
    """Ten items, two of them samples of one picture, predicted without error."""
    index = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 3])
    assert truth.pictures is not None
    return Reconstructions(
        keys=np.array([f"subj01_{i}" for i in range(10)]),
        subject="subj01",
        nsd_ids=truth.nsd_ids[index],
        pictures=truth.pictures[index],
        features={space: values[index] for space, values in truth.features.items()},
    )


def test_perfect_reconstructions_score_one_in_everything(perfect: Reconstructions, truth: Truth) -> None:
    found = evaluate(perfect, truth, FAST)
    spaces = ("scene", "tokens")
    names = [f"{m}_{s}" for s in spaces for m in ("two_way", "image_retrieval", "brain_retrieval")]
    assert list(found.metrics) == ["pixcorr", "ssim", "two_way_pixels", *names]
    for name, measure in found.metrics.items():
        assert measure.value == pytest.approx(1.0), name
        assert (measure.n, measure.units, measure.unit) == (10, 9, "picture")
        assert len(found.scores[name]) == 10
    assert found.metrics["two_way_scene"].chance == 0.5
    assert found.metrics["image_retrieval_scene"].chance == pytest.approx(1 / 12)
    assert found.metrics["brain_retrieval_scene"].chance == pytest.approx(1 / 9)
    assert (found.candidates, found.subject) == (12, "subj01")


def test_what_a_network_sees_in_both_pictures_identifies_them(
    perfect: Reconstructions, truth: Truth, rng: np.random.Generator
) -> None:
    seen = rng.standard_normal((12, 6)).astype(np.float32)
    index = np.array([int(np.flatnonzero(truth.nsd_ids == i)[0]) for i in perfect.nsd_ids])
    looked = replace(perfect, perceived={"eye": seen[index]})
    found = evaluate(looked, replace(truth, perceived={"eye": seen}), FAST)
    assert found.metrics["perceived_eye"].value == pytest.approx(1.0)
    assert found.metrics["perceived_eye"].headline
    swapped = replace(perfect, perceived={"eye": -seen[index]})
    found = evaluate(swapped, replace(truth, perceived={"eye": seen}), FAST)
    assert found.metrics["perceived_eye"].value < 0.5
    with pytest.raises(InputError, match="eye looked at the reconstructions but not at the pictures seen"):
        evaluate(looked, truth, FAST)


def test_noise_scores_near_chance(perfect: Reconstructions, truth: Truth, rng: np.random.Generator) -> None:
    noise = replace(
        perfect, features={"scene": rng.standard_normal((10, 9)).astype(np.float32)}, pictures=None
    )
    found = evaluate(noise, truth, FAST)
    assert list(found.metrics) == ["two_way_scene", "image_retrieval_scene", "brain_retrieval_scene"]
    assert found.metrics["two_way_scene"].value == pytest.approx(0.5, abs=0.25)


def test_items_are_ordered_from_best_to_worst(perfect: Reconstructions, truth: Truth) -> None:
    assert perfect.pictures is not None
    pictures = perfect.pictures.copy()
    pictures[4] = 255 - pictures[4]
    pictures[7, :16] = 0
    found = evaluate(replace(perfect, pictures=pictures), truth, FAST)
    assert found.order("pixcorr")[-1] == 4 and found.order("pixcorr")[-2] == 7
    with pytest.raises(InputError, match="'clip'"):
        found.order("clip")


def test_an_evaluation_comes_back_from_its_file(
    perfect: Reconstructions, truth: Truth, tmp_path: Path
) -> None:
    found = evaluate(perfect, truth, FAST)
    found.write(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json") == found
    with pytest.raises(InputError, match="no evaluation at"):
        Evaluation.read(tmp_path / "other.json")
    (tmp_path / "cut.json").write_text('{"subject": 3')
    with pytest.raises(DamageError, match=r"cut.json is not an evaluation"):
        Evaluation.read(tmp_path / "cut.json")


def test_the_first_version_of_the_file_can_still_be_read() -> None:
    found = Evaluation.read(Path(__file__).parent / "golden" / "evaluation-v1.json")
    assert found.metrics["two_way_scene"].value == pytest.approx(np.mean(found.scores["two_way_scene"]))
    assert (found.schema_version, found.subject, len(found.keys)) == (1, "subj01", 6)


def test_the_same_call_gives_the_same_bytes(perfect: Reconstructions, truth: Truth) -> None:
    assert (
        evaluate(perfect, truth, FAST).model_dump_json() == evaluate(perfect, truth, FAST).model_dump_json()
    )


def test_a_difference_is_paired_by_key(
    perfect: Reconstructions, truth: Truth, rng: np.random.Generator
) -> None:
    noisy = {
        space: (v + 2 * rng.standard_normal(v.shape)).astype(np.float32)
        for space, v in perfect.features.items()
    }
    a = evaluate(replace(perfect, pictures=None), truth, FAST)
    b = evaluate(replace(perfect, features=noisy, pictures=None), truth, FAST)
    found = difference(a, b, "two_way_scene")
    assert found.value == pytest.approx(a.metrics["two_way_scene"].value - b.metrics["two_way_scene"].value)
    assert found.low <= found.value <= found.high
    turned = b.model_copy(
        update={
            "keys": b.keys[::-1],
            "scores": {k: v[::-1] for k, v in b.scores.items()},
            "nsd_ids": b.nsd_ids[::-1],
        }
    )
    assert difference(a, turned, "two_way_scene") == found
    with pytest.raises(InputError, match="needs the same"):
        difference(a, b.model_copy(update={"keys": [*b.keys[:-1], "subj01_99"]}), "two_way_scene")
    with pytest.raises(InputError, match="not in both"):
        difference(a, b, "pixcorr")


def test_predictions_that_are_not_finite_are_named(perfect: Reconstructions, truth: Truth) -> None:
    features = {"scene": perfect.features["scene"].copy()}
    features["scene"][[2, 5], 1] = np.nan, np.inf
    with pytest.raises(
        InputError, match=r"2 of 10 predictions of 'scene' are not finite \(subj01_2, subj01_5\)"
    ):
        evaluate(replace(perfect, features=features), truth, FAST)


def test_a_long_list_of_bad_items_is_cut(perfect: Reconstructions, truth: Truth) -> None:
    with pytest.raises(InputError, match="subj01_4 and 5 more"):
        evaluate(replace(perfect, features={"scene": np.full((10, 9), np.nan, np.float32)}), truth, FAST)


def test_what_does_not_fit_is_refused(perfect: Reconstructions, truth: Truth) -> None:
    ids = perfect.nsd_ids.copy()
    ids[0] = 5
    cases = [
        (replace(perfect, nsd_ids=ids), truth, "nsd_id 5 reconstructed but not among the split's 12"),
        (replace(perfect, features={"clip": np.zeros((10, 4))}), truth, "'clip' is predicted but its truth"),
        (replace(perfect, features={"scene": np.zeros((10, 4))}), truth, "both must have one shape"),
        (replace(perfect, features={"scene": np.zeros((9, 9))}), truth, "10 keys but 9 of 'scene'"),
        (replace(perfect, keys=np.array(["a"] * 10)), truth, "occurs twice"),
        (replace(perfect, pictures=None, features={}), truth, "nothing to judge"),
        (perfect, replace(truth, pictures=None), "no pictures seen"),
        (perfect, replace(truth, nsd_ids=np.zeros(12, int)), "occurs twice"),
        (replace(perfect, nsd_ids=np.full(10, ids[1])), truth, "at least 2"),
    ]
    for made, against, message in cases:
        with pytest.raises(InputError, match=message):
            evaluate(made, against, FAST)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        EvaluationSettings.model_validate({"pools": 3})


def test_a_protocol_adds_the_other_ssim_and_retrieval_in_the_published_pools(
    perfect: Reconstructions, truth: Truth, rng: np.random.Generator
) -> None:
    """One item of every picture, in another order; the figure is the published mean over pools."""
    order = rng.permutation(12)
    noisy = truth.features["scene"][order] + 2 * rng.standard_normal((12, 9)).astype(np.float32)
    made = Reconstructions(order.astype(str), "subj01", truth.nsd_ids[order], features={"scene": noisy})
    settings = EvaluationSettings(protocol="mindeye2", pool=5, resamples=50)
    found = evaluate(made, truth, settings)
    wanted = retrieval(noisy, truth.features["scene"], order, pools=published_pools(12, pool=5))
    measure = found.metrics["image_retrieval_raw_scene"]
    assert measure.value == pytest.approx(np.average(wanted.image, weights=wanted.draws))
    assert sum(found.weights["image_retrieval_raw_scene"]) == 30 * 5
    assert difference(found, found, "image_retrieval_raw_scene").value == 0
    two = evaluate(perfect, truth, settings.model_copy(update={"protocol": "brain-diffuser"}))
    assert "image_retrieval_raw_scene" not in two.metrics
    assert not two.metrics["ssim"].headline and two.metrics["ssim_columns"].headline
    assert "ssim_columns" in two.headlines() and "ssim" not in two.headlines()


def test_what_was_scored_elsewhere_or_is_missing_is_kept(
    perfect: Reconstructions, truth: Truth, tmp_path: Path
) -> None:
    swav = Judged(np.linspace(0.2, 0.4, 10), "SwAV", "a distance", None, higher_is_better=False)
    measured = Measured(data="here", split=None, pictures=9, subject="subj01", protocol="mindeye2")
    found = evaluate(
        replace(perfect, seeds=np.arange(10) // 9),
        truth,
        FAST,
        more={"swav": swav},
        missing={"CLIP": "bring it"},
        measured=measured,
    )
    assert found.order("swav")[0] == 0 and "swav" in found.headlines()
    assert found.missing == {"CLIP": "bring it"}
    assert found.metrics["swav"].seeds is None  # the two seeds are of different pictures
    assert found.published and not any(row.comparable for row in found.published)
    found.write(tmp_path / "metrics.json")
    assert Evaluation.read(tmp_path / "metrics.json") == found
