"""Our training step beside the plainest correct PyTorch loop on the same model, data and losses, as JSON.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--steps 40] [--blocks 5] [--subjects 2] [--voxels 15724]
        [--latent 192] [--batch 96] [--noise 0] [--engine accelerate|deepspeed] [--stage 2]

Both are in one process on one device and take turns step by step, so that what else the machine does falls on both:
ours goes through `trainer.loop.train` with its reading of shards, guards and a record of every step, and the plain loop
makes a step whenever ours has told of one, on batches that lie in memory already. Their losses are compared first,
without dropout, so that both are known to do the same. `overhead` is the ratio of medians over a block's steps, less 1,
in the median of blocks: by the clock (`wall`), and by the processor time of the training thread (`processor`), which
needs one thread of arithmetic. `reading` is the processor time of the threads that read ahead, a step; `--noise` makes
them add it as the recipe does, where the plain loop draws it in between. `checkpoint` is how long training stops for
one, per gigabyte of weights, and its share of ten minutes.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from train_step_plain import PARTS, PlainLoop, checkpoint_stall

from fmri2img.config import load_recipe
from fmri2img.datasets import Dataset, build_dataset
from fmri2img.datasets.plan import SamplingPlan
from fmri2img.launch.features import cache_features
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.batches import Batch, BatchLoader
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import Material, StageSpec, open_material, pretrain
from fmri2img.trainer.watch import Record, read_records

WARMUP = 3  # steps of a block that are not counted: caches fill, moments are made
SAME = 3  # steps whose losses are compared
Clocks = tuple[float, float, float]


def clocks() -> Clocks:
    """By the clock, by this thread's processor time, by that of all threads of the process."""
    return time.perf_counter(), time.thread_time(), time.process_time()


def spent(begin: Clocks, end: Clocks) -> np.ndarray:
    """Seconds from one to the other by each."""
    return np.subtract(end, begin)


@dataclass
class Turns:
    """A listener to our records, which makes a step of the plain loop at each and times both.

    Our step is all that lies between two records: waiting, step, guards and record.
    """

    plain: PlainLoop
    ours: list[np.ndarray] = field(default_factory=list)
    theirs: list[np.ndarray] = field(default_factory=list)
    _left: Clocks | None = None

    def __call__(self, record: Record) -> None:
        if "train/loss" not in record:
            return
        come = clocks()
        if self._left is not None:
            self.ours.append(spent(self._left, come))
        self.plain.step()
        self._left = clocks()
        self.theirs.append(spent(come, self._left))

    def medians(self) -> dict[str, dict[str, float]]:
        """Seconds a step by the clock and by processor time; what other threads did is divided over our steps."""
        ours, theirs = np.array(self.ours[WARMUP - 1 :]), np.array(self.theirs[WARMUP:])
        others = sum((each - mine).sum() for _, mine, each in (ours.T, theirs.T)) / len(ours)
        told = {
            clock: {"ours": float(np.median(ours[:, n])), "plain": float(np.median(theirs[:, n]))}
            for n, clock in enumerate(("wall", "processor"))
        }
        return told | {"reading": {"ours": float(others)}}


def recipe_of(arguments: argparse.Namespace, **changes: float) -> Recipe:
    """The default recipe at the sizes asked for, without validation, starting at random."""
    values = {
        "decoder.latent": arguments.latent,
        "decoder.hidden": arguments.hidden or round(arguments.latent * 8 / 3),
        "pretraining.steps": arguments.steps + WARMUP,
        "pretraining.start": "random",
        "pretraining.validation": 0.0,
        "pretraining.log_every": 1,
        "pretraining.checkpoint_every": 10**6,
        "pretraining.global_batch": arguments.batch,
        "pretraining.zero_stage": arguments.stage,
        "pretraining.noise": arguments.noise,
        **changes,
    }
    return load_recipe("default", values=[f"{name}={value}" for name, value in values.items()])


@dataclass
class Bench:
    """The data of both loops."""

    arguments: argparse.Namespace
    folder: Path
    subjects: tuple[str, ...] = ()

    def make(self) -> None:
        """Simulate, and cache the features of the recipe."""
        voxels = {
            f"subj{n:02}": self.arguments.voxels - 10 * n for n in range(1, self.arguments.subjects + 1)
        }
        spec = SimulationSpec(subjects=voxels, sessions=1, trials_per_session=240, test_pictures=20)
        build_dataset(Simulation(spec), self.folder / "data")
        cache_features(recipe_of(self.arguments), self.folder / "data")
        self.subjects = tuple(sorted(voxels))

    def spec(self, recipe: Recipe, run: str) -> StageSpec:
        plain = recipe.model_dump(mode="json")
        place = str(self.folder / "data"), self.subjects, str(self.folder / run)
        return StageSpec(plain, *place, engine=self.arguments.engine)

    def material(self, recipe: Recipe) -> Material:
        return open_material(self.spec(recipe, "none"), recipe, recipe.pretraining)

    def batches(self, recipe: Recipe) -> list[Batch]:
        """The batches of our steps without their noise, in memory."""
        config, material = recipe.pretraining, self.material(recipe)
        plan = SamplingPlan(
            material.tables,
            fingerprint=Dataset.open(self.folder / "data").fingerprint,
            seed=config.seed,
            global_batch=config.global_batch,
            lanes=config.lanes,
        )
        whose: dict[str, Any] = {"rank": 0, "world_size": 1, "seed": 0, "noise": 0.0}
        loader = BatchLoader(material.dataset, material.tables, plan, list(recipe.spaces), **whose)
        return list(loader.batches(0, config.steps))

    def take_turns(self, recipe: Recipe, run: str, batches: list[Batch]) -> Turns:
        """One run of both from the same weights."""
        material = self.material(recipe)
        torch.manual_seed(recipe.pretraining.seed)
        decoder = recipe.decoder.build(material.voxels, material.spaces)
        turns = Turns(PlainLoop(decoder, batches, recipe, time.perf_counter))
        pretrain(self.spec(recipe, run), listener=turns)
        return turns

    def records(self, run: str) -> list[Record]:
        return [record for record in read_records(self.folder / run) if "train/loss" in record]


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare the losses of both, then take turns, `--blocks` times."""
    bench = Bench(arguments, folder)
    bench.make()
    recipe = recipe_of(arguments)
    batches = bench.batches(recipe)
    calm = recipe_of(arguments, **{"pretraining.noise": 0.0, "decoder.dropout": 0.0})
    same = bench.take_turns(calm, "same", batches)
    pairs = zip(bench.records("same")[:SAME], same.plain.losses, strict=False)
    off = max(abs(record["train/loss"] / loss - 1) for record, loss in pairs)
    if off > 1e-4:
        raise SystemExit(f"the two loops do not do the same: a loss is off by a share of {off}")
    blocks, parts = [], {"ours": dict.fromkeys(PARTS, 0.0), "plain": dict.fromkeys(PARTS, 0.0)}
    waits: list[float] = []
    for block in range(arguments.blocks):
        turns = bench.take_turns(recipe, f"run-{block}", batches)
        blocks.append(turns.medians())
        records = bench.records(f"run-{block}")[WARMUP:]
        waits += [record["speed/data_wait_share"] for record in records]
        for part, theirs in zip(PARTS, np.median(turns.plain.parts[WARMUP:], axis=0), strict=True):
            mine = statistics.median(record[f"speed/{part}_seconds"] for record in records)
            parts["ours"][part] += mine / arguments.blocks
            parts["plain"][part] += float(theirs) / arguments.blocks
    material = bench.material(recipe)
    return {
        "parameters": sum(p.numel() for p in turns.plain.decoder.parameters()),
        "threads": arguments.threads,
        "engine": arguments.engine + (f" {arguments.stage}" if arguments.engine == "deepspeed" else ""),
        "steps": arguments.steps,
        "global_batch": arguments.batch,
        "largest_share_losses_differ_by": off,
        "wall": summary(blocks, "wall"),
        "processor": summary(blocks, "processor") if arguments.threads == 1 else None,
        "reading_milliseconds_a_step": round(
            1e3 * statistics.median(b["reading"]["ours"] for b in blocks), 3
        ),
        "milliseconds_of_parts": {
            name: {part: round(1e3 * value, 3) for part, value in told.items()}
            for name, told in parts.items()
        },
        "data_wait_share": round(float(np.median(waits)), 5),
        "checkpoint": checkpoint_stall(recipe, material.voxels, material.spaces, folder),
    }


def summary(blocks: list[dict[str, dict[str, float]]], clock: str) -> dict[str, Any]:
    """Medians of blocks by one clock and what ours costs more."""
    ratios = [block[clock]["ours"] / block[clock]["plain"] - 1 for block in blocks]
    middle = {
        who: 1e3 * statistics.median(block[clock][who] for block in blocks) for who in ("ours", "plain")
    }
    return {
        "milliseconds_a_step": {who: round(value, 3) for who, value in middle.items()},
        "overhead": round(statistics.median(ratios), 4),
        "overhead_of_blocks": [round(ratio, 4) for ratio in ratios],
        "milliseconds_more": round(middle["ours"] - middle["plain"], 3),
    }


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {
        "steps": 40,
        "blocks": 5,
        "subjects": 2,
        "voxels": 15724,
        "latent": 192,
        "hidden": 0,
        "batch": 96,
    }
    for name, value in {**sizes, "threads": 1, "stage": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--engine", choices=("accelerate", "deepspeed"), default="accelerate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.engine == "deepspeed":
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", DS_ACCELERATOR="cpu")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(arguments, Path(folder))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
