"""The audit's rules at their edges: what decides is the end of an interval, and of several metrics the best."""

import numpy as np
import pytest

from fmri2img.evaluation import Reconstructions, Truth, evaluate
from fmri2img.evaluation.audit_parts import compared, metrics_by_cluster
from fmri2img.evaluation.audit_results import ByCluster, Control, DimensionsKept, NearTraining
from fmri2img.evaluation.intervals import Estimate
from fmri2img.evaluation.results import EvaluationSettings, Measure
from fmri2img.evaluation.verdicts import (
    beats_a_look_up,
    keeps_dimensions,
    split_leaks,
    tells_similar_apart,
    uses_responses,
)


def between(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, n=9, units=9)


def control(*leads: tuple[float, float]) -> Control:
    strict = {f"m{i}": between(*lead) for i, lead in enumerate(leads)}
    metrics = {
        name: Measure(**between(0.4, 0.6).model_dump(), label=f"Metric {name}", description="d", chance=0.5)
        for name in strict
    }
    return Control(label="c", description="d", metrics=metrics, differences=strict, strict=strict)


def near(*, duplicates: tuple[float, float] = (0, 0), copies: tuple[float, float] = (0, 0)) -> NearTraining:
    return NearTraining(
        duplicates=between(*duplicates),
        threshold=0.95,
        median=0.5,
        copies=between(*copies),
        copy_threshold=0.99,
    )


@pytest.mark.parametrize(
    ("leads", "found"),
    [([(-0.1, 0.3), (0.01, 0.05)], False), ([(-0.1, 0.9), (0.0, 0.0)], True), ([], True)],
)
def test_one_metric_clearly_above_a_control_is_enough(leads: list[tuple[float, float]], found: bool) -> None:
    assert uses_responses(control(*leads)).found is found
    assert beats_a_look_up(control(*leads), {"s": near()}).found is found


def test_copies_of_training_pictures_are_a_look_up_however_well_they_score() -> None:
    told = beats_a_look_up(control((0.2, 0.4)), {"s": near(copies=(0.55, 0.75))})
    assert told.found and "65% of the predictions (55% to 75%)" in told.sentence
    assert not beats_a_look_up(control((0.2, 0.4)), {"s": near(copies=(0.45, 0.75))}).found


def test_similar_pictures_are_told_apart_by_the_strict_interval() -> None:
    def by(low: float) -> dict[str, ByCluster]:
        wide = ByCluster(
            label="m", own=None, within=between(0.55, 0.6), across=None, strict=between(low, 0.65)
        )
        return {"m": wide, "ssim": ByCluster(label="s", own=between(0, 1), within=None, across=None)}

    assert not tells_similar_apart(by(0.51)).found and tells_similar_apart(by(0.49)).found
    assert tells_similar_apart({}).found


def test_collapse_and_leaks_need_the_whole_interval() -> None:
    def kept(high: float) -> dict[str, DimensionsKept]:
        return {"s": DimensionsKept(predicted=1, true=20, ratio=0.05, low=0.02, high=high)}

    assert keeps_dimensions(kept(0.09)).found and not keeps_dimensions(kept(0.11)).found
    assert split_leaks({"s": near(duplicates=(0.02, 0.1))}).found
    assert not split_leaks({"s": near(duplicates=(0.0, 0.1))}).found


def test_strict_intervals_hold_over_the_metrics_that_identify(rng: np.random.Generator) -> None:
    ids = np.arange(12)
    true = {"a": rng.normal(size=(12, 5)), "b": rng.normal(size=(12, 5))}
    keys = np.array([f"k{i}" for i in ids])
    truth, settings = Truth(ids, features=true), EvaluationSettings(pool=5, resamples=400)
    made = Reconstructions(
        keys, "s", ids, features={name: v + rng.normal(size=v.shape) for name, v in true.items()}
    )
    other = Reconstructions(keys, "s", ids, features={name: np.roll(v, 1, 0) for name, v in true.items()})
    found = compared("c", "d", evaluate(made, truth, settings), evaluate(other, truth, settings))
    assert set(found.strict) == {"two_way_a", "two_way_b"} and len(found.differences) == 6
    assert all(value.level == pytest.approx(0.975) for value in found.strict.values())
    for name, value in found.strict.items():
        assert value.low <= found.differences[name].low and value.high >= found.differences[name].high
    parts = metrics_by_cluster(made, truth, ids, ids % 3, settings)
    assert all(p.strict is not None and p.strict.level == pytest.approx(0.975) for p in parts.values())
