"""Pretraining, ours beside MindEye2's scheme and the decoder alone, on the same data and losses, as JSON.

    python benchmarks/pretrain.py [--blocks 10] [--block 8] [--voxels 8192] [--processes 8]

The three take turns, block by block of `--block` steps, on the same decoder from the same start, by CPU time and wall
time of one process on one thread. All are judged on the same held-out pictures after every block, off the clock.
- ours: `trainer.loop.train` on features cached as a column, with its reading, guards and records of every step.
- scheme: as published (Scotti et al. 2024), written plainly: pictures and responses of an epoch (a block) are loaded
  ahead as float32, a frozen network runs on the pictures of each step, and negatives are those of one of
  `--processes` processes. It starts with all pictures and responses in memory, where the published one reads files.
- alone: forward, losses, backward and update on batches that lie in memory.
The frozen network is a vision transformer with random weights. `published` counts the operations of the published
sizes on the meta device: what a step costs with the frozen networks, over what it costs with cached features.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pretrain_networks as networks
import torch
from pretrain_runners import SPACE, TEMPERATURE, WEIGHT, Alone, Runner, Scheme

from fmri2img.checkpoints_schema import FeatureSpaceRecord, SubjectRecord
from fmri2img.datasets import add_feature_space, build_dataset
from fmri2img.datasets.plan import SamplingPlan
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.batches import Batch, BatchLoader
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.engines import AccelerateEngine
from fmri2img.trainer.loop import Job, train
from fmri2img.trainer.stages import Material, StageSpec, open_material
from fmri2img.trainer.state import Identity
from fmri2img.trainer.watch import Watch


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Cached tokens, with regression and contrast."""
    contrastive = {"weight": WEIGHT, "temperature": TEMPERATURE}
    training = {
        "steps": options.block * options.blocks,
        "global_batch": options.batch,
        "lanes": 1,
        "learning_rate": 1e-3,
        "log_every": 1,
        "checkpoint_every": 10**9,
        "validation": 0.1,
        "start": "random",
    }
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "spaces": {
                SPACE: {
                    "extractor": {"kind": "imported"},
                    "losses": {"mse": {"weight": 1.0}, "contrastive": contrastive},
                }
            },
            "decoder": {"latent": options.latent, "hidden": 2 * options.latent, "blocks": 4},
            "pretraining": training,
            "generator": {"kind": "pixels", "space": SPACE, "size": 64},
        }
    )


class Turns(BatchLoader):
    """Our loader, which lets the others have their turn between blocks."""

    ours: Runner
    after: Callable[[int, int], None]
    block: int

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """As of the loader; nothing is read ahead over the end of a block."""
        for start in range(first, last, self.block):
            with self.ours.timed():
                yield from super().batches(start, start + self.block)
            self.after(start, start + self.block)


def identity(recipe: Recipe, material: Material) -> Identity:
    """What the last checkpoint says of itself."""
    dataset = material.dataset
    people = {
        name: SubjectRecord(voxels=count, dataset="benchmark", fingerprint=dataset.fingerprint)
        for name, count in material.voxels.items()
    }
    spaces = {
        name: FeatureSpaceRecord(shape=space.shape, dtype="float32", extractor={})
        for name, space in material.spaces.items()
    }
    return Identity({}, recipe.name, people, spaces)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the data, let the three train, and compare."""
    recipe, data = recipe_of(options), folder / "data"
    config, frozen = recipe.pretraining, networks.frozen_network(options)
    voxels = {f"subj0{n}": options.voxels - 8 * n for n in (1, 2)}
    build_dataset(
        Simulation(SimulationSpec(subjects=voxels, sessions=options.sessions, test_pictures=20)), data
    )
    extractor = {"kind": "imported", "network": "random vision transformer"}
    shape = (networks.tokens_of(options), options.width)
    made = {"name": SPACE, "shape": shape, "dtype": "float16", "extractor": extractor}
    add_feature_space(
        data, compute=lambda pictures, _: frozen(networks.prepare(np.stack(pictures))).numpy(), **made
    )
    spec = StageSpec(recipe.model_dump(mode="json"), str(data), tuple(voxels), str(folder / "run"))
    material = open_material(spec, recipe, config)

    def fresh() -> MultiSubjectDecoder:
        torch.manual_seed(0)
        return recipe.decoder.build(material.voxels, material.spaces)

    plan = SamplingPlan(
        material.tables,
        fingerprint=material.dataset.fingerprint,
        seed=0,
        global_batch=options.batch,
        lanes=1,
    )
    whose: dict[str, Any] = {"rank": 0, "world_size": 1, "seed": 0, "noise": 0.0}
    turns = Turns(material.dataset, material.tables, plan, [SPACE], **whose)
    engine = AccelerateEngine(fresh(), config)
    ours = Runner(engine.decoder)
    alone = Alone(fresh(), recipe, [turns.read(step) for step in range(min(options.block, 8))])
    scheme = Scheme(fresh(), recipe, material, options)
    runners: dict[str, Runner] = {"ours": ours, "scheme": scheme, "alone": alone}

    def after(first: int, last: int) -> None:
        for rival in (alone, scheme):
            with rival.timed():
                rival.block(first, last)
        for runner in runners.values():
            runner.judge(material, recipe.spaces, config.steps)

    (folder / "run").mkdir()
    watch = Watch(folder / "run", first_step=0, total=config.steps, config={})
    turns.ours, turns.after, turns.block = ours, after, options.block
    job = Job(
        run=folder / "run",
        engine=engine,
        loader=turns,
        config=config,
        spaces=recipe.spaces,
        validation={},
        identity=identity(recipe, material),
        watch=watch,
    )
    train(job, first_step=0)
    return report(options, runners, networks.measured(options, fresh(), alone.batches[0]))


def report(
    options: argparse.Namespace, runners: Mapping[str, Runner], counted: dict[str, float]
) -> dict[str, Any]:
    """Ratios of blocks that took turns, the first left out, and the way to the same loss."""

    def ratio(one: str, other: str, kind: int) -> dict[str, float]:
        pairs = zip(runners[one].blocks[1:], runners[other].blocks[1:], strict=True)
        values = sorted(a[kind] / b[kind] for a, b in pairs)
        return {"median": statistics.median(values), "least": values[0], "most": values[-1]}

    def way(name: str, goal: float) -> dict[str, float] | None:
        steps, cpu, wall = 0, 0.0, 0.0
        for loss, taken in zip(runners[name].losses, runners[name].blocks, strict=True):
            steps, cpu, wall = steps + options.block, cpu + taken[0], wall + taken[1]
            if loss <= goal:
                return {"steps": steps, "cpu": cpu, "wall": wall}
        return None

    # At each loss that the scheme came down to and ours did too: what the scheme needed over what ours did.
    rivals = ("ours", "scheme")
    ways = [(way("scheme", goal), way("ours", goal)) for goal in sorted(set(runners["scheme"].losses))]
    pairs = [(scheme, ours) for scheme, ours in ways if scheme is not None and ours is not None]

    def needed(kind: str) -> dict[str, float] | None:
        values = sorted(scheme[kind] / ours[kind] for scheme, ours in pairs)
        if not values:
            return None
        return {"median": statistics.median(values), "least": values[0], "most": values[-1]}

    rows = options.batch * options.block
    scheme: Any = runners["scheme"]
    return {
        "cores": os.cpu_count(),
        "options": vars(options),
        "counted": counted,
        "samples_per_second": {
            name: rows / statistics.median(wall for _, wall in runner.blocks[1:])
            for name, runner in runners.items()
        },
        "samples_per_cpu_second": {
            name: rows / statistics.median(cpu for cpu, _ in runner.blocks[1:])
            for name, runner in runners.items()
        },
        "ours_over_alone": {"cpu": ratio("ours", "alone", 0), "wall": ratio("ours", "alone", 1)},
        "scheme_over_ours": {"cpu": ratio("scheme", "ours", 0), "wall": ratio("scheme", "ours", 1)},
        "validation_loss": {name: runners[name].losses for name in rivals},
        "scheme_over_ours_to_the_same_loss": {
            "losses": len(ways),
            "reached_by_ours": len(pairs),
            **{kind: needed(kind) for kind in ("steps", "cpu", "wall")},
        },
        "scheme_epoch_in_memory_mb": scheme.epoch_bytes / 1e6,
        "published": networks.published(),
    }


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"blocks": 10, "block": 8, "batch": 96, "processes": 8, "sessions": 6}
    sizes |= {"voxels": 8192, "latent": 512, "width": 256, "layers": 8}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = compare(options, Path(folder))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
