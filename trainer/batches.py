"""From the sampling plan to tensors: batches of a rank, read ahead by threads, and whole sets of pictures."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.plan import SamplingPlan, trials_of
from fmri2img.errors import InputError
from fmri2img.models.closed_form import PictureRows
from fmri2img.models.prior import PriorConfig
from fmri2img.trainer.objectives.prior import Draws, draw_noise
from fmri2img.trainer.seeds import derive_seed

PREFETCH_EVERY = 100  # steps; a bounded cache takes in only some of what is needed next


@dataclass(frozen=True)
class Batch:
    """One step's rows of one rank: subjects one after another, lanes in order within a subject."""

    step: int
    responses: dict[str, Tensor]  # {subject: (rows, inputs)}, float16 as stored where no noise was added
    features: dict[str, Tensor]  # {space: (all rows, *shape)}, in the dtype they are stored in
    pictures: Tensor  # (all rows,) nsd_id
    waited: float  # seconds that training waited for this batch
    draws: dict[str, Draws] = field(default_factory=dict)  # {space with a prior: what it is asked about}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device, in float32: it is widened there, so that the way to it stays short."""
        responses = {name: value.to(device).float() for name, value in self.responses.items()}
        features = {name: value.to(device).float() for name, value in self.features.items()}
        draws = {name: drawn.to(device) for name, drawn in self.draws.items()}
        return Batch(self.step, responses, features, self.pictures.to(device), self.waited, draws)


class BatchLoader:
    """Batches of a rank from any step on. A batch is a pure function of the step, so there is no state to save.

    `priors` are those of the spaces that have one: their noise is drawn here, ahead of training too.
    `workers` threads read up to `ahead` batches ahead of training; neither changes what is read.
    """

    def __init__(
        self,
        dataset: Dataset,
        tables: Mapping[str, Samples],
        plan: SamplingPlan,
        spaces: Sequence[str],
        *,
        rank: int,
        world_size: int,
        seed: int,
        noise: float,
        priors: Mapping[str, PriorConfig] | None = None,
        ahead: int = 3,
        workers: int = 1,
    ) -> None:
        self.dataset, self.tables, self.plan, self.spaces = dataset, tables, plan, list(spaces)
        self.rank, self.world_size, self.seed, self.noise = rank, world_size, seed, noise
        self.priors = dict(priors or {})
        self.ahead, self.workers = max(ahead, workers), workers

    def read(self, step: int) -> Batch:
        """The batch of one step."""
        responses: dict[str, Tensor] = {}
        parts: list[tuple[Samples, np.ndarray]] = []
        for subject, (rows, repeats) in self.plan.rank_rows(step, self.rank, self.world_size).items():
            table = self.tables[subject]
            stored = self.dataset.stored_trials(table, rows, repeats)
            values = torch.from_numpy(stored.reshape(len(stored), -1))
            if self.noise:
                noise = torch.from_numpy(self._noise(step, subject, tuple(values.shape)))
                values = noise.mul_(self.noise).add_(values)
            responses[subject] = values
            parts.append((table, rows))
        features = {name: self.dataset.feature_tensor(parts, name) for name in self.spaces}
        pictures = np.concatenate([table.nsd_id[rows] for table, rows in parts])
        return Batch(step, responses, features, torch.from_numpy(pictures), 0.0, self._draws(step, responses))

    def _lanes(self) -> range:
        each = self.plan.lanes // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)

    def _draws(self, step: int, responses: Mapping[str, Tensor]) -> dict[str, Draws]:
        rows = {subject: len(values) for subject, values in responses.items()}
        sizes = {name: prod(self.dataset.feature_spaces[name].shape) for name in self.priors}
        return {
            name: draw_noise(name, prior, sizes[name], rows, self._lanes(), seed=self.seed, step=step)
            for name, prior in self.priors.items()
        }

    def _noise(self, step: int, subject: str, shape: tuple[int, ...]) -> np.ndarray:
        """Noise of each lane's rows from (seed, step, subject, lane): the same at every world size."""
        rows = shape[0] // len(self._lanes())
        parts = []
        for lane in self._lanes():
            generator = np.random.default_rng(derive_seed(self.seed, "noise", step, subject, lane))
            parts.append(generator.standard_normal((rows, shape[1]), dtype=np.float32))
        return np.concatenate(parts)

    def _fetch(self, step: int, first: int) -> Batch:
        if self.dataset.is_remote and (step - first) % PREFETCH_EVERY == 0:
            shards = self.plan.upcoming_shards(step, self.rank, self.world_size)
            self.dataset.prefetch(shards, ("responses", *self.spaces))
        return self.read(step)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of steps first to last - 1, in order, read ahead."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            queue: list[Future[Batch]] = [
                pool.submit(self._fetch, s, first) for s in range(first, min(first + self.ahead, last))
            ]
            try:
                for step in range(first, last):
                    started = time.perf_counter()
                    batch = queue.pop(0).result()
                    waited = time.perf_counter() - started
                    if step + self.ahead < last:
                        queue.append(pool.submit(self._fetch, step + self.ahead, first))
                    yield replace(batch, waited=waited)
            finally:
                for future in queue:
                    future.cancel()


def picture_rows(
    dataset: Dataset,
    samples: Samples,
    spaces: Sequence[str],
    *,
    sessions: Sequence[int] | None = None,
    single: bool = False,
) -> PictureRows:
    """Responses in the chosen sessions with features: averaged over a picture's repeats, or every trial by itself.

    A window of time points is one row of `time * voxels`. Averages are grouped by picture, single trials by session.
    Pictures without a repeat in the sessions are left out.
    Raises InputError when none is left.
    """
    rows, repeats = trials_of(samples, sessions)
    if not len(rows):
        raise InputError(
            f"{samples.subject} has no picture on this side of the split: give it more sessions, or the recipe "
            "a larger `validation` or none (0)"
        )
    if single:
        responses, groups = (
            dataset.read_trials(samples, rows, repeats),
            samples.sessions[rows, repeats].astype(np.int64),
        )
    else:
        kept = np.unique(rows)
        responses = np.stack(
            [dataset.responses(samples, r)[repeats[rows == r]].astype(np.float32).mean(0) for r in kept]
        )
        rows = kept
        groups = samples.nsd_id[rows]
    features = {name: dataset.read_features(samples, rows, name) for name in spaces}
    return PictureRows(responses.reshape(len(rows), -1), features, samples.nsd_id[rows], groups)


def with_sessions(samples: Samples, sessions: Sequence[int] | None) -> Samples:
    """The samples that were seen at least once in these sessions.

    Raises InputError for a session that the subject does not have.
    """
    rows, _ = trials_of(samples, sessions)
    return samples.take(np.unique(rows))
