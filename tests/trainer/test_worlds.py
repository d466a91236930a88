"""One, two, three and four processes train the same, at every ZeRO stage, stopped or not: true updates, to rounding.

The truth is AdamW written out in float64. How far float32 may be from it is derived, element by element: see `Truth`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fmri2img import checkpoints_schema as schema
from fmri2img.trainer.watch import read_records

Tensors = dict[str, Tensor]
SCRIPT = Path(__file__).parent / "worlds.py"
BETAS, EPSILON, DECAY, CLIP, AVERAGE = (0.9, 0.999), 1e-8, 0.1, 0.05, 0.7
STAGES, WORLDS, UPDATES = (0, 1, 2, 3), (1, 2, 3, 4), 4
UNIT = 2.0**-24  # the largest share by which float32 rounds a number
# A gradient is a sum of some tens of products, each rounded a few times on its way up and down; what was seen is 2 of
# these in a moment, 4 in a squared one and 3 in a norm.
GAMMA = 8 * UNIT
# The same of networks that compute in reduced precision, whose roundings drown those of float32. What was seen is 2.7
# in a squared moment, 1.7 in a moment, 0.8 in a norm.
REDUCED = {"bfloat16": 4 * 2.0**-8, "float16": 4 * 2.0**-11}

GROUPS = ["one", "two", "three", "four", "moved"]
# Of a loss and of a norm, which are sums over rows; 3 units were seen.
CURVE = 16 * UNIT
# Of a tensor's largest weight; a rounding of a gradient that is nearly 0 moves its weight by a share of the rate;
# 13 units were seen.
WEIGHTS = 64 * UNIT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Told:
    """Where the groups wrote, and the steps at which one of them was killed."""

    folder: Path
    killed_at: list[int]

    def final(self, run: str) -> Path:
        return schema.resolve(self.folder / run).path

    def records(self, run: str) -> list[dict[str, Any]]:
        return read_records(self.folder / run)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Told:
    """What all groups wrote; run once."""
    folder = tmp_path_factory.mktemp("worlds")
    binaries = str(Path(sys.executable).parent)  # where ninja lies
    result = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(folder), str(data)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": os.pathsep.join([binaries, os.environ["PATH"]])},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return Told(folder, json.loads(result.stdout.splitlines()[-1])["killed_at"])


@dataclass
class Truth:
    """AdamW with clipping and an average of the weights, in float64, and how far float32 may be from it.

    Float32 rounds every product and sum by a share `UNIT`, so a gradient, a sum over rows and layers of terms that may
    cancel, is off by `gamma` times the largest of its tensor. The root of the second moment is a weighted norm of the
    gradients so far, so it is off by no more than they; the first moment is a weighted mean, so is it. The update
    r = m / v^(1/2) is then off by (1 + |r|) * error / v^(1/2), and a weight by the sum of these times the rates, plus
    a few units of itself.
    """

    weights: Tensors
    gamma: float = GAMMA
    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    slack: Tensors = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    def update(self, gradients: Tensors, rate: float) -> None:
        """One step. `weights` is changed in place."""
        norm = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
        self.norms.append(norm)
        count, (one, two) = len(self.norms), BETAS
        for name, weight in self.weights.items():
            gradient = gradients[name] * min(1.0, CLIP / (norm + 1e-6))
            zero = torch.zeros_like(weight)
            m = self.first[name] = one * self.first.get(name, zero) + (1 - one) * gradient
            v = self.second[name] = two * self.second.get(name, zero) + (1 - two) * gradient.square()
            root = (v / (1 - two**count)).sqrt() + EPSILON
            ratio = m / (1 - one**count) / root
            self.average.setdefault(name, weight.clone())
            weight.mul_(1 - rate * (DECAY if weight.ndim > 1 else 0.0)).sub_(rate * ratio)
            keep = min(AVERAGE, count / (count + 9))
            self.average[name] = keep * self.average[name] + (1 - keep) * weight
            self.largest[name] = max(self.largest.get(name, 0.0), float(gradient.abs().max()))
            moved = rate * (1 + ratio.abs()) * self.gamma * self.largest[name] / root
            self.slack[name] = self.slack.get(name, zero) + moved + 4 * UNIT * weight.abs()

    def check(self, found: Tensors) -> None:
        """Weights, averages, moments and norms are those of the truth, as near as float32 can be."""
        assert found["count"] == len(self.norms)
        norms, gamma = found["norms"], self.gamma
        torch.testing.assert_close(norms[norms > 0], norms.new_tensor(self.norms), rtol=gamma, atol=0)
        for name, weight in self.weights.items():
            largest = self.largest[name]
            self._near(found[name], weight, self.slack[name])
            self._near(found[f"ema.{name}"], self.average[name], self.slack[name])
            self._near(found[f"exp_avg.{name}"], self.first[name], gamma * largest)
            share = (1 - BETAS[1]) * len(self.norms)
            self._near(found[f"exp_avg_sq.{name}"], self.second[name], 2 * gamma * largest**2 * share)

    @staticmethod
    def _near(found: Tensor, wanted: Tensor, slack: Tensor | float) -> None:
        excess = (found.double().reshape(wanted.shape) - wanted).abs() - slack
        assert bool((excess <= 0).all()), f"off by {float(excess.max())} more than rounding explains"


def follow(
    processes: ModuleType, parts: int = 1, steps: Iterable[int] = range(UPDATES), gamma: float = GAMMA
) -> Truth:
    """A few updates by one process in float64, from the whole batch or from `parts` that know nothing of each other."""
    made = processes.decoder().double()
    named = dict(made.named_parameters())
    truth = Truth({name: parameter.data for name, parameter in named.items()}, gamma)
    for step in steps:
        made.zero_grad()
        for part in range(parts):
            (processes.losses(made, made, step, part, parts).backward / parts).backward()
        truth.update(
            {name: p.grad for name, p in named.items() if p.grad is not None}, processes.RATE * (1 + step)
        )
    return truth


@pytest.fixture(scope="module")
def truth(processes: ModuleType) -> Truth:
    return follow(processes)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", STAGES)
def test_applied_updates_are_those_of_adamw_in_float64(
    told: Told, truth: Truth, stage: int, world: int
) -> None:
    found = [load_file(told.folder / f"zero{stage}-{world}-{rank}.safetensors") for rank in range(world)]
    truth.check(found[0])
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert [name for name in other if not torch.equal(found[0][name], other[name])] == []


def test_rounding_explains_but_a_small_share_of_what_was_learned(truth: Truth, processes: ModuleType) -> None:
    start = dict(processes.decoder().named_parameters())
    moved = torch.cat([(truth.weights[name] - start[name]).abs().flatten() for name in start])
    slack = torch.cat([truth.slack[name].flatten() for name in start])
    assert float((slack > 1e-3 * moved).double().mean()) < 0.05
    assert float((slack > 1e-2 * moved).double().mean()) < 0.01


def test_negatives_of_one_process_alone_would_be_told_from_those_of_all(
    truth: Truth, processes: ModuleType
) -> None:
    apart = follow(processes, parts=2)
    seen = {
        **apart.weights,
        "count": torch.tensor(4.0),
        "norms": torch.tensor(truth.norms, dtype=torch.float64),
    }
    with pytest.raises(AssertionError, match="more than rounding explains"):
        truth.check(seen)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("kind", REDUCED)
def test_updates_in_reduced_precision_are_those_of_float64_but_for_its_own_rounding(
    told: Told, processes: ModuleType, kind: str, stage: int, world: int
) -> None:
    found = [load_file(told.folder / f"{kind}-{stage}-{world}-{rank}.safetensors") for rank in range(world)]
    for other in found[1:]:  # and so are the steps that were left out
        assert [name for name in other if not torch.equal(found[0][name], other[name])] == []
    left_out = int((found[0]["norms"] == 0).sum())
    assert found[0]["skipped"] == left_out
    assert left_out == (
        0 if kind == "bfloat16" else 3
    )  # the first steps, until the loss scale is small enough
    taken = range(left_out, len(found[0]["norms"]))
    follow(processes, steps=taken, gamma=REDUCED[kind]).check(found[0])
    apart = follow(processes, parts=2, steps=taken)
    seen = {f"exp_avg.{name}": value for name, value in apart.first.items()}
    with pytest.raises(AssertionError, match="more than rounding explains"):
        follow(processes, steps=taken, gamma=REDUCED[kind]).check({**found[0], **seen, **apart.weights})


def figures(record: dict[str, Any], rates: bool) -> dict[str, float]:
    """What a record says of training: the learning rate, or everything else."""
    return {
        name: value
        for name, value in record.items()
        if name.startswith(("train/", "validation/")) and rates == name.startswith("train/learning_rate")
    }


@pytest.mark.parametrize("run", GROUPS)
def test_losses_norms_and_validation_are_those_of_one_process_at_every_step(told: Told, run: str) -> None:
    alone, group = told.records("alone"), told.records(run)
    assert [r["step"] for r in group] == [r["step"] for r in alone]
    for one, other in zip(alone, group, strict=True):
        assert figures(other, rates=False) == pytest.approx(figures(one, rates=False), rel=CURVE, abs=0)
    assert {name.split("/")[-1] for r in alone for name in r} >= {
        "contrastive",
        "bimixco",
        "softclip",
        "retrieval",
    }


@pytest.mark.parametrize("run", GROUPS)
def test_the_learning_rate_is_the_same_at_every_step_to_the_bit(told: Told, run: str) -> None:
    alone, group = ([figures(r, rates=True) for r in told.records(name)] for name in ("alone", run))
    assert group == alone
    assert len({rate for r in alone for rate in r.values()}) == 8


@pytest.mark.parametrize("file", ["model", "ema", "state/optimiser"])
@pytest.mark.parametrize("run", GROUPS)
def test_finished_weights_averages_and_moments_are_those_of_one_process(
    told: Told, run: str, file: str
) -> None:
    one, other = (schema.load_tensors(told.final(name), f"{file}.safetensors") for name in ("alone", run))
    assert one.keys() == other.keys()
    for name, value in one.items():
        error = float((other[name] - value).abs().max())
        assert error <= WEIGHTS * float(value.abs().max()), f"{name} is off by {error}"


@pytest.mark.parametrize("run", GROUPS)
def test_what_was_learned_is_a_thousand_times_the_tolerance(told: Told, run: str) -> None:
    end = schema.load_tensors(told.final(run))
    start = schema.load_tensors(told.folder / run / "checkpoints" / "step-00000002")
    for name in end:
        if name.startswith(("heads.", "backbone.")):
            assert float((end[name] - start[name]).abs().max()) > 1e3 * WEIGHTS * float(end[name].abs().max())


def test_a_group_killed_at_random_steps_ends_as_one_that_was_not_to_the_bit(told: Told) -> None:
    assert len(told.killed_at) == 4 and max(told.killed_at) < 36
    whole, broken = told.final("whole"), told.final("broken")
    assert whole.name == broken.name == "step-00000036"
    for name in ("model", "ema", "state/model", "state/optimiser"):
        one, other = ((path / f"{name}.safetensors").read_bytes() for path in (whole, broken))
        assert one == other, name
    assert schema.read_manifest(whole).metrics == schema.read_manifest(broken).metrics
    assert [path.name for path in broken.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("run", ["broken", "moved"])
def test_every_step_stands_once_in_the_records_of_a_run_that_was_stopped(told: Told, run: str) -> None:
    records = told.records(run)
    steps = records[-1]["total"]
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, steps + 1))
    other = told.records("whole" if run == "broken" else "two")
    if run == "broken":
        assert [figures(r, rates=False) for r in records] == [figures(r, rates=False) for r in other]
