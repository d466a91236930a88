"""A run over three hosts to which something happens every few minutes, and what must be true after.

    python tests/cluster/soak.py --minutes 60 --out FOLDER [--steps N] [--seed 0] [--every 120:180] [--workers 1:3]
        [--rate 2mbit]

As root. Steps are as many as fill the minutes at the pace of a short undisturbed run over links that are narrowed to
`--rate`, so that what faults cost comes on top. Faults come from a shuffled deck, so that each kind comes once before
any comes twice, and only while training goes on. Nothing is tried again but what an operator would: the same command
after exit code 75, a new cluster after its head was lost, and Ray on a host where it did not come up, which is counted.
The last weights are set beside those of one process; the tolerance is that of the tests for 60 steps, or ten times what
one process differs from itself when it adds up the same rows in two micro-batches, where so many steps make that more.
`soak.json` in the folder says everything; exit code 1 when anything was not as it must be.
"""

import argparse
import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from safetensors.numpy import load_file

from fmri2img import checkpoints_schema as schema
from fmri2img.checkpoints_schema.commit import stale_folders
from fmri2img.config import load_recipe
from fmri2img.datasets import build_dataset
from fmri2img.launch.events import read_events
from fmri2img.launch.features import cache_features
from fmri2img.launch.pretraining import read_workers
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.stages import StageSpec, pretrain
from fmri2img.trainer.watch import read_records

lab_module: Any = importlib.import_module("lab")

SCRIPT = Path(sys.executable).with_name("fmri2img")
SUBJECTS = {"subj01": 40, "subj02": 34, "subj03": 36}
LOG, PACE, FLOOR = 5, 25, 2e-5
SETTINGS = (
    "pretraining.global_batch=24",
    "pretraining.lanes=6",
    "pretraining.validation=0.2",
    "pretraining.validate_every=100",
    "pretraining.checkpoint_every=10",
    f"pretraining.log_every={LOG}",
    "decoder.dropout=0",
    "decoder.latent=8",
    "decoder.hidden=16",
    "decoder.blocks=1",
)
KINDS = (
    "worker-killed",
    "worker-stopped",
    "host-killed",
    "link-cut-2s",
    "link-cut",
    "driver-told",
    "head-killed",
)


def build_world(folder: Path) -> Path:
    """Simulate the data set and cache its features."""
    spec = SimulationSpec(subjects=SUBJECTS, sessions=2, trials_per_session=60, test_pictures=10)
    build_dataset(Simulation(spec), folder, samples_per_shard=8)
    cache_features(load_recipe("default", values=SETTINGS), folder)
    return folder


class Soak:
    """One run, the hosts that it runs on, and what has happened to them."""

    def __init__(self, hosts: Any, data: Path, asked: argparse.Namespace) -> None:
        self.hosts, self.data, self.asked = hosts, data, asked
        self.draw = random.Random(asked.seed)
        self.run, self.steps = asked.out / "run", 0
        self.told: list[dict[str, Any]] = []
        self.ends: list[int] = []
        self.deck: list[str] = []
        self.clusters = self.ray_failed = 0
        self.driver: subprocess.Popen[str]

    def start_cluster(self) -> None:
        """Three hosts as a cluster, whatever was there before, over links as narrow as asked."""
        for host in self.hosts.hosts:
            host.kill().heal()
            (host.folder / "ray.log").unlink(missing_ok=True)
        for host in self.hosts.hosts:
            self.start_ray(host)
        for host in self.hosts.hosts:
            host.bandwidth(self.asked.rate)
        self.clusters += 1

    def start_ray(self, host: Any) -> None:
        """Start Ray on a host and wait for it; again when it ends by itself, as on a machine with too much to do."""
        while True:
            host.start_ray()
            process, log = self.hosts.started[-1], host.folder / "ray.log"
            before = log.read_text().count("runtime started")
            while process.poll() is None:
                if log.read_text().count("runtime started") > before:
                    return
                time.sleep(0.1)
            self.ray_failed += 1

    def start_driver(self, run: Path, steps: int) -> None:
        """Give the command."""
        values = [w for v in (*SETTINGS, f"pretraining.steps={steps}") for w in ("--set", v)]
        words = ["pretrain", "--data", self.data, "--out", run, "--hold-out", "subj01", *values]
        words += ["--cluster", self.hosts.address, "--workers", self.asked.workers]
        words += ["--hang-after", self.asked.hang_after, "--wait-for-nodes", self.asked.patience]
        self.driver = self.hosts.host(0).start(SCRIPT, *words, log=self.asked.out / "driver.log")

    def measure_pace(self) -> float:
        """Seconds a step of a short run that nothing happens to."""
        run = self.asked.out / "pace"
        self.start_driver(run, PACE)
        if code := self.driver.wait():
            raise SystemExit(f"the undisturbed run ended with {code}: see {self.asked.out}/driver.log")
        times = {r["step"]: r["time"] for r in read_records(run) if "train/loss" in r}
        return (times[PACE] - times[LOG]) / (PACE - LOG)

    def go_through(self) -> None:
        """From the first command to exit code 0."""
        self.start_driver(self.run, self.steps)
        due = time.monotonic() + self._gap()
        while True:
            code = self.driver.poll()
            if code is not None:
                self.ends.append(code)
                if code == 0:
                    return
                if code != 75:
                    raise SystemExit(f"the command ended with {code}: see {self.asked.out}/driver.log")
                if not self._head():
                    self.start_cluster()
                self.start_driver(self.run, self.steps)
            elif time.monotonic() >= due and self._trains():
                self._strike()
                due = time.monotonic() + self._gap()
            time.sleep(0.2)

    def _gap(self) -> float:
        return self.draw.uniform(*self.asked.every)

    def _trains(self) -> bool:
        """Whether the last start has logged something, since when nothing has ended it, and all have a place."""
        events = [
            e for e in read_events(self.run) if e["event"] in ("started", "failed", "growing", "stopped")
        ]
        starts, records = read_workers(self.run), read_records(self.run)
        if (
            not events
            or not starts
            or not records
            or time.time() - records[-1]["time"] > self.asked.hang_after / 2
        ):
            return False
        line = (self.run / "workers.jsonl").read_text().splitlines()[-1]
        begun = float(json.loads(line)["time"])
        return bool(
            events[-1]["time"] < begun < records[-1]["time"] and records[-1]["step"] < self.steps - LOG
        )

    def _strike(self) -> None:
        if not self.deck:
            self.deck = self.draw.sample(KINDS, len(KINDS))
        kind = self.deck.pop()
        fact = {"time": round(time.time(), 3), "fault": kind, "step": read_records(self.run)[-1]["step"]}
        print(json.dumps(fact), file=sys.stderr, flush=True)
        self.told.append(fact | self._do(kind))

    def _do(self, kind: str) -> dict[str, Any]:
        worker = self.draw.choice(read_workers(self.run)[-1])
        host = self.hosts.host(self.draw.choice((1, 2)))
        away = self.draw.uniform(3, 15)
        if kind in ("worker-killed", "worker-stopped"):
            os.kill(worker["pid"], signal.SIGKILL if kind == "worker-killed" else signal.SIGSTOP)
            return {"rank": worker["rank"]}
        if kind == "driver-told":
            self.driver.send_signal(signal.SIGTERM)
            return {}
        if kind == "head-killed":
            for pid in self._head():
                os.kill(pid, signal.SIGKILL)
            return {}
        if kind == "link-cut-2s":
            host.cut()
            time.sleep(2)
            host.heal().bandwidth(self.asked.rate)
            return {"host": host.number}
        if kind == "link-cut":
            host.cut()
            time.sleep(20 + away)
        host.kill()
        if kind == "host-killed":
            time.sleep(away)
        self.start_ray(host.heal())
        host.bandwidth(self.asked.rate)
        return {"host": host.number, "away": round(away, 1)}

    def _head(self) -> list[int]:
        """The process that is the head of the cluster, if it lives."""
        return [pid for pid in self.hosts.host(0).pids if "gcs_server" in name_of(pid)]

    def left_alive(self) -> list[int]:
        """Workers of any start that live. A process id is given again: whoever is younger is somebody else."""
        found = []
        for line in (self.run / "workers.jsonl").read_text().splitlines():
            start = json.loads(line)
            for worker in start["workers"]:
                if name_of(worker["pid"], before=start["time"]):
                    found.append(worker["pid"])
        return found


def name_of(pid: int, *, before: float = math.inf) -> str:
    """The name of a process that lives and began before a time; nothing where there is none."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.create_time() <= before and process.status() != psutil.STATUS_ZOMBIE:
            return str(process.name())
    return ""


def trained_alone(data: Path, run: Path, steps: int, micro_batches: int) -> dict[str, np.ndarray]:
    """The weights that one process makes, without Ray and DeepSpeed."""
    values = (*SETTINGS, f"pretraining.steps={steps}", f"pretraining.micro_batches={micro_batches}")
    recipe = load_recipe("default", values=values).model_dump(mode="json")
    spec = StageSpec(recipe, str(data), ("subj02", "subj03"), str(run), engine="accelerate")
    return load_file(pretrain(spec) / "model.safetensors")


def furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference, as a share of the largest value of its tensor."""
    if one.keys() != other.keys():
        return math.inf
    return float(max(np.abs(one[k] - other[k]).max() / max(np.abs(one[k]).max(), 1e-30) for k in one))


def judge(soak: Soak) -> dict[str, Any]:
    """What happened, what it cost, and whether all is as it must be."""
    run, out, steps = soak.run, soak.asked.out, soak.steps
    end = time.monotonic() + 20
    while (alive := soak.left_alive()) and time.monotonic() < end:
        time.sleep(0.2)
    truth = trained_alone(soak.data, out / "alone", steps, 1)
    rounding = furthest(truth, trained_alone(soak.data, out / "parts", steps, 2))
    off = furthest(truth, load_file(schema.resolve(run).path / "model.safetensors"))
    events, logged = read_events(run), [r["step"] for r in read_records(run) if "train/loss" in r]
    again = [e for e in events if e["event"] == "restarted"]
    half = stale_folders(run / schema.CHECKPOINTS_FOLDER)
    litter = sorted(p.name for p in run.iterdir() if p.name.startswith(".ray-") or ".tmp-" in p.name)
    checks = {
        "weights_are_those_of_one_process": off <= max(FLOOR, 10 * rounding),
        "every_logged_step_once": logged == list(range(LOG, steps + 1, LOG)),
        "no_process_left": not alive,
        "no_half_written_checkpoint": not half,
        "no_litter_in_the_run_folder": not litter,
    }
    return {
        "seed": soak.asked.seed,
        "steps": steps,
        "faults": soak.told,
        "faults_by_kind": Counter(fact["fault"] for fact in soak.told),
        "exit_codes": soak.ends,
        "clusters_started": soak.clusters,
        "ray_starts_that_failed": soak.ray_failed,
        "workers_of_starts": [len(start) for start in read_workers(run)],
        "events": Counter(e["event"] for e in events),
        "restarted": [{k: e[k] for k in ("step", "lost_steps", "seconds", "workers")} for e in again],
        "lost_steps": sum(e["lost_steps"] for e in again),
        "seconds_without_training": round(sum(e["seconds"] for e in again), 1),
        "seconds": round(events[-1]["time"] - events[0]["time"], 1),
        "largest_difference": off,
        "difference_by_rounding": rounding,
        "left": {"processes": alive, "half_written": [str(p) for p in half], "litter": litter},
        "checks": checks,
    }


def pair(text: str) -> tuple[float, float]:
    """`120:180`."""
    least, _, most = text.partition(":")
    return float(least), float(most)


def main() -> int:
    """Soak, judge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--steps", type=int, help=f"a multiple of {LOG}, instead of measuring how many fill the minutes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=pair, default=(120, 180), help="seconds between faults, least:most")
    parser.add_argument("--workers", default="1:3")
    parser.add_argument("--hang-after", type=float, default=30)
    parser.add_argument("--patience", type=float, default=10, help="--wait-for-nodes of the command")
    parser.add_argument("--rate", default="2mbit", help="what passes every link")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if (why := lab_module.missing()) is not None:
        raise SystemExit(why)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are swept away
    asked.out = asked.out.resolve()
    asked.out.mkdir(parents=True)
    data = build_world(asked.out / "data")
    with lab_module.hosts(3) as hosts:
        soak = Soak(hosts, data, asked)
        soak.start_cluster()
        pace = None if asked.steps else soak.measure_pace()
        soak.steps = asked.steps if pace is None else max(1, round(60 * asked.minutes / pace / LOG)) * LOG
        soak.go_through()
        told = {"seconds_a_step_undisturbed": pace, **judge(soak)}
    (asked.out / "soak.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))
    return 0 if all(told["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
