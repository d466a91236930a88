"""Engines against a truth: two processes with DeepSpeed make the updates that one process makes with plain AdamW.

Subjects have heads of unequal width, every rank's batch holds every subject, and pictures repeat within the batch.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fmri2img.trainer.engines import AccelerateEngine

Tensors = dict[str, Tensor]
STAGES = [0, 1, 2, 3]
# Sums over the batch in another order differ by some float32 roundings (2**-24 = 6e-8 each, relative to the largest
# element of a tensor); 1e-5 allows about 150 of them. A gradient that misses a row or a factor is wrong by 1e-2.
ROUNDING = 1e-5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # DeepSpeed compiles its collectives at the first use


def assert_close(one: Tensors, truth: Tensors, tolerance: float) -> None:
    """Every tensor within `tolerance` of the truth, relative to the tensor's largest element."""
    assert one.keys() == truth.keys()
    for name, value in truth.items():
        error = float((one[name].double() - value.double()).abs().max())
        assert error <= tolerance * float(value.abs().max()), f"{name} is off by {error}"


def assert_equal(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def state(engine: Any) -> Tensors:
    return {**engine.model_tensors(), **engine.optimiser_tensors()}


def start(processes: ModuleType, clip: float, tensors: Tensors | None = None) -> AccelerateEngine:
    """A single process at step 0, or where the tensors of a checkpoint were."""
    decoder = processes.decoder()
    if tensors is not None:
        decoder.load_state_dict({name: tensors[name] for name in decoder.state_dict()})
    engine = AccelerateEngine(decoder, processes.config(0, clip))
    if tensors is not None:
        engine.load_optimiser(tensors)
    return engine


def test_loss_and_averaged_gradients_of_two_processes_are_those_of_one_in_float64(
    two_processes: Path, processes: ModuleType
) -> None:
    truth = processes.double_gradients()
    for rank in range(2):
        assert_close(load_file(two_processes / f"double-{rank}.safetensors"), truth, 1e-10)


@pytest.mark.parametrize("clip", [0.05, 0.0])
@pytest.mark.parametrize("stage", STAGES)
def test_weights_moments_and_norms_after_several_steps_are_those_of_one_process(
    two_processes: Path, processes: ModuleType, stage: int, clip: float
) -> None:
    engine = start(processes, clip)
    norms = processes.train(engine, 0, processes.STEPS)
    assert min(norms) > 10 * 0.05  # so the clip is felt at every step
    truth = {**state(engine), "norms": torch.tensor(norms)}
    for rank in range(2):
        found = load_file(two_processes / f"zero{stage}-clip{clip}-end-{rank}.safetensors")
        assert_close(found, truth, ROUNDING)
        start_at = {name: p.detach() for name, p in processes.decoder().named_parameters()}
        moved, wanted = ({n: t[n] - p for n, p in start_at.items()} for t in (found, truth))
        assert_close(moved, wanted, 10 * ROUNDING)


@pytest.mark.parametrize("stage", STAGES)
def test_a_saved_and_loaded_engine_goes_on_as_if_it_had_not_stopped(
    two_processes: Path, processes: ModuleType, stage: int
) -> None:
    for rank in range(2):
        end = load_file(two_processes / f"zero{stage}-clip0.05-end-{rank}.safetensors")
        end.pop("norms")
        assert_equal(load_file(two_processes / f"zero{stage}-clip0.05-resumed-{rank}.safetensors"), end)


@pytest.mark.parametrize("stage", STAGES)
def test_what_two_processes_saved_one_process_goes_on_with(
    two_processes: Path, processes: ModuleType, stage: int
) -> None:
    middle = load_file(two_processes / f"zero{stage}-clip0.05-middle-0.safetensors")
    engine = start(processes, 0.05, middle)
    processes.train(engine, processes.MIDDLE, processes.STEPS)
    end = load_file(two_processes / f"zero{stage}-clip0.05-end-0.safetensors")
    end.pop("norms")
    assert_close(state(engine), end, ROUNDING)


def test_a_single_process_goes_on_as_if_it_had_not_stopped(processes: ModuleType) -> None:
    whole = start(processes, 0.05)
    processes.train(whole, 0, processes.MIDDLE)
    broken = start(processes, 0.05, state(whole))
    for engine in (whole, broken):
        processes.train(engine, processes.MIDDLE, processes.STEPS)
    assert_equal(state(broken), state(whole))


def test_a_single_process_is_adamw_with_clipping(processes: ModuleType) -> None:
    engine = start(processes, 0.05)
    processes.train(engine, 0, 3)
    plain = processes.decoder()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    for step in range(3):
        processes.losses(plain, plain, step).backward.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        for group in optimiser.param_groups:
            group["lr"] = processes.RATE * (1 + step)
        optimiser.step()
        optimiser.zero_grad()
    assert_equal(engine.model_tensors(), dict(plain.state_dict()))
