"""From the sampling plan to tensors: batches of a rank, read ahead by a thread, and whole sets of pictures."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.plan import SamplingPlan, trials_of
from fmri2img.errors import InputError
from fmri2img.models.closed_form import PictureRows
from fmri2img.trainer.seeds import derive_seed


@dataclass(frozen=True)
class Batch:
    """One step's rows of one rank: subjects one after another, lanes in order within a subject."""

    step: int
    responses: dict[str, Tensor]  # {subject: (rows, voxels)}
    features: dict[str, Tensor]  # {space: (all rows, *shape)}
    pictures: Tensor  # (all rows,) nsd_id
    waited: float  # seconds that training waited for this batch

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        responses = {name: value.to(device) for name, value in self.responses.items()}
        features = {name: value.to(device) for name, value in self.features.items()}
        return Batch(self.step, responses, features, self.pictures.to(device), self.waited)


class BatchLoader:
    """Batches of a rank from any step on. A batch is a pure function of the step, so there is no state to save."""

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
        ahead: int = 3,
    ) -> None:
        self.dataset, self.tables, self.plan, self.spaces = dataset, tables, plan, list(spaces)
        self.rank, self.world_size, self.seed, self.noise, self.ahead = rank, world_size, seed, noise, ahead

    def read(self, step: int) -> Batch:
        """The batch of one step."""
        responses: dict[str, Tensor] = {}
        features: dict[str, list[np.ndarray]] = {name: [] for name in self.spaces}
        pictures: list[np.ndarray] = []
        for subject, (rows, repeats) in self.plan.rank_rows(step, self.rank, self.world_size).items():
            table = self.tables[subject]
            values = self.dataset.read_trials(table, rows, repeats)
            if self.noise:
                values = values + self.noise * self._noise(step, subject, values.shape)
            responses[subject] = torch.from_numpy(values)
            pictures.append(table.nsd_id[rows])
            for name in self.spaces:
                features[name].append(self.dataset.read_features(table, rows, name))
        joined = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in features.items()}
        return Batch(step, responses, joined, torch.from_numpy(np.concatenate(pictures)), 0.0)

    def _noise(self, step: int, subject: str, shape: tuple[int, ...]) -> np.ndarray:
        """Noise of each lane's rows from (seed, step, subject, lane): the same at every world size."""
        per_rank = self.plan.lanes // self.world_size
        rows = shape[0] // per_rank
        parts = []
        for lane in range(self.rank * per_rank, (self.rank + 1) * per_rank):
            generator = np.random.default_rng(derive_seed(self.seed, "noise", step, subject, lane))
            parts.append(generator.standard_normal((rows, shape[1]), dtype=np.float32))
        return np.concatenate(parts)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of steps first to last - 1, read ahead in one thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            queue: list[Future[Batch]] = [
                pool.submit(self.read, s) for s in range(first, min(first + self.ahead, last))
            ]
            try:
                for step in range(first, last):
                    started = time.perf_counter()
                    batch = queue.pop(0).result()
                    waited = time.perf_counter() - started
                    if step + self.ahead < last:
                        queue.append(pool.submit(self.read, step + self.ahead))
                    yield Batch(step, batch.responses, batch.features, batch.pictures, waited)
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

    Averages are grouped by picture, single trials by session. Pictures without a repeat in the sessions are left out.
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
    return PictureRows(responses, features, samples.nsd_id[rows], groups)


def with_sessions(samples: Samples, sessions: Sequence[int] | None) -> Samples:
    """The samples that were seen at least once in these sessions.

    Raises InputError for a session that the subject does not have.
    """
    rows, _ = trials_of(samples, sessions)
    return samples.take(np.unique(rows))
