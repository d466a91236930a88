"""Who takes turns in `pretrain.py`: our loop, MindEye2's scheme, and the decoder alone."""

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretrain_networks as networks
import torch
from torch import Tensor
from torch.nn import functional

from fmri2img.models.decoder import MultiSubjectDecoder, decay_groups
from fmri2img.trainer.batches import Batch
from fmri2img.trainer.config import Recipe, SpaceConfig
from fmri2img.trainer.objectives import Place
from fmri2img.trainer.schedules import learning_rate
from fmri2img.trainer.stages import Material
from fmri2img.trainer.validation import validate

SPACE, TEMPERATURE, WEIGHT = "tokens", 0.1, 0.3
Seconds = tuple[float, float]  # CPU, wall


def clock() -> Seconds:
    """CPU seconds of all threads of this process, and wall seconds."""
    return time.process_time(), time.perf_counter()


@dataclass
class Runner:
    """Weights in training, what each block took, and the validation loss after it."""

    decoder: MultiSubjectDecoder
    blocks: list[Seconds] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count a block."""
        begun = clock()
        yield
        now = clock()
        self.blocks.append((now[0] - begun[0], now[1] - begun[1]))

    def judge(self, material: Material, spaces: Mapping[str, SpaceConfig], steps: int) -> None:
        """Validate as our loop does."""
        engine: Any = SimpleNamespace(
            decoder=self.decoder, device=torch.device("cpu"), forward=self.decoder.__call__
        )
        with torch.random.fork_rng(devices=[]):
            found = validate(engine, material.validation, spaces, Place.last(steps))
        self.losses.append(found["validation/loss"])


class Plain(Runner):
    """The plainest correct loop over batches in memory, with the features given."""

    def __init__(self, decoder: MultiSubjectDecoder, recipe: Recipe) -> None:
        super().__init__(decoder)
        self.config = recipe.pretraining
        groups: list[Any] = decay_groups(decoder, self.config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=0.0)

    def step(self, number: int, responses: dict[str, Tensor], features: Tensor, processes: int = 1) -> None:
        """One update; `processes` share the rows in turn and see no negatives of each other."""
        self.decoder.train()
        _, predicted, directions, *_ = self.decoder(responses)
        target = self.decoder.branch(SPACE).standardise(features)
        loss = functional.mse_loss(predicted[SPACE], target)
        for first in range(processes):
            own = functional.normalize(directions[SPACE][first::processes])
            scores = own @ functional.normalize(target[first::processes]).T / TEMPERATURE
            truth = torch.arange(len(scores))
            both = functional.cross_entropy(scores, truth) + functional.cross_entropy(scores.T, truth)
            loss = loss + WEIGHT * both / 2 / processes
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, number)
        self.optimiser.step()
        self.optimiser.zero_grad()


class Alone(Plain):
    """The decoder and nothing else: the same few batches again and again."""

    def __init__(self, decoder: MultiSubjectDecoder, recipe: Recipe, batches: list[Batch]) -> None:
        super().__init__(decoder, recipe)
        self.batches = batches

    def block(self, first: int, last: int) -> None:
        """Steps first to last - 1."""
        for number in range(first, last):
            batch = self.batches[number % len(self.batches)].to(torch.device("cpu"))
            self.step(number, batch.responses, batch.features[SPACE])


class Scheme(Plain):
    """Epochs loaded ahead as float32, the frozen network at every step, negatives of one process."""

    def __init__(
        self, decoder: MultiSubjectDecoder, recipe: Recipe, material: Material, options: argparse.Namespace
    ) -> None:
        super().__init__(decoder, recipe)
        self.processes, self.each = options.processes, options.batch // len(material.tables)
        self.frozen = networks.frozen_network(options)
        self.generator = np.random.default_rng(0)
        self.pictures, self.responses = {}, {}
        for subject, table in material.tables.items():
            rows = range(len(table))
            pictures = np.stack([material.dataset.picture(table, row) for row in rows])
            self.pictures[subject] = networks.prepare(pictures).half()
            trials = [material.dataset.responses(table, row) for row in rows]
            self.responses[subject] = torch.from_numpy(np.stack(trials))
        self.epoch_bytes = 0

    def preload(self, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (steps, rows, 3, side, side) and responses (steps, rows, voxels) of an epoch, no picture twice."""
        pictures, responses = [], {}
        for subject, trials in self.responses.items():
            shape = (steps, self.each)
            rows = np.stack([self.generator.permutation(len(trials))[: self.each] for _ in range(steps)])
            repeats = self.generator.integers(trials.shape[1], size=shape)
            pictures.append(self.pictures[subject][rows].float())
            responses[subject] = trials[rows, repeats].float()
        joined = torch.cat(pictures, 1)
        self.epoch_bytes = sum(value.nbytes for value in (joined, *responses.values()))
        return joined, responses

    def block(self, first: int, last: int) -> None:
        """Steps first to last - 1."""
        pictures, responses = self.preload(last - first)
        for number in range(first, last):
            features = self.frozen(pictures[number - first])
            rows = {name: values[number - first] for name, values in responses.items()}
            self.step(number, rows, features, self.processes)
