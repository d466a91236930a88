"""Workers of Ray Train beside the same loop without Ray, plain DistributedDataParallel and one process, as JSON.

    python benchmarks/scaling.py [--workers 1 2 4] [--stages 0 2] [--steps 40] [--rounds 1] [--voxels 15724]
        [--latent 192] [--batch 96] [--subjects 2] [--no-ray]

For each number of workers n and the same batches: our loop in one process with n threads (`alone`), in n processes of
one thread under torchrun at each ZeRO stage (`loop`), under Ray Train on n emulated nodes (`ray`), and the plainest
loop with DistributedDataParallel over gloo (`ddp`); their losses are compared. Everything is counted from outside
between two records of a run, so start and end are left out: seconds by the records' clock; processor seconds of the
workers and of all else that was started for the run (`others`: Ray's own processes, torchrun's agent); bytes that the
loopback interface took, which are all bytes between ranks with TCP's headers. As root this runs in a network namespace
of its own (`own_network`), so that nobody else's bytes are counted. `minimum_bytes` is that of the algorithm: all ranks
together send 2 (n - 1) times the gradients' bytes for a ring's all-reduce (Patarasuk and Yuan 2009), as much for stages
1 and 2, half as much again for 3 (Rajbhandari et al. 2020, section 7). `shares` are a rank's of a step in `loop`, by
timers around calls: collectives with their waiting for others, waiting for data, records; compute is what is left.
Ray's share is what `ray` takes more than `loop`, of all it takes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from scaling_roles import act

from fmri2img.config import load_recipe
from fmri2img.datasets import build_dataset
from fmri2img.launch.features import cache_features
from fmri2img.launch.pretraining import read_workers
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, open_material
from fmri2img.trainer.watch import Record, read_records

WARMUP, LOG = 5, 5
TIMES = {0: 2, 1: 2, 2: 2, 3: 3}  # of the parameters' bytes, (n - 1) each
Told = dict[str, Any]


def recipe_of(asked: argparse.Namespace, stage: int) -> Recipe:
    """The default recipe at the sizes asked for, the same on any number of workers."""
    values = {
        "decoder.latent": asked.latent,
        "decoder.hidden": round(asked.latent * 8 / 3),
        "decoder.dropout": 0.0,
        "pretraining.noise": 0.0,
        "pretraining.steps": WARMUP + asked.steps,
        "pretraining.start": "random",
        "pretraining.validation": 0.0,
        "pretraining.log_every": LOG,
        "pretraining.checkpoint_every": 10**6,
        "pretraining.global_batch": asked.batch,
        "pretraining.lanes": max(asked.workers),
        "pretraining.zero_stage": stage,
    }
    return load_recipe("default", values=[f"{name}={value}" for name, value in values.items()])


def make_data(asked: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    """Simulate, and cache the features of the recipe; returns the subjects."""
    voxels = {f"subj{n:02}": asked.voxels - 10 * n for n in range(1, asked.subjects + 1)}
    spec = SimulationSpec(subjects=voxels, sessions=1, trials_per_session=240, test_pictures=20)
    build_dataset(Simulation(spec), folder / "data")
    cache_features(recipe_of(asked, 0), folder / "data")
    return tuple(sorted(voxels))


def lo_bytes() -> int:
    """Bytes that the loopback interface took so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def processor(pids: set[int]) -> float:
    """Processor seconds that these processes have taken, those that have ended left out."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class Contestant:
    """One run, started and watched from outside."""

    def __init__(self, folder: Path, spec: StageSpec, role: str, workers: int, threads: int) -> None:
        self.folder, self.run, self.role, self.workers, self.threads = (
            folder,
            Path(spec.run),
            role,
            workers,
            threads,
        )
        self.run.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))

    def words(self) -> list[str]:
        """The command."""
        own = [
            __file__,
            "--role",
            self.role,
            "--spec",
            str(self.folder / "spec.json"),
            "--count",
            str(self.workers),
        ]
        if self.role == "ray":
            return [sys.executable, *own]
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.workers)]
        return [*run, "--master-addr", "127.0.0.1", "--master-port", "29519", *own]

    def pids(self) -> set[int]:
        """Of the workers."""
        if self.role == "ray":
            return {worker["pid"] for worker in read_workers(self.run)[-1]}
        return {int(path.read_text()) for path in self.folder.glob("pid-*")}

    def sample(self, root: psutil.Process, record: Record) -> Told:
        """All counters at a record."""
        mine = self.pids()
        others = {child.pid for child in root.children(recursive=True)} | {root.pid}
        told = {"step": record["step"], "time": record["time"], "bytes": lo_bytes()}
        return told | {"processor": processor(mine), "others": processor(others - mine)}

    def measure(self) -> Told:
        """Run to the end; differences between the counters at two records, a step."""
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "MASTER_ADDR": "127.0.0.1"}
        log = self.folder / "log"
        with open(log, "w") as out:
            process = subprocess.Popen(self.words(), env=env, stdout=out, stderr=subprocess.STDOUT)
        root, samples, seen = psutil.Process(process.pid), [], 0
        while process.poll() is None:
            records = [r for r in read_records(self.run) if "train/loss" in r]
            if records and records[-1]["step"] > seen and records[-1]["step"] >= WARMUP:
                seen = records[-1]["step"]
                samples.append(self.sample(root, records[-1]))
            time.sleep(0.01)
        if process.returncode:
            raise SystemExit(f"{self.role} ended with {process.returncode}: {log.read_text()[-3000:]}")
        # The last record is followed by a checkpoint and the end.
        first, last = samples[0], samples[-2] if len(samples) > 2 else samples[-1]
        steps = last["step"] - first["step"]
        told = {name: (last[name] - first[name]) / steps for name in ("time", "processor", "others", "bytes")}
        return {
            "seconds_a_step": told["time"],
            "processor_seconds_a_step": told["processor"],
            "others_processor_seconds_a_step": told["others"],
            "bytes_a_step": told["bytes"],
            "steps_counted": steps,
            "losses": [r["train/loss"] for r in read_records(self.run) if "train/loss" in r],
        }

    def shares(self) -> Told:
        """Mean over ranks of the shares of the steps after the warm-up."""
        found = []
        for path in sorted(self.folder.glob("steps-*.json")):
            steps = json.loads(path.read_text())
            first, last = steps[WARMUP - 1], steps[-1]
            whole = last["time"] - first["time"]
            parts = {name: (last[name] - first[name]) / whole for name in ("collective", "data", "logging")}
            found.append({"compute": 1 - sum(parts.values()), **parts})
        return {name: round(statistics.mean(f[name] for f in found), 4) for name in found[0]} if found else {}


def contest(
    asked: argparse.Namespace, folder: Path, subjects: tuple[str, ...], n: int, turn: int
) -> dict[str, Told]:
    """All contestants at one number of workers, one after another."""
    entries = [("alone", "loop", 0, 1, n), ("ddp", "ddp", 0, n, 1)]
    for stage in asked.stages:
        entries.append((f"loop-{stage}", "loop", stage, n, 1))
        if not asked.no_ray:
            entries.append((f"ray-{stage}", "ray", stage, n, 1))
    found: dict[str, Told] = {}
    for name, role, stage, workers, threads in entries:
        place = folder / f"{n}-{turn}-{name}"
        recipe = recipe_of(asked, stage).model_dump(mode="json")
        spec = StageSpec(recipe, str(folder / "data"), subjects, str(place / "run"))
        contestant = Contestant(place, spec, role, workers, threads)
        found[name] = contestant.measure() | ({"shares": contestant.shares()} if role == "loop" else {})
    return found


def summarise(asked: argparse.Namespace, n: int, rounds: list[dict[str, Told]], parameters: int) -> Told:
    """Medians over rounds, and what follows from them."""
    told: Told = {"workers": n, "contestants": {}}
    figures = (
        "seconds_a_step",
        "processor_seconds_a_step",
        "others_processor_seconds_a_step",
        "bytes_a_step",
    )
    for name in rounds[0]:
        middle = {key: statistics.median(found[name][key] for found in rounds) for key in figures}
        entry: Told = {"samples_per_second": round(asked.batch / middle["seconds_a_step"], 2)}
        entry |= {key: float(f"{value:.5g}") for key, value in middle.items()}
        if name != "alone" and n > 1:
            stage = int(name[-1]) if name[-1].isdigit() else 0
            least = TIMES[stage] * (n - 1) * 4 * parameters
            entry |= {"minimum_bytes": least, "bytes_over_minimum": round(middle["bytes_a_step"] / least, 4)}
        if "shares" in rounds[0][name]:
            entry["shares"] = rounds[0][name]["shares"]
        told["contestants"][name] = entry
    whole = {
        name: entry["processor_seconds_a_step"] + entry["others_processor_seconds_a_step"]
        for name, entry in told["contestants"].items()
    }
    key, plain = "processor_seconds_a_step", told["contestants"]["ddp"]
    for stage in asked.stages:
        theirs = told["contestants"][f"loop-{stage}"]
        told[f"stage-{stage}"] = {
            "over_ddp_by_the_clock": round(theirs["seconds_a_step"] / plain["seconds_a_step"], 4),
            "over_ddp_by_processor": round(theirs[key] / plain[key], 4),
        }
        if not asked.no_ray:
            own = told["contestants"][f"ray-{stage}"]
            told[f"stage-{stage}"] |= {
                "ray_share_by_the_clock": round(1 - theirs["seconds_a_step"] / own["seconds_a_step"], 4),
                "ray_share_by_processor": round(1 - whole[f"loop-{stage}"] / whole[f"ray-{stage}"], 4),
                "share_of_rays_own_processes": round(own[f"others_{key}"] / whole[f"ray-{stage}"], 4),
            }
    return told


def largest_difference(rounds: list[dict[str, Told]]) -> float:
    """By what share losses differ from those of one process, over all contestants and records."""
    truth = rounds[0]["alone"]["losses"]
    others = [entry["losses"] for found in rounds for entry in found.values()]
    return max(abs(b / a - 1) for losses in others for a, b in zip(truth, losses, strict=False))


def measure(asked: argparse.Namespace, folder: Path) -> Told:
    """Everything."""
    subjects = make_data(asked, folder)
    recipe = recipe_of(asked, 0)
    spec = StageSpec(recipe.model_dump(mode="json"), str(folder / "data"), subjects, str(folder / "none"))
    material = open_material(spec, recipe, recipe.pretraining)
    parameters = sum(p.numel() for p in recipe.decoder.build(material.voxels, material.spaces).parameters())
    counts, off = [], 0.0
    for n in asked.workers:
        rounds = [contest(asked, folder, subjects, n, turn) for turn in range(asked.rounds)]
        off = max(off, largest_difference(rounds))
        counts.append(summarise(asked, n, rounds, parameters))
    if off > 1e-3:
        raise SystemExit(f"the contestants do not do the same: a loss is off by a share of {off}")
    return {
        "parameters": parameters,
        "global_batch": asked.batch,
        "steps": asked.steps,
        "rounds": asked.rounds,
        "processors": os.cpu_count(),
        "load_before": asked.load,
        "own_network": asked.own_network,
        "largest_share_losses_differ_by": off,
        "counts": counts,
    }


def enter_own_network() -> None:
    """Begin again in a network namespace of our own, where that is allowed."""
    if os.geteuid() == 0 and all(map(shutil.which, ("unshare", "ip"))):
        # Nobody answers for names there, and whoever asks would wait long to be told so.
        inside = 'ip link set lo up && mount --bind /dev/null /etc/resolv.conf && exec "$0" "$@"'
        words = [
            "unshare",
            "--net",
            "--mount",
            "sh",
            "-c",
            inside,
            sys.executable,
            *sys.argv,
            "--own-network",
        ]
        os.execvp("unshare", words)


def main() -> None:
    """Print the comparison, or be one of its processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2], choices=(0, 1, 2, 3))
    for name, value in {
        "steps": 40,
        "rounds": 1,
        "subjects": 2,
        "voxels": 15724,
        "latent": 192,
        "batch": 96,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-ray", action="store_true", help="leave the runs under Ray Train out")
    for hidden in ("--role", "--spec", "--count"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--own-network", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role is not None:
        act(asked.role, Path(asked.spec), int(asked.count))
        return
    if not asked.own_network:
        enter_own_network()
    asked.load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        stdout, sys.stdout = sys.stdout, sys.stderr
        result = measure(asked, Path(folder))
        sys.stdout = stdout
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
