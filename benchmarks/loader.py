"""Reading speed of our shards against WebDataset's pipeline and MindEye2's scheme, in one run, as JSON.

    python benchmarks/loader.py > loader.json

A sample is one trial of a picture that a training step asks for, on its way to the device: float16
`(voxels,)` in a batch. Pipelines take turns, round by round, so that a busy machine slows all of them.
- ours: the sampling plan and BatchLoader, every byte checked; `three_repeats` reads all trials of a picture.
- webdataset: the same shards through WebDataset, a shuffle buffer and WebLoader; a sample's three repeats are
  decoded together and one is picked. No checks.
- mindeye2: all betas in memory as float16, tars of indices, an epoch loaded ahead; with pictures from HDF5
  as float32, as published, and without them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import loader_data
import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from fmri2img.datasets import Dataset, SamplingPlan, verify
from fmri2img.trainer.batches import BatchLoader

Counts = Iterator[int]
LANES = 8


def ours(folder: Path, batch: int, workers: int, *, steps: int = 1 << 30) -> Counts:
    """Samples of each batch, from opening the data set on."""
    dataset = Dataset.open(folder / "set")
    tables = {name: dataset.samples(name, "train") for name in dataset.subjects}
    plan = SamplingPlan(tables, fingerprint=dataset.fingerprint, seed=0, global_batch=batch, lanes=LANES)
    loader = BatchLoader(
        dataset, tables, plan, [], rank=0, world_size=1, seed=0, noise=0.0, workers=workers, ahead=4
    )
    for read in loader.batches(0, steps):
        yield sum(len(values) for values in read.responses.values())


def three_repeats(folder: Path, batch: int) -> Counts:
    """Pictures of each batch, every trial of each read."""
    dataset, generator = Dataset.open(folder / "set"), np.random.default_rng(0)
    tables = [dataset.samples(name, "train") for name in dataset.subjects]
    for turn in itertools.count():
        table = tables[turn % len(tables)]
        rows = generator.choice(len(table), min(batch, len(table)), replace=False)
        repeats = np.concatenate([np.arange(n) for n in table.repeats[rows]])
        dataset.stored_trials(table, np.repeat(rows, table.repeats[rows]), repeats)
        yield len(rows)


def through_webdataset(folder: Path, batch: int, workers: int) -> Counts:
    """Samples of each batch, endlessly."""
    urls = sorted(str(path) for path in (folder / "set").glob("subj*/train-*.responses.tar"))
    data = webdataset.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=None)
    picked = data.shuffle(256, initial=64).decode().to_tuple("betas.npy").map(_one_repeat)
    loader = webdataset.WebLoader(picked.batched(batch), batch_size=None, num_workers=workers)
    for (values,) in loader:
        yield len(values)


def _one_repeat(sample: tuple[np.ndarray]) -> tuple[torch.Tensor]:
    (betas,) = sample
    return (torch.from_numpy(betas[random.randrange(len(betas))]),)


def mindeye2(folder: Path, batch: int, pictures: bool) -> Counts:
    """Samples of each epoch: indices from tars, betas from memory, pictures from HDF5, then all at once."""
    import h5py

    subjects = sorted(path.name for path in (folder / "mindeye2/wds").iterdir())
    betas = {}
    for name in subjects:
        with h5py.File(folder / f"mindeye2/betas_all_{name}_fp32_renorm.hdf5") as file:
            betas[name] = torch.from_numpy(file["betas"][:]).to(torch.float16)
    each = batch // len(subjects)
    steps = sum(len(value) for value in betas.values()) // batch
    with h5py.File(folder / "mindeye2/coco_images_224_float16.hdf5") as file:
        while True:
            held = torch.zeros(steps if pictures else 0, batch, 3, 224, 224)
            voxels: list[torch.Tensor] = []
            for place, name in enumerate(subjects):
                urls = sorted(str(path) for path in (folder / "mindeye2/wds" / name / "train").glob("*.tar"))
                data = webdataset.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=None)
                parts = ("behav.npy", "past_behav.npy", "future_behav.npy", "olds_behav.npy")
                samples = data.shuffle(750, initial=64).decode("torch").to_tuple(*parts)
                taken = itertools.islice(DataLoader(samples, batch_size=each), steps)
                for step, (behaviour, *_) in enumerate(taken):
                    if pictures:
                        seen, back = np.unique(behaviour[:, 0, 0].long().numpy(), return_inverse=True)
                        span = slice(place * each, (place + 1) * each)
                        held[step, span] = torch.from_numpy(file["images"][seen])[back].float()
                    voxels.append(betas[name][behaviour[:, 0, 5].long()])
            yield sum(len(rows) for rows in voxels)


def pipelines(folder: Path, batch: int) -> dict[str, Callable[[], Counts]]:
    """Every pipeline by name; each call starts it anew."""
    return {
        "ours, 1 worker": partial(ours, folder, batch, 1),
        "webdataset, in process": partial(through_webdataset, folder, batch, 0),
        "webdataset, 1 worker": partial(through_webdataset, folder, batch, 1),
        "ours, 2 workers": partial(ours, folder, batch, 2),
        "webdataset, 2 workers": partial(through_webdataset, folder, batch, 2),
        "ours, three repeats a sample": partial(three_repeats, folder, batch),
        "mindeye2": partial(mindeye2, folder, batch, True),
        "mindeye2 without pictures": partial(mindeye2, folder, batch, False),
    }


def timed(pipeline: Callable[[], Counts], seconds: float) -> tuple[float, float, float]:
    """Samples a second once it runs, per second of this process's CPU time, and seconds until the first batch."""
    gc.collect()
    started = time.perf_counter()
    with closing(pipeline()) as counts:  # type: ignore[type-var]
        next(counts)
        first, samples = time.perf_counter() - started, 0
        started, used = time.perf_counter(), time.process_time()
        while (passed := time.perf_counter() - started) < seconds or not samples:
            samples += next(counts)
        return samples / passed, samples / (time.process_time() - used), first


def memory(folder: Path, batch: int, name: str, epochs: int) -> list[float]:
    """Resident memory (MB) that a process of its own adds for a pipeline, after each epoch."""
    arguments = ["--work", str(folder), "--batch", str(batch), "--memory-of", name, "--epochs", str(epochs)]
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_here(folder: Path, batch: int, name: str, epochs: int) -> list[float]:
    """What `memory` measures, in this process."""
    dataset = Dataset.open(folder / "set")
    trials = sum(shard.trials for shard in dataset.manifest.shards if shard.partition == "train")
    before, found = _resident(), list[float]()
    with closing(pipelines(folder, batch)[name]()) as counts:  # type: ignore[type-var]
        for _ in range(epochs):
            seen = 0
            while seen < trials:
                seen += next(counts)
            found.append(round(_resident() - before, 1))
    return found


def _resident() -> float:
    """MB of this process and its loader's workers, without what they share with the page cache."""
    own = Path("/proc/self")
    children = (own / f"task/{os.getpid()}/children").read_text().split()
    return sum(_anonymous(path) for path in (own, *(Path("/proc") / pid for pid in children)))


def _anonymous(process: Path) -> float:
    lines = (process / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def features(folder: Path, rounds: int) -> dict[str, Any]:
    """GB/s of a bfloat16 feature column read in random order and checked, against a plain read of its tars."""
    dataset = Dataset.open(folder / "features")
    table = dataset.samples("subj01", "train")
    tars = sorted((folder / "features").glob(f"subj01/train-*.{loader_data.SPACE}.tar"))
    order = np.random.default_rng(0).permutation(len(table))
    speeds: dict[str, list[float]] = {"ours": [], "page cache": []}
    for _ in range(rounds + 1):  # the first warms the cache
        started, size = time.perf_counter(), 0
        for first in range(0, len(order), 16):
            size += dataset.feature_tensor([(table, order[first : first + 16])], loader_data.SPACE).nbytes
        speeds["ours"].append(size / (time.perf_counter() - started) / 1e9)
        started, buffer, size = time.perf_counter(), bytearray(1 << 20), 0
        for path in tars:
            with open(path, "rb", buffering=0) as file:
                while found := file.readinto(buffer):
                    size += found
        speeds["page cache"].append(size / (time.perf_counter() - started) / 1e9)
    told = {name: spread(values[1:], 2) for name, values in speeds.items()}
    return {
        "GB_per_second": told,
        "share_of_page_cache": ratio(told["ours"], told["page cache"]),
        "target_share": 0.33,
    }


def verifying(folder: Path, rounds: int) -> dict[str, Any]:
    """MB per second of CPU time, so on one core, of `data verify` and of sha256 alone over the same tars."""
    tars = sorted((folder / "set").rglob("*.tar"))
    size = sum(path.stat().st_size for path in tars)
    speeds: dict[str, list[float]] = {"verify": [], "sha256": []}
    for _ in range(rounds):
        started = time.process_time()
        if problems := verify(folder / "set"):
            raise SystemExit(f"the data set is damaged: {problems[0]}")
        speeds["verify"].append(size / (time.process_time() - started) / 1e6)
        started, buffer = time.process_time(), memoryview(bytearray(1 << 20))
        for path in tars:
            digest = sha256()
            with open(path, "rb", buffering=0) as file:
                while found := file.readinto(buffer):
                    digest.update(buffer[:found])
        speeds["sha256"].append(size / (time.process_time() - started) / 1e6)
    return {"MB_per_cpu_second": {name: spread(values, 0) for name, values in speeds.items()}, "target": 500}


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Median, least and most."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def ratio(one: dict[str, float], other: dict[str, float]) -> float:
    """Of two medians."""
    return round(one["median"] / other["median"], 2)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    runs = pipelines(folder, options.batch)
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, pipeline in runs.items():
            measured[name].append(timed(pipeline, options.seconds))
    wall, cpu, first = ({n: [f[i] for f in found] for n, found in measured.items()} for i in range(3))
    speed = {name: spread(found, 0) for name, found in wall.items()}
    alone = {n: spread(found, 0) for n, found in cpu.items() if "webdataset," not in n or "process" in n}
    watched = ("ours, 1 worker", "webdataset, 1 worker", "mindeye2") if options.epochs else ()
    one, two, other = "ours, 1 worker", "ours, 2 workers", "webdataset, in process"
    return {
        "samples_per_second": speed,
        "samples_per_cpu_second": alone,
        "ratios": {
            "ours to webdataset, by CPU time (target 8)": ratio(alone[one], alone[other]),
            "ours to webdataset, 1 worker (target 8)": ratio(speed[one], speed["webdataset, 1 worker"]),
            "ours to webdataset, 2 workers (target 8)": ratio(speed[two], speed["webdataset, 2 workers"]),
            "ours to mindeye2 (target 5)": ratio(speed[one], speed["mindeye2"]),
            "ours to mindeye2 without pictures": ratio(speed[one], speed["mindeye2 without pictures"]),
            "ours to mindeye2 without pictures, by CPU time": ratio(
                alone[one], alone["mindeye2 without pictures"]
            ),
        },
        "first_batch_seconds": {name: spread(found, 3) for name, found in first.items()},
        "memory_MB_by_epoch": {n: memory(folder, options.batch, n, options.epochs) for n in watched},
        "memory_MB_by_epoch_of_a_quarter_of_the_data": {
            n: memory(folder / "quarter", options.batch, n, options.epochs) for n in watched[:1]
        },
        "features": features(folder, options.rounds),
        "verify": verifying(folder, options.rounds),
    }


def main() -> None:
    """Make the data, run everything and print JSON alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--pictures", type=int, default=320, help="of each of two subjects, three trials each"
    )
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--tokens", type=int, nargs=2, default=[256, 1664], help="shape of the features")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each pipeline in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="over which memory is watched; 0 for not")
    parser.add_argument("--work", type=Path, help="folder for the data; a temporary one unless given")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="webdataset")
    if options.memory_of:
        print(json.dumps(memory_here(options.work, options.batch, options.memory_of, options.epochs)))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as made:
        folder = Path(made)
        loader_data.make(folder, options.pictures, options.voxels, tuple(options.tokens))
        told = {name: value for name, value in vars(options).items() if name not in ("work", "memory_of")}
        print(json.dumps({"cores": os.cpu_count(), "options": told} | compare(folder, options), indent=1))


if __name__ == "__main__":
    main()
