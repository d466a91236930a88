"""Who computes features: one worker that reads ahead while its model is busy, here or in Ray workers."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from fmri2img.datasets import Dataset
from fmri2img.datasets.feature_columns import FeatureColumns, Space, Work, plan, write_new
from fmri2img.datasets.features import read_inputs
from fmri2img.datasets.manifest import ColumnEntry
from fmri2img.datasets.samples import Samples
from fmri2img.errors import Fmri2imgError
from fmri2img.features.extractors import AnyExtractor
from fmri2img.launch.cluster import leave_source_tree
from fmri2img.launch.devices import one_thread
from fmri2img.launch.slots import actor_options
from fmri2img.launch.workers import Pool

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IN_HAND = 2  # shards of a worker: one is computed, one is read or written
LONG = 4  # batches of a job from which on it is timed before it starts


@dataclass(frozen=True)
class FeatureTask:
    """What a worker needs to know; plain data, so that it travels."""

    data: str
    space: Space
    extractor: dict[str, Any]
    device: str
    precision: str
    batch: int


class FeatureWorker:
    """An extractor and a data set, opened once. `make` may be called from several threads."""

    def __init__(self, task: FeatureTask) -> None:
        self.task, self.busy = task, threading.Lock()

    def load(self, timed: int | None = None) -> float:
        """Load the model; returns the seconds of a batch, measured on the pictures of shard `timed`, or 0."""
        task = self.task
        self.dataset, device = Dataset.open(task.data), torch.device(task.device)
        extractor: Any = TypeAdapter(AnyExtractor).validate_python(task.extractor)
        with one_thread():
            self.loaded = extractor.load(device, DTYPES[task.precision], batch=task.batch)
            self.works = plan(self.dataset)
            return 0.0 if timed is None else self._time(self.works[timed])

    def make(self, number: int) -> ColumnEntry:
        """Compute and write what is new in a shard."""
        return write_new(self.dataset, self.task.space, self.works[number], self._features)

    def _features(self, dataset: Dataset, samples: Samples) -> np.ndarray:
        with one_thread():
            prepared = self.loaded.prepare(*read_inputs(dataset, samples))
            with self.busy:
                return self.loaded.compute(prepared)

    def _time(self, work: Work) -> float:
        """Seconds of a batch, reading included; the second of two, because the first one compiles and allocates."""
        samples = self.dataset.shard_samples(work.number).take(work.new[: self.task.batch])
        for _ in range(2):
            started = time.monotonic()
            self.loaded(*read_inputs(self.dataset, samples))
            seconds = time.monotonic() - started
            if seconds > 10:
                break  # so long that what the first one did besides does not count
        return seconds


class RemoteFeatureWorker:
    """A `FeatureWorker` in a Ray worker."""

    def __init__(self, task: FeatureTask, timed: int | None) -> None:
        leave_source_tree()
        self.inner, self.timed = FeatureWorker(task), timed

    def load(self) -> dict[str, Any]:
        """Load the model, and time it."""
        return {"seconds": self.inner.load(self.timed)}

    def make(self, number: int) -> dict[str, Any]:
        """Compute and write what is new in a shard; what the manifest says of the file."""
        return self.inner.make(number).model_dump()


Timed = Callable[[float], None]
"""Called once with the seconds of a batch, 0 where the job is short."""


def timed_shard(columns: FeatureColumns, batch: int) -> int | None:
    """The shard to time a batch of, where the job is long enough that somebody would want to know."""
    todo = columns.todo
    return todo[0] if columns.pictures(todo) > LONG * batch else None


def compute_here(task: FeatureTask, columns: FeatureColumns, timed: Timed) -> None:
    """All there is to do, in this process."""
    todo = columns.todo
    if not todo:
        return
    worker = FeatureWorker(task)
    timed(worker.load(timed_shard(columns, task.batch)))
    for number in todo:
        columns.add(number, worker.make(number))


def compute_spread(task: FeatureTask, columns: FeatureColumns, timed: Timed, workers: int) -> None:
    """All there is to do, over Ray workers of the cluster that is connected.

    Raises Fmri2imgError when shards failed, on two workers each, after all others were made.
    """
    import ray

    todo = columns.todo
    if not todo:
        return
    remote = ray.remote(RemoteFeatureWorker).options(**actor_options(task.device, in_hand=IN_HAND))
    first, told = timed_shard(columns, task.batch), list[float]()

    def loaded(answer: dict[str, Any]) -> None:
        if not told:
            timed(answer["seconds"])
        told.append(answer["seconds"])

    pool = Pool(
        lambda: remote.remote(task, first),
        workers,
        in_hand=IN_HAND,
        told=lambda number: None,
        loaded=loaded,
        answered=lambda number, answer: columns.add(number, ColumnEntry.model_validate(answer)),
    )
    failed = pool.run(todo)
    if failed:
        number, error = min(failed.items(), key=lambda item: item[0])
        raise Fmri2imgError(
            f"{len(failed)} of {len(todo)} shards failed, the first is {columns.works[number].shard}: {error} "
            "The others are done, the same command tries these again"
        ) from error
