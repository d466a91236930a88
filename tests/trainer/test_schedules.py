"""Learning rates and seeds as closed forms of the step and of names."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.schedules import learning_rate, part_rates
from fmri2img.trainer.seeds import derive_seed
from fmri2img.trainer.stages import finetune
from fmri2img.trainer.watch import read_records


def rates(schedule: str, *, steps: int = 11, warmup: float = 0.0, peak: float = 2.0) -> list[float]:
    config = TrainingConfig(steps=steps, schedule=schedule, warmup=warmup, learning_rate=peak)  # type: ignore[arg-type]
    return [learning_rate(config, step) for step in range(steps)]


def test_constant_is_the_peak() -> None:
    assert rates("constant") == [2.0] * 11


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_without_warm_up_the_rate_falls_along_a_cosine_to_a_thousandth(schedule: str) -> None:
    truth = [2 * (0.001 + 0.999 * (0.5 + 0.5 * math.cos(math.pi * step / 10))) for step in range(11)]
    assert rates(schedule) == pytest.approx(truth, rel=1e-12)
    assert rates(schedule)[-1] == pytest.approx(0.002)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_warm_up_is_a_line_that_would_reach_the_peak_at_its_end(schedule: str) -> None:
    assert rates(schedule, steps=10, warmup=0.4)[:5] == pytest.approx([2 * n / 5 for n in (1, 2, 3, 4, 5)])


def test_one_cycle_rises_along_a_cosine_from_a_25th_of_the_peak() -> None:
    rise = rates("one-cycle", steps=1000, warmup=0.5)[:501]
    truth = [2 * (0.04 + 0.96 * math.sin(math.pi * (n + 1) / 501 / 2) ** 2) for n in range(501)]
    assert rise == pytest.approx(truth, rel=1e-12)
    assert rise[0] == pytest.approx(0.08, rel=1e-3)
    assert rise == sorted(rise)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_positive_rate_at_every_step(schedule: str, steps: int) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(schedule, steps=steps, warmup=0.3))


def test_the_rate_knows_nothing_of_workers_lanes_or_batch() -> None:
    one = TrainingConfig(steps=50, lanes=1, global_batch=8)
    other = TrainingConfig(steps=50, lanes=8, global_batch=96, zero_stage=3)
    assert [learning_rate(one, s) for s in range(50)] == [learning_rate(other, s) for s in range(50)]


def test_the_rate_of_a_part_is_its_share_of_the_runs_at_every_step() -> None:
    config = TrainingConfig(steps=20, rates={"heads": 0.5, "branches": 2.0})
    for step in range(20):
        whole = learning_rate(config, step)
        assert part_rates(config, step) == {"branches": 2.0 * whole, "heads": 0.5 * whole}
    assert part_rates(TrainingConfig(), 3) == {}


@pytest.mark.parametrize("share", [-0.5, float("nan")])
def test_a_part_that_would_climb_its_loss_is_refused(share: float) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        TrainingConfig(rates={"heads": share})
    assert part_rates(TrainingConfig(rates={"heads": 0.0}), 3) == {"heads": 0.0}


@pytest.mark.parametrize(
    "other", [{"lanes": 1}, {"micro_batches": 2}, {"zero_stage": 3}, {"validate_every": 1}]
)
def test_a_run_has_its_rate_at_a_step_however_it_is_split_or_resumed(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException], other: dict[str, Any]
) -> None:
    def told(run: str) -> list[tuple[int, float, float]]:
        names = ("step", "train/learning_rate", "train/learning_rate/heads")
        records = [record for record in read_records(Path(spec(run).run)) if "train/loss" in record]
        return [tuple(record[name] for name in names) for record in records]

    rates = {"rates": {"heads": 0.5}}
    finetune(spec("plain", **rates))
    truth = TrainingConfig.model_validate(spec("plain", **rates).recipe["finetuning"])
    assert told("plain") == [
        (s + 1, learning_rate(truth, s), 0.5 * learning_rate(truth, s)) for s in range(8)
    ]
    with pytest.raises(killed):
        finetune(spec("other", **rates, **other), listener=faults.kill_at(5))
    finetune(spec("other", **rates, **other))
    assert told("other") == told("plain")


def test_seeds_are_the_same_on_every_machine_and_for_ever() -> None:
    assert derive_seed(0, "noise", 3, "subj01", 2) == 1761490941799418613
    assert derive_seed(0, "dropout", 0, 0) == 1728339580963807643


def test_seeds_fit_into_63_bits_and_differ_by_every_part_of_the_name() -> None:
    names = [(seed, kind, step) for seed in range(5) for kind in ("noise", "dropout") for step in range(50)]
    seeds = {derive_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
