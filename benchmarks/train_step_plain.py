"""What `train_step.py` sets its figures beside: the plainest correct loop, and how long a checkpoint is in the way."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fmri2img.checkpoints_schema import FeatureSpaceRecord, SubjectRecord
from fmri2img.models.decoder import MultiSubjectDecoder, decay_groups
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.batches import Batch
from fmri2img.trainer.config import Recipe, TrainingConfig
from fmri2img.trainer.engines import AccelerateEngine
from fmri2img.trainer.saving import Saver
from fmri2img.trainer.schedules import learning_rate
from fmri2img.trainer.state import Identity

PARTS = ("to_device", "forward", "backward", "update")


class PlainLoop:
    """The steps of a run on batches that lie in memory, nothing read, guarded or written; one step a call.

    The same arithmetic as ours with the default recipe: noise on responses, dropout, squared error on every space,
    contrast over the batch, the norm clipped, AdamW in the same groups at the same rates.
    """

    def __init__(
        self,
        decoder: MultiSubjectDecoder,
        batches: Sequence[Batch],
        recipe: Recipe,
        clock: Callable[[], float],
    ) -> None:
        self.decoder, self.batches, self.spaces, self.clock = decoder, batches, recipe.spaces, clock
        self.config: TrainingConfig = recipe.pretraining
        groups: Any = decay_groups(decoder, self.config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=0.0)
        self.done = 0
        self.losses: list[float] = []
        self.parts: list[list[float]] = []
        decoder.train()

    def step(self) -> None:
        """One update."""
        times, batch = [self.clock()], self.batches[self.done]
        responses = {name: rows.float() for name, rows in batch.responses.items()}
        if self.config.noise:
            responses = {
                n: rows + self.config.noise * torch.randn_like(rows) for n, rows in responses.items()
            }
        times.append(self.clock())
        _, features, directions, *_ = self.decoder(responses)
        loss = self._loss(features, directions, batch)
        times.append(self.clock())
        self.optimiser.zero_grad()
        loss.backward()
        times.append(self.clock())
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, self.done)
        self.optimiser.step()
        times.append(self.clock())
        self.parts.append([end - begin for begin, end in pairwise(times)])
        self.losses.append(float(loss.detach()))
        self.done += 1

    def _loss(self, features: Mapping[str, Tensor], directions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        own = torch.arange(len(batch.pictures))
        same = (batch.pictures[:, None] == batch.pictures).fill_diagonal_(False)
        loss = torch.zeros(())
        for name, predicted in features.items():
            target = self.decoder.branch(name).standardise(batch.features[name].float())
            loss = loss + functional.mse_loss(predicted, target)
            if name in directions:
                contrast = self.spaces[name].losses.contrastive
                assert contrast is not None
                unit = functional.normalize(target)
                scores = functional.normalize(directions[name]) @ unit.T / contrast.temperature
                scores = scores.masked_fill(same, float("-inf"))  # one picture twice is no pair of strangers
                both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
                loss = loss + contrast.weight * both / 2
        return loss


def checkpoint_stall(
    recipe: Recipe, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace], folder: Path
) -> dict[str, float]:
    """How long a save keeps the loop, and how long the writing behind it takes."""
    decoder = recipe.decoder.build(voxels, spaces)
    engine = AccelerateEngine(decoder, recipe.pretraining)
    latent, features, *_ = engine.forward({name: torch.zeros(2, width) for name, width in voxels.items()})
    total = torch.stack([value.sum() for value in features.values()]).sum()
    engine.backward(latent.sum() + total)
    engine.step(1e-6)
    size = sum(p.numel() for p in decoder.parameters()) * 4 / 1e9
    people = {
        name: SubjectRecord(voxels=width, dataset="benchmark", fingerprint="0" * 64)
        for name, width in voxels.items()
    }
    told = {
        name: FeatureSpaceRecord(shape=space.shape, dtype="float32", extractor={})
        for name, space in spaces.items()
    }
    saver = Saver(folder / "saved", engine, Identity({}, recipe.name, people, told), keep=1)
    stalls, writes = [], []
    for step in range(1, 4):
        started = time.perf_counter()
        saver.save(step, metrics={})
        stalls.append(time.perf_counter() - started)
        saver.wait()
        writes.append(time.perf_counter() - started)
    stall = statistics.median(stalls) / size
    return {
        "weights_gb": round(size, 3),
        "stall_s_per_gb_of_weights": round(stall, 3),
        "written_s_per_gb_of_weights": round(statistics.median(writes) / size, 3),
        "share_of_ten_minutes_at_1_gb": round(stall / 600, 5),
    }
