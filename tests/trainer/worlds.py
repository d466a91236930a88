"""Groups of one to four processes that train the same, and a group that is killed again and again.

Run as `python worlds.py FOLDER DATA`. Every process is a fork of this one, which has imported everything but computed
nothing. Groups write what their engines came to (`zeroSTAGE-WORLD-RANK.safetensors`) and pretrain runs: `alone` without
a group, `one` to `four` named after the number of processes; `moved`, which began with two, went on with four and ended
with one; `whole` and `broken` of two processes, of which the latter were killed. Prints, as JSON, which step each
killed group had logged last. Engines of one and two processes also train in reduced precision (`KIND-STAGE-...`).
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 long to import, so once for all forks
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from safetensors.torch import save_file

from fmri2img.trainer.engines import DeepSpeedEngine
from fmri2img.trainer.stages import StageSpec, pretrain
from fmri2img.trainer.watch import read_records

Work = Callable[[int, int], None]
WORLDS = (1, 2, 3, 4)
STAGES = (0, 1, 2, 3)
UPDATES = 4
REDUCED = [(kind, stage) for kind in ("bfloat16", "float16") for stage in (1, 2, 3)]
REDUCED_WORLDS, REDUCED_STEPS = (
    (1, 2),
    5,
)  # float16 leaves the first out: its loss scale is too large for them
RUNS = {
    "alone": (0, 2),
    "one": (1, 0),
    "two": (2, 2),
    "three": (3, 1),
    "four": (4, 3),
}  # processes, ZeRO stage
KILLS = 4


def recipe(**changes: Any) -> dict[str, Any]:
    """Contrast over the whole batch, mixed responses and then soft labels, regression; validation; no dropout."""
    training = {
        "steps": 8,
        "global_batch": 48,
        "lanes": 12,
        "learning_rate": 1e-2,
        "noise": 0.5,
        "ema": 0.9,
        "validation": 0.2,
        "validate_every": 3,
        "checkpoint_every": 2,
        "keep": 99,
        "log_every": 1,
        "zero_stage": 2,
    }
    words = {
        "mse": {},
        "bimixco": {"weight": 0.3, "temperature": 0.1, "mixed": 1.0, "end": 0.5},
        "softclip": {"weight": 0.3, "temperature": 0.1, "final_temperature": 0.2, "begin": 0.5},
    }
    return {
        "name": "worlds",
        "spaces": {
            "pixels-2": {
                "extractor": {"kind": "pixels", "size": 2},
                "losses": {"mse": {}, "contrastive": {"weight": 0.3}},
            },
            "words": {"extractor": {"kind": "caption-words", "size": 8}, "losses": words},
        },
        "decoder": {"latent": 6, "hidden": 10, "blocks": 1, "dropout": 0.0},
        "pretraining": training | changes,
        "finetuning": training | changes | {"zero_stage": 0},
        "generator": {"kind": "pixels", "space": "pixels-2", "size": 8},
    }


def spec(run: Path, data: str, **changes: Any) -> StageSpec:
    """Two subjects of unequal width. Without a group it is the plain engine that trains."""
    engine: Literal["accelerate", "deepspeed"] = "accelerate" if run.name == "alone" else "deepspeed"
    return StageSpec(recipe(**changes), data, ("subj01", "subj02"), str(run), engine=engine)


def load(name: str) -> ModuleType:
    """A file beside this one as a module."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def start(folder: Path, world: int, work: Work) -> list[int]:
    """Fork a gloo group that does `work(rank, world)`, or one process alone (0) without a group; the process ids."""
    store = folder / f"store-{time.time_ns()}"
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    children = []
    for rank in range(max(1, world)):
        child = os.fork()
        if not child:
            status = 1
            try:
                if world:
                    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
                    dist.init_process_group(
                        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
                    )
                work(rank, world)
                if world:
                    dist.barrier()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children


def finished(children: list[int]) -> bool:
    """Whether all have ended well; one that failed takes the others with it and this process too."""
    for child in list(children):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            children.remove(child)
            if status:
                kill(children)
                sys.exit(f"a process of the group ended with status {status}")
    return not children


def kill(children: list[int]) -> None:
    """SIGKILL for the whole group."""
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def together(folder: Path, world: int, work: Work) -> None:
    """A group to its end."""
    children = start(folder, world, work)
    while not finished(children):
        time.sleep(0.01)


def updates(folder: Path) -> Work:
    """A few updates at every stage from the same weights and batches."""
    processes = load("processes")

    def work(rank: int, world: int) -> None:
        for stage in STAGES:
            engine = DeepSpeedEngine(processes.decoder(), processes.config(zero_stage=stage))
            norms = processes.train(engine, 0, UPDATES, rank, world)
            tensors = {**processes.state(engine), "norms": torch.tensor(norms, dtype=torch.float64)}
            save_file(tensors, folder / f"zero{stage}-{world}-{rank}.safetensors")
        if world in REDUCED_WORLDS:
            reduced(rank, world)

    def reduced(rank: int, world: int) -> None:
        # The CPU computes in float16, if slowly; DeepSpeed asks whether it does so fast.
        get_accelerator().is_fp16_supported = lambda: True
        for kind, stage in REDUCED:
            told = processes.config(zero_stage=stage, precision=kind)
            engine = DeepSpeedEngine(processes.decoder(), told)
            norms = processes.train(engine, 0, REDUCED_STEPS, rank, world)
            tensors = {**processes.state(engine), "norms": torch.tensor(norms, dtype=torch.float64)}
            tensors["skipped"] = torch.tensor(engine.skipped)
            save_file(tensors, folder / f"{kind}-{stage}-{world}-{rank}.safetensors")

    return work


def pretraining(run: StageSpec) -> Work:
    """One run, begun or gone on with."""

    def work(rank: int, world: int) -> None:
        pretrain(run)

    return work


def keep_until(run: Path, step: int, other: Path) -> None:
    """A copy of a run as if it had been killed after the checkpoint of a step, with some steps logged beyond it."""
    shutil.copytree(run, other)
    for path in (other / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def killed(folder: Path, run: StageSpec, steps: int, delay: float) -> int:
    """Two processes, killed `delay` seconds after they logged `steps` more steps; the step that was logged last."""
    first = time.time()
    children = start(folder, 2, pretraining(run))
    while len({r["step"] for r in read_records(Path(run.run)) if r["time"] > first}) < steps:
        if finished(children):
            sys.exit("the run ended before it was killed")
        time.sleep(0.003)
    time.sleep(delay)
    kill(children)
    return int(read_records(Path(run.run))[-1]["step"])


def main(folder: Path, data: str) -> None:
    for world in WORLDS:
        together(folder, world, updates(folder))
    for name, (world, stage) in RUNS.items():
        run = spec(folder / name, data, zero_stage=stage)
        together(folder, world, pretraining(run))
    keep_until(folder / "two", 2, folder / "moved-2")
    moved = spec(folder / "moved-2", data)
    together(folder, 4, pretraining(moved))
    keep_until(folder / "moved-2", 5, folder / "moved")
    last = spec(folder / "moved", data)
    together(folder, 1, pretraining(last))

    changes = {"steps": 36, "checkpoint_every": 2, "validate_every": 9}
    whole = spec(folder / "whole", data, **changes)
    broken = spec(folder / "broken", data, **changes)
    together(folder, 2, pretraining(whole))
    draws, logged = random.Random(1), []
    for _ in range(KILLS):
        logged.append(killed(folder, broken, draws.randint(1, 9), draws.uniform(0, 0.02)))
    together(folder, 2, pretraining(broken))
    print(json.dumps({"killed_at": logged}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
