"""Seconds of a few real steps of one rank, and of a few pictures, on this machine."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fmri2img.datasets import Dataset
from fmri2img.errors import InputError
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, pretrain
from fmri2img.trainer.watch import Record

STEPS, WARMING = 8, 3
PICTURES = 4


@dataclass(frozen=True)
class Measured:
    """Seconds of a rank's step, of which those waited for data, and of a picture; None where it could not be had."""

    step: float
    waited: float
    picture: float | None
    machine: str


class _Enough(BaseException):
    """Leaves a run from its listener."""


@dataclass
class _Clock:
    """A listener that keeps the seconds of steps and ends the run."""

    steps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __call__(self, record: Record) -> None:
        if "speed/step_seconds" not in record:
            return
        self.steps.append(record["speed/step_seconds"])
        self.waits.append(record["speed/wait_seconds"])
        if len(self.steps) == STEPS:
            raise _Enough


def check_machine(cuda: str | None) -> None:
    """Raise InputError unless this process would train on the planned device: `cuda` is its name, None for a CPU."""
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if here != cuda:
        raise InputError(
            f"--measure times this machine, which trains on {here or 'its processor'}, not on {cuda or 'a processor'}: "
            "give its own --device, or measure where the planned one is"
        )


def measure_rank(recipe: Recipe, data: Path, subjects: Sequence[str], workers: int) -> Measured:
    """Train as one of `workers` ranks would, alone and without ZeRO, and draw a few pictures of test samples.

    The rows are those of a rank, read from the data set; the median over steps after the first few counts.
    """
    config = recipe.pretraining
    alone = config.model_copy(
        update={
            "global_batch": config.global_batch // workers,
            "lanes": config.lanes // workers,
            "steps": STEPS + 1,
            "start": "random",
            "validation": 0.0,
            "pictures_every": 0,
            "select": "last",
            "log_every": 1,
            "checkpoint_every": STEPS + 1,
            "zero_stage": 0,
            "offload": "none",
        }
    )
    told = recipe.model_copy(update={"pretraining": alone}).model_dump(mode="json")
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="fmri2img-plan-") as folder:
        spec = StageSpec(told, str(data), tuple(subjects), folder, engine="accelerate")
        with suppress(_Enough):
            pretrain(spec, listener=clock)
    steps, waits = clock.steps[WARMING:], clock.waits[WARMING:]
    return Measured(
        statistics.median(steps), statistics.median(waits), _picture(recipe, data, subjects), _machine()
    )


def _picture(recipe: Recipe, data: Path, subjects: Sequence[str]) -> float | None:
    """Seconds of a picture from features of the data set's own test pictures; None without the generator's models."""
    dataset, device = Dataset.open(data), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        generator = recipe.generator.load(device)
    except InputError:  # its models are not on this machine
        return None
    samples = dataset.samples(subjects[0], "test")
    rows = range(min(PICTURES, len(samples)))
    features = {
        name: torch.from_numpy(dataset.read_features(samples, list(rows), name)).to(device)
        for name in recipe.generator.spaces
    }
    best = float("inf")
    with torch.no_grad():
        for _ in range(2):
            begun = time.perf_counter()
            generator.generate(features, [torch.Generator().manual_seed(row) for row in rows]).cpu()
            best = min(best, (time.perf_counter() - begun) / len(rows))
    return best


def _machine() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"this processor with {torch.get_num_threads()} threads"
