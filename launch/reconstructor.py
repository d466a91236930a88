"""One worker of a reconstruction: decoder and generator in memory, units made of them. No cluster here.

Making a unit has three parts: responses are read, numbers are computed, files are written. Parts of neighbouring units
overlap; computing is always one unit's at a time, in one thread, so that nothing but speed depends on the others.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from fmri2img import checkpoints_schema as schema
from fmri2img.datasets import Dataset
from fmri2img.errors import InputError, StoppedError
from fmri2img.files import sha256_file
from fmri2img.generators import AnyGenerator, Generator
from fmri2img.launch.devices import one_thread
from fmri2img.launch.items import Item, ReconstructionJob, Unit, units_of
from fmri2img.launch.units import unit_problem, write_unit
from fmri2img.models.loading import load_decoder
from fmri2img.trainer.seeds import derive_seed

Tensors = dict[str, torch.Tensor]
_GENERATORS: TypeAdapter[Any] = TypeAdapter(AnyGenerator)


@dataclass(frozen=True)
class Trials:
    """One trial each of some items of a unit that are of one subject."""

    subject: str
    places: list[int]  # of the items within the unit
    responses: np.ndarray  # (batch, inputs) float32, rows behind the items' are 0


class Decoding:
    """Decoder and data of a job in memory, which is all that predicting takes.

    Raises InputError when the checkpoint changed since the job was planned.
    """

    def __init__(
        self, job: ReconstructionJob, checkpoint: Path, data: Path, *, device: str | None = None
    ) -> None:
        self.found = schema.resolve(checkpoint)
        if sha256_file(self.found.path / schema.MANIFEST_NAME) != job.checkpoint:
            raise InputError(f"{checkpoint} changed since the job was planned: give another --out")
        self.job, self.dataset = job, Dataset.open(data)
        self.device = torch.device(device or job.device)
        _repeatable(self.device)
        self.decoder = load_decoder(self.found.path).to(self.device)
        self.units = units_of(job, self.dataset)
        self.tables = {name: self.dataset.samples(name, job.split) for name in job.subjects}

    def read(self, unit: Unit) -> list[Trials]:
        """Every repeat of every item, in batches of one subject and repeat number that always have `batch` rows."""
        found = []
        for subject in sorted({item.subject for item in unit.items}):
            places = [i for i, item in enumerate(unit.items) if item.subject == subject]
            for turn in range(max(len(unit.items[i].repeats) for i in places)):
                chosen = [i for i in places if turn < len(unit.items[i].repeats)]
                rows = np.array([unit.items[i].row for i in chosen])
                repeats = np.array([unit.items[i].repeats[turn] for i in chosen])
                values = self.dataset.read_trials(self.tables[subject], rows, repeats)
                padded = np.zeros((self.job.batch, int(np.prod(values.shape[1:]))), np.float32)
                padded[: len(values)] = values.reshape(len(values), -1)
                found.append(Trials(subject, chosen, padded))
        return found

    def predict(self, unit: Unit, trials: Sequence[Trials]) -> tuple[Tensors, Tensors]:
        """Features and retrieval directions of a unit's items, as `compute` has them, whatever the responses are."""
        with one_thread(), _own_randomness(self.job, unit, self.device), torch.no_grad():
            return self._predict(unit.items, trials)

    def _predict(self, items: Sequence[Item], trials: Sequence[Trials]) -> tuple[Tensors, Tensors]:
        """Features and retrieval directions of each item, averaged over its repeats (as Scotti et al. 2024, section 3).

        A forward always has `batch` rows, so that no item's numbers depend on the others.
        """
        sums: dict[str, Tensors] = {"features": {}, "retrieval": {}}
        for trial in trials:
            responses = torch.from_numpy(trial.responses).to(self.device)
            predicted = self.decoder.predict({trial.subject: responses})
            for kind, spaces in (("features", predicted.features), ("retrieval", predicted.retrieval)):
                for name, value in spaces.items():
                    into = sums[kind].setdefault(name, torch.zeros(len(items), *value.shape[1:]))
                    rows = value[: len(trial.places)].float().cpu()
                    for position, i in enumerate(trial.places):
                        into[i] += rows[position] / len(items[i].repeats)
        return sums["features"], sums["retrieval"]


class Reconstructor(Decoding):
    """Decoder, generator and data of a job, loaded once in a worker.

    Raises InputError when the checkpoint changed since the job was planned, or the generator cannot work with it.
    """

    def __init__(
        self, job: ReconstructionJob, checkpoint: Path, data: Path, out: Path, *, device: str | None = None
    ) -> None:
        super().__init__(job, checkpoint, data, device=device)
        self.out = out
        told: Generator = _GENERATORS.validate_python(job.generator)
        self.generator = told.load(self.device, getattr(torch, job.dtype))
        self.generator.check(
            {name: space.shape for name, space in self.found.manifest.feature_spaces.items()}
        )
        self.made_with = {
            "processor": _processor(self.device),
            "versions": {name: version(name) for name in ("fmri2img", "torch", "diffusers", "transformers")},
            "weights": self.generator.provenance(),
        }
        self.computing = threading.Lock()

    def make(self, number: int) -> int:
        """Make and commit one unit; returns the number of its items. A unit that is there and whole stays.

        May be called from several threads: while one computes, others read and write.
        """
        unit = self.units[number]
        if unit_problem(self.out, self.job, unit, deep=True) is not None:
            trials = self.read(unit)
            with self.computing:
                predictions, pictures = self.compute(unit, trials)
            self.write(unit, predictions, pictures)
        return len(unit.items)

    def compute(self, unit: Unit, trials: Sequence[Trials]) -> tuple[Tensors, np.ndarray]:
        """Predictions {name: (n, ...)} and pictures (n, H, W, 3) uint8 of a unit's n items."""
        with one_thread(), _own_randomness(self.job, unit, self.device), torch.no_grad():
            features, retrieval = self._predict(unit.items, trials)
            pictures = self._generate(unit.items, features)
        predictions = {f"features.{name}": value for name, value in features.items()}
        return predictions | {f"retrieval.{name}": value for name, value in retrieval.items()}, pictures

    def generate(self, unit: Unit, features: Tensors) -> np.ndarray:
        """Pictures (n, H, W, 3) uint8 of features that a unit's items are given, with the noise of the items."""
        with one_thread(), _own_randomness(self.job, unit, self.device), torch.no_grad():
            return self._generate(unit.items, features)

    def write(self, unit: Unit, predictions: Tensors, pictures: np.ndarray) -> None:
        """Commit a unit."""
        write_unit(self.out, self.job, unit, pictures, predictions, self.made_with)

    def _generate(self, items: Sequence[Item], features: Tensors) -> np.ndarray:
        """(n, H, W, 3) uint8. One CPU generator an item, of the item's own seed; always `batch` rows.

        Where a prior is used, pictures are of what it draws; what is kept as predicted is what it drew from.
        """
        pad = self.job.batch - len(items)
        full = {n: torch.cat([v, v[:1].expand(pad, *v.shape[1:])]) if pad else v for n, v in features.items()}

        def generators(what: str) -> list[torch.Generator]:
            seeds = [item.seed(self.job, what) for item in items] + [0] * pad
            return [torch.Generator().manual_seed(seed) for seed in seeds]

        on_device = {name: value.to(self.device) for name, value in full.items()}
        drawn = self.decoder.for_pictures(on_device, generators("prior"))
        pictures = self.generator.generate(drawn, generators("picture"))
        return (pictures[: len(items)] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def stream(
    worker: Reconstructor, numbers: Iterable[int], *, threads: int
) -> Iterator[tuple[int, Exception | None]]:
    """Make units in this process, in order; yields each with what went wrong, once it is committed.

    With `threads` (which write), the next unit is read and the last ones are written while this one is computed.
    Without, one thing is done after another. Raises StoppedError when the disk takes no more.
    """
    if not threads:
        for number in numbers:
            yield number, _caught(lambda number=number: worker.make(number))
        return
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as writer:
        waiting = iter(numbers)
        ahead: deque[tuple[int, Future[list[Trials]]]] = deque()
        writing: deque[tuple[int, Future[None]]] = deque()

        def read_next() -> None:
            if (number := next(waiting, None)) is not None:
                ahead.append((number, reader.submit(worker.read, worker.units[number])))

        read_next()
        while ahead or writing:
            if ahead:
                number, trials = ahead.popleft()
                read_next()
                unit, result = worker.units[number], Future[None]()
                try:
                    result = writer.submit(worker.write, unit, *worker.compute(unit, trials.result()))
                except StoppedError:
                    raise
                except Exception as error:  # told when its turn comes
                    result.set_exception(error)
                writing.append((number, result))
            while writing and (not ahead or len(writing) > threads or writing[0][1].done()):
                number, result = writing.popleft()
                yield number, _caught(result.result)


def _caught(work: Any) -> Exception | None:
    try:
        work()
    except StoppedError:
        raise
    except Exception as error:  # the caller tells it at the end, when all other units are made
        return error
    return None


def _repeatable(device: torch.device) -> None:
    """Ask a GPU for the same bits every time: no search for the fastest kernel, no sums in the order of arrival."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def _processor(device: torch.device) -> str:
    """What kind of processor computed: other kinds round otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


@contextmanager
def _own_randomness(job: ReconstructionJob, unit: Unit, device: torch.device) -> Iterator[None]:
    """Whatever draws from the random state of all draws the same for a unit, whoever made what before it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(job.seed, "unit", unit.number))
        yield
