"""What the processes of `scaling.py` do: our loop under torchrun or Ray Train, plain DistributedDataParallel."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fmri2img.datasets.plan import SamplingPlan
from fmri2img.launch.cluster import Place
from fmri2img.launch.pretraining import launch_pretraining
from fmri2img.launch.torchrun import pretrain_here
from fmri2img.models.decoder import decay_groups
from fmri2img.trainer import watch
from fmri2img.trainer.batches import BatchLoader
from fmri2img.trainer.collectives import mean_over_ranks, rank, world_size
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.objectives import Place as StepPlace
from fmri2img.trainer.objectives import decoder_loss
from fmri2img.trainer.schedules import learning_rate
from fmri2img.trainer.stages import StageSpec, open_material
from fmri2img.trainer.throughput import Throughput

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter_tensor",
)


def read_spec(path: Path) -> StageSpec:
    """The spec that `scaling.py` wrote."""
    told: dict[str, Any] = json.loads(path.read_text())
    return StageSpec(**{**told, "subjects": tuple(told["subjects"])})


class Clocks:
    """Seconds of this rank so far in collectives (waiting for others included), waiting for data, and logging."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("collective", "data", "logging"), 0.0)
        self.steps: list[dict[str, float]] = []
        self.inside = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added under the name; not twice where one of them calls another."""

        def call(*words: Any, **settings: Any) -> Any:
            if self.inside:
                return function(*words, **settings)
            begun, self.inside = time.perf_counter(), True
            try:
                made = function(*words, **settings)
                return _Awaited(made, self) if hasattr(made, "wait") else made
            finally:
                self.inside = False
                self.spent[name] += time.perf_counter() - begun

        return call

    def note(self) -> None:
        """A step has ended."""
        self.steps.append({"time": time.perf_counter(), "processor": time.process_time(), **self.spent})

    def install(self) -> None:
        """Time what the loop calls, from outside."""
        for name in COLLECTIVES:
            setattr(dist, name, self.timed("collective", getattr(dist, name)))
        watch.Watch.record = self.timed("logging", watch.Watch.record)  # type: ignore[method-assign]
        begin, end = Throughput.begin, Throughput.end

        def begun(speed: Throughput, waited: float, *, logged: bool) -> None:
            self.spent["data"] += waited
            begin(speed, waited, logged=logged)

        def ended(speed: Throughput) -> None:
            end(speed)
            self.note()

        Throughput.begin, Throughput.end = begun, ended  # type: ignore[method-assign]


class _Awaited:
    """A collective under way, whose end is waited for on the clock."""

    def __init__(self, work: Any, clocks: Clocks) -> None:
        self.work = work
        self.wait = clocks.timed("collective", work.wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


def loop(spec: StageSpec, told: Path) -> None:
    """Our loop as one of torchrun's processes."""
    clocks = Clocks()
    clocks.install()
    _note_pid(told)
    pretrain_here(spec, Place())
    (told / f"steps-{os.environ['RANK']}.json").write_text(json.dumps(clocks.steps))


def ray(spec: StageSpec, workers: int) -> None:
    """Our loop under Ray Train, each worker on an emulated node of its own."""
    launch_pretraining(spec, Place(workers=workers, emulate_nodes=workers, preflight=False))


def ddp(spec: StageSpec, told: Path) -> None:
    """The plainest loop on batches in memory; nothing guarded, nothing kept, a record as often as ours."""
    dist.init_process_group("gloo")
    _note_pid(told)
    recipe = Recipe.model_validate(spec.recipe)
    config = recipe.pretraining
    material = open_material(spec, recipe, config)
    plan = SamplingPlan(
        material.tables,
        fingerprint=material.dataset.fingerprint,
        seed=config.seed,
        global_batch=config.global_batch,
        lanes=config.lanes,
    )
    whose: dict[str, Any] = {"rank": rank(), "world_size": world_size(), "seed": 0, "noise": 0.0}
    loader = BatchLoader(material.dataset, material.tables, plan, list(recipe.spaces), **whose)
    batches = list(loader.batches(0, config.steps))
    torch.manual_seed(config.seed)
    decoder = recipe.decoder.build(material.voxels, material.spaces)
    wrapped = DistributedDataParallel(decoder)
    groups: Any = decay_groups(decoder, config.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=0.0)
    losses = {name: space.losses for name, space in recipe.spaces.items()}
    run = Path(spec.run)
    with open(run / watch.METRICS, "a", buffering=1) if rank() == 0 else contextlib.nullcontext() as file:
        for batch in batches:
            here = batch.to(torch.device("cpu"))
            outputs = wrapped(here.responses, None)
            place = StepPlace(batch.step, config.steps)
            loss = decoder_loss(
                decoder, outputs, here.features, here.pictures, losses, place=place, responses=here.responses
            )
            optimiser.zero_grad()
            loss.backward.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, batch.step)
            optimiser.step()
            if (batch.step + 1) % config.log_every == 0:
                values = mean_over_ranks([float(value.detach()) for value in loss.terms.values()])
                total = loss.total(dict(zip(loss.terms, values, strict=True)))
                line = {"step": batch.step + 1, "time": time.time(), "train/loss": total}
                if file is not None:
                    file.write(json.dumps(line) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def _note_pid(told: Path) -> None:
    (told / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))


def act(role: str, spec_path: Path, workers: int) -> None:
    """Be one of the processes."""
    spec = read_spec(spec_path)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with contextlib.redirect_stdout(sys.stderr):
        if role == "ray":
            ray(spec, workers)
        elif role == "loop":
            loop(spec, spec_path.parent)
        else:
            ddp(spec, spec_path.parent)
