"""The training loop of the simulation's models: plain torch on one device, resumed bitwise wherever it was stopped.

A batch is cut into lanes, each computed by one thread, and their gradients are added in order: the same bits on one
core as on many. What a step draws depends on the seed, the model's name and the step alone.
"""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fmri2img.console import Tell
from fmri2img.errors import DamageError
from fmri2img.files import write_atomic
from fmri2img.simulation.modelling.sizes import LANES, Schedule

SECONDS_BETWEEN_CHECKPOINTS = 120.0
WARM_UP = 0.05
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
AVERAGING = 0.999
"""Decay of the averaged weights, reached gradually."""


class Task(Protocol):
    """What is trained: parameters of `module` that require a gradient."""

    name: str
    module: nn.Module

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        """The mean loss of some rows of the training set; `rng` is on the CPU."""
        ...


def train(task: Task, folder: Path, schedule: Schedule, *, pictures: int, seed: int, tell: Tell) -> None:
    """Train `task.module` in place from where `folder` has it, and leave the averaged weights in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.safetensors"
    state = _State(task.module, schedule)
    if path.exists():
        state.restore(path)
    saved = time.monotonic()
    with ThreadPoolExecutor(
        _threads(task.module), initializer=torch.set_num_threads, initargs=(1,)
    ) as threads:
        while state.step < schedule.steps:
            loss = _step(task, state, schedule, threads, pictures=pictures, seed=seed)
            tell(state.step, schedule.steps, f"loss {loss:.4f}")
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS or state.step == schedule.steps:
                write_atomic(path, state.bytes())
                saved = time.monotonic()
    with torch.no_grad():
        for parameter, average in zip(state.parameters, state.average, strict=True):
            parameter.copy_(average)


def _threads(module: nn.Module) -> int:
    on_cpu = next(module.parameters()).device.type == "cpu"
    return min(LANES, torch.get_num_threads()) if on_cpu else 1


def _step(
    task: Task, state: "_State", schedule: Schedule, threads: ThreadPoolExecutor, *, pictures: int, seed: int
) -> float:
    lanes = np.array_split(_rows(state.step, schedule.batch, pictures, seed, task.name), LANES)

    def lane(number: int) -> tuple[Tensor, Sequence[Tensor]]:
        rng = torch.Generator().manual_seed(_word(seed, task.name, state.step, number))
        loss = task.loss(lanes[number], rng) / LANES
        return loss.detach(), torch.autograd.grad(loss, state.parameters, materialize_grads=True)

    results = list(threads.map(lane, range(LANES)))
    gradients = [torch.stack(parts).sum(0) for parts in zip(*(grads for _, grads in results), strict=True)]
    state.update(gradients)
    return float(sum(loss for loss, _ in results))


def _rows(step: int, batch: int, pictures: int, seed: int, name: str) -> np.ndarray:
    """Each picture once an epoch, in an order of the epoch's own; a rest smaller than a batch is left out."""
    epoch, place = divmod(step, pictures // batch)
    order = np.random.default_rng(_word(seed, name, epoch, -1)).permutation(pictures)
    return np.sort(order[place * batch : (place + 1) * batch])


def _word(seed: int, name: str, *numbers: int) -> int:
    words = [seed, *name.encode(), *(number + 1 for number in numbers)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


class _State:
    """Weights, their average, the optimiser's moments and the step."""

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list(named.values())
        self.average = [p.detach().clone() for p in self.parameters]
        self.schedule = schedule
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        self.step = 0

    def update(self, gradients: Sequence[Tensor]) -> None:
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = (LARGEST_GRADIENT / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate * rate_at(self.step, self.schedule.steps)
        self.optimiser.step()
        self.step += 1
        decay = min(AVERAGING, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def bytes(self) -> bytes:
        tensors = {"step": torch.tensor(self.step)}
        for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
            moments = self.optimiser.state[parameter]
            tensors |= {f"weight.{name}": parameter.detach(), f"average.{name}": average}
            tensors |= {f"first.{name}": moments["exp_avg"], f"second.{name}": moments["exp_avg_sq"]}
        return save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})

    def restore(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                self._take({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
        except (SafetensorError, KeyError) as error:
            raise DamageError(
                f"{path} is no state of this training ({error}): delete it to begin again"
            ) from None

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        self.step = int(tensors["step"])
        with torch.no_grad():
            for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
                parameter.copy_(tensors[f"weight.{name}"])
                average.copy_(tensors[f"average.{name}"])
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": torch.empty_like(parameter).copy_(tensors[f"first.{name}"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"second.{name}"]),
                }


def rate_at(step: int, steps: int) -> float:
    """Share of the highest learning rate: a short linear rise, then half a cosine to nothing."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
