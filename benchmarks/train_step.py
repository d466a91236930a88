"""Our training step beside the plainest correct PyTorch loop on the same model, data and losses, as JSON.

    python benchmarks/train_step.py [--steps 30] [--blocks 5] [--latent 1024] [--voxels 15724] [--threads 2]

Both run in one process on one device, in alternating blocks of `--steps` steps from the same start: ours through
`trainer.loop.train` with its reading of shards, guards and logging of every step, and no checkpoint before the last;
the plain loop on batches that lie in memory already. `overhead` is the ratio of medians over blocks, less 1.
`checkpoint` is how long training stops for one, per gigabyte of weights, and its share of ten minutes.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fmri2img.config import load_recipe
from fmri2img.datasets import Dataset, build_dataset
from fmri2img.datasets.plan import SamplingPlan
from fmri2img.launch.features import cache_features
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.batches import Batch, BatchLoader
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, open_material, pretrain
from fmri2img.trainer.watch import read_records

TEMPERATURE = 0.1


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The default recipe at the sizes asked for, without validation, starting at random."""
    values = [
        f"decoder.latent={arguments.latent}",
        f"decoder.hidden={2 * arguments.latent}",
        "decoder.dropout=0.0",
        f"pretraining.steps={arguments.steps}",
        "pretraining.start=random",
        "pretraining.noise=0.0",
        "pretraining.validation=0.0",
        "pretraining.log_every=1",
        f"pretraining.checkpoint_every={10 * arguments.steps}",
        f"pretraining.global_batch={arguments.batch}",
    ]
    return load_recipe("default", values=values)


def ours(recipe: Recipe, data: Path, subjects: tuple[str, ...], run: Path) -> tuple[list[float], float]:
    """Seconds of every step of our loop but the first, from the times of its records; share of waiting for data."""
    plain = recipe.model_dump(mode="json")
    pretrain(StageSpec(plain, str(data), subjects, str(run), engine="accelerate"))
    records = [record for record in read_records(run) if "train/loss" in record]
    rate = [recipe.pretraining.global_batch / record["speed/samples_per_second"] for record in records]
    return rate[1:], statistics.mean(record["speed/data_wait_share"] for record in records[1:])


def plain(decoder: MultiSubjectDecoder, batches: list[Batch], rate: float) -> list[float]:
    """Seconds of every step but the first: forward, losses, backward, clip, AdamW."""
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=1.0)
    decoder.train()
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        _, features, directions = decoder(batch.to(torch.device("cpu")).responses)
        loss = torch.zeros(())
        for name, predicted in features.items():
            target = decoder.branch(name).standardise(batch.features[name].float())
            loss = loss + functional.mse_loss(predicted, target)
            if name in directions:
                scores = functional.normalize(directions[name]) @ functional.normalize(target).T / TEMPERATURE
                own = torch.arange(len(scores))
                both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
                loss = loss + 0.3 * both / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate both, `--blocks` times."""
    recipe = recipe_of(arguments)
    voxels = {f"subj0{n}": arguments.voxels - 10 * n for n in (1, 2)}
    spec = SimulationSpec(subjects=voxels, sessions=1, trials_per_session=240, test_pictures=20)
    build_dataset(Simulation(spec), folder / "data")
    cache_features(recipe, folder / "data")
    subjects = tuple(sorted(voxels))
    told = StageSpec(recipe.model_dump(mode="json"), str(folder / "data"), subjects, str(folder / "none"))
    material = open_material(told, recipe, recipe.pretraining)
    config = recipe.pretraining
    plan = SamplingPlan(
        material.tables,
        fingerprint=Dataset.open(folder / "data").fingerprint,
        seed=0,
        global_batch=config.global_batch,
        lanes=config.lanes,
    )
    whose: dict[str, Any] = {"rank": 0, "world_size": 1, "seed": 0, "noise": 0.0}
    loader = BatchLoader(material.dataset, material.tables, plan, list(recipe.spaces), **whose)
    batches = list(loader.batches(0, arguments.steps))
    blocks: dict[str, list[float]] = {"ours": [], "plain": []}
    waits = []
    for block in range(arguments.blocks):
        mine, wait = ours(recipe, folder / "data", subjects, folder / f"run-{block}")
        torch.manual_seed(0)
        decoder = recipe.decoder.build(material.voxels, material.spaces)
        theirs = plain(decoder, batches, config.learning_rate)
        blocks["ours"].append(statistics.median(mine))
        blocks["plain"].append(statistics.median(theirs))
        waits.append(wait)
    ratios = [a / b for a, b in zip(blocks["ours"], blocks["plain"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "threads": torch.get_num_threads(),
        "steps": arguments.steps,
        "global_batch": config.global_batch,
        "seconds_per_step": {name: [round(v, 4) for v in values] for name, values in blocks.items()},
        "overhead": round(statistics.median(ratios) - 1, 4),
        "overhead_by_block": [round(ratio - 1, 4) for ratio in ratios],
        "data_wait_share": round(float(np.median(waits)), 4),
        "checkpoint": checkpoint_stall(recipe, material.voxels, material.spaces, folder),
    }


def checkpoint_stall(recipe: Recipe, voxels: Any, spaces: Any, folder: Path) -> dict[str, float]:
    """How long a save keeps the loop, and how long the writing behind it takes."""
    from fmri2img.checkpoints_schema import FeatureSpaceRecord, SubjectRecord
    from fmri2img.trainer.engines import AccelerateEngine
    from fmri2img.trainer.saving import Saver
    from fmri2img.trainer.state import Identity

    decoder = recipe.decoder.build(voxels, spaces)
    engine = AccelerateEngine(decoder, recipe.pretraining)
    latent, features, _ = engine.forward({name: torch.zeros(2, width) for name, width in voxels.items()})
    engine.backward(latent.sum() + sum(value.sum() for value in features.values()))
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


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("steps", 30), ("blocks", 5), ("latent", 1024), ("voxels", 15724), ("batch", 96)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(arguments, Path(folder))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
