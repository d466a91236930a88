"""The training loop of the simulation's models: plain torch on one device, resumed bitwise wherever it was stopped.

A batch is cut into lanes, each computed by one thread, and their gradients are added in order: the same bits on one
core as on many. What a step draws depends on the seed, the model's name and the step alone.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from fmri2img.simulation.modelling.muon import WEIGHT_DECAY, Muon
from fmri2img.simulation.modelling.sizes import LANES, Schedule

SECONDS_BETWEEN_CHECKPOINTS = 120.0
WARM_UP = 0.05
LARGEST_GRADIENT = 1.0
AVERAGING = 0.999
"""Decay of the averaged weights, reached gradually."""


class Task(Protocol):
    """What is trained: parameters of `module` that require a gradient."""

    name: str
    module: nn.Module
    hidden: tuple[str, ...]
    """Parts of the names of the matrices and kernels between its layers."""

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        """The mean loss of some rows of the training set; `rng` is on the CPU."""
        ...


def train(task: Task, folder: Path, schedule: Schedule, *, pictures: int, seed: int, tell: Tell) -> None:
    """Train `task.module` in place from where `folder` has it, and leave the averaged weights in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.safetensors"
    state = _State(task, schedule)
    if path.exists():
        state.restore(path)
    saved = time.monotonic()
    with _one_thread_each(task.module) as threads:
        while state.step < schedule.steps:
            loss = _step(task, state, schedule, threads, pictures=pictures, seed=seed)
            tell(state.step, schedule.steps, f"loss {loss:.4f}")
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS or state.step == schedule.steps:
                write_atomic(path, state.bytes())
                saved = time.monotonic()
    with torch.no_grad():
        for parameter, average in zip(state.parameters, state.average, strict=True):
            parameter.copy_(average)


@contextmanager
def _one_thread_each(module: nn.Module) -> Iterator[ThreadPoolExecutor]:
    """Threads for the lanes, each computing alone, and so does the one that calls: torch's own helpers would wait
    for one another in a loop, at full load, and add in an order that depends on how many there are."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(_threads(module), initializer=_alone) as threads:
        _alone()
        try:
            yield threads
        finally:
            torch.set_num_threads(before)


def _alone() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


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
    state.update(gradients, threads)
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
    """Weights, their average, the optimisers' moments and the step."""

    def __init__(self, task: Task, schedule: Schedule) -> None:
        named = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list(named.values())
        self.average = [p.detach().clone() for p in self.parameters]
        self.schedule = schedule
        turned = {
            name: p
            for name, p in named.items()
            if schedule.matrix_rate and p.ndim > 1 and any(part in name for part in task.hidden)
        }
        self.muon = Muon(turned, schedule.matrix_rate)
        self.optimiser = torch.optim.AdamW(
            [p for name, p in named.items() if name not in turned],
            lr=schedule.rate,
            betas=(0.9, 0.98),
            weight_decay=WEIGHT_DECAY,
        )
        self.step = 0

    def update(self, gradients: Sequence[Tensor], threads: ThreadPoolExecutor) -> None:
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = (LARGEST_GRADIENT / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        share = rate_at(self.step, self.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate * share
        self.optimiser.step()
        self.muon.step(share, threads)
        self.step += 1
        decay = min(AVERAGING, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def bytes(self) -> bytes:
        tensors = {"step": torch.tensor(self.step)}
        for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
            tensors |= {f"weight.{name}": parameter.detach(), f"average.{name}": average}
            if name in self.muon.momentum:
                tensors[f"first.{name}"] = self.muon.momentum[name]
            else:
                moments = self.optimiser.state[parameter]
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
                if name in self.muon.momentum:
                    self.muon.momentum[name].copy_(tensors[f"first.{name}"])
                    continue
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": torch.empty_like(parameter).copy_(tensors[f"first.{name}"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"second.{name}"]),
                }


def rate_at(step: int, schedule: Schedule) -> float:
    """Share of the highest learning rate: a short linear rise, then half a cosine to nothing at the horizon.

    A training that ends before its horizon falls to nothing linearly over its last steps.
    """
    horizon = schedule.horizon or schedule.steps
    rise = max(1, round(WARM_UP * horizon))
    if step < rise:
        return (step + 1) / rise
    wave = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, horizon - rise)))
    return wave * min(1.0, (schedule.steps - step) / schedule.fall) if schedule.fall else wave
