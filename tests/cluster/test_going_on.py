"""What a run gets over by itself: fewer hosts and more again, a worker that hangs, a cut link; and what stops it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from fmri2img import checkpoints_schema as schema
from fmri2img.launch.events import read_events
from fmri2img.launch.pretraining import read_workers
from fmri2img.trainer.watch import read_records

Agrees = Callable[[Path], bool]
SCRIPT = Path(sys.executable).with_name("fmri2img")
# A step of the three takes a second over it, so that there is time for things to happen.
NARROW = "2mbit"


class Run:
    """A run over three hosts, and the command that makes it."""

    def __init__(self, lab: Any, three: Any, world: Any, folder: Path) -> None:
        self.lab, self.three, self.world, self.folder = lab, three, world, folder
        self.driver: subprocess.Popen[str]

    def start(self, *more: object) -> "Run":
        words = self.world.words(self.folder, "--cluster", self.three.address, *more)
        self.driver = self.three.host(0).start(SCRIPT, *words)
        return self

    def until(self, what: Callable[[], object], told: str, seconds: float = 150) -> None:
        self.lab.wait_for(lambda: what() or self.driver.poll() is not None, seconds=seconds, told=told)
        assert self.driver.poll() is None, self.driver.communicate()

    def until_step(self, step: int) -> None:
        self.until(lambda: any(r["step"] >= step for r in read_records(self.folder)), f"step {step}")

    def until_event(self, name: str, times: int = 1) -> None:
        self.until(lambda: self.events.count(name) >= times, f"event {name}")

    def ends(self, code: int) -> str:
        out, err = self.driver.communicate(timeout=250)
        assert self.driver.returncode == code, out + err
        return err

    @property
    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.folder)]

    @property
    def workers(self) -> list[int]:
        """How many workers trained, start after start."""
        return [len(start) for start in read_workers(self.folder)]


@pytest.fixture
def run(lab: Any, three: Any, world: Any, tmp_path: Path) -> Run:
    return Run(lab, three, world, tmp_path / "run")


def nobody_left(run: Run) -> bool:
    """No worker of any start is alive."""
    pids = {worker["pid"] for start in read_workers(run.folder) for worker in start}
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_a_run_shrinks_to_the_hosts_that_are_left_and_grows_again(run: Run, agrees: Agrees) -> None:
    run.start("--workers", "1:3", "--wait-for-nodes", 0)
    run.until_step(5)
    run.three.host(2).kill()
    run.until_event("shrunk")
    run.three.host(1).bandwidth(NARROW)
    run.three.host(2).start_ray()
    run.until_event("growing")
    run.three.host(1).heal()
    run.ends(0)
    assert run.workers == [3, 2, 3]
    grown = next(event for event in read_events(run.folder) if event["event"] == "growing")
    assert 0 < grown["step"] < 60 and grown["workers"] == 3
    steps = [record["step"] for record in read_records(run.folder) if "train/loss" in record]
    assert steps == list(range(5, 61, 5))
    assert agrees(run.folder)


def test_a_worker_that_hangs_is_killed_and_nothing_changes(run: Run, agrees: Agrees, lab: Any) -> None:
    run.start("--workers", 3, "--hang-after", 20)
    run.until_step(5)
    (workers,) = read_workers(run.folder)
    os.kill(workers[2]["pid"], signal.SIGSTOP)
    run.ends(0)
    failed = next(event for event in read_events(run.folder) if event["event"] == "failed")
    assert "nothing new from the workers" in failed["reason"]
    assert run.workers == [3, 3]
    assert agrees(run.folder)
    lab.wait_for(lambda: nobody_left(run), seconds=20, told="the worker that hung is gone")


def test_a_link_that_is_cut_for_a_moment_costs_nothing_but_time(run: Run, agrees: Agrees) -> None:
    run.three.host(1).bandwidth(NARROW)
    run.start("--workers", 3)
    run.until_step(5)
    run.three.host(2).cut()
    time.sleep(2)
    run.three.host(2).heal()
    run.three.host(1).heal()
    run.ends(0)
    assert run.workers == [3]
    assert "failed" not in run.events
    assert agrees(run.folder)


def test_sigterm_to_the_driver_leaves_a_checkpoint_of_the_step_under_way(
    run: Run, agrees: Agrees, lab: Any
) -> None:
    run.three.host(1).bandwidth(NARROW)
    run.start("--workers", 3)
    run.until_step(5)
    (driver,) = [pid for pid in run.three.host(0).pids if _is_driver(pid)]
    os.kill(driver, signal.SIGTERM)
    told = run.ends(75)
    stopped = schema.resolve(run.folder).manifest.step
    assert f"stopped after step {stopped} of 60: the same command goes on from there" in told
    lab.wait_for(lambda: nobody_left(run), seconds=20, told="no worker is left")
    run.three.host(1).heal()
    run.start("--workers", 3).ends(0)
    assert agrees(run.folder)


def _is_driver(pid: int) -> bool:
    words = psutil.Process(pid).cmdline()
    return str(SCRIPT) in words and "pretrain" in words and words[0] != "sh"


def test_a_head_that_is_lost_ends_the_run_and_a_new_cluster_finishes_it(
    run: Run, agrees: Agrees, lab: Any
) -> None:
    run.three.host(1).bandwidth(NARROW)
    run.start("--workers", 3)
    run.until_step(5)
    for pid in run.three.host(0).pids:
        if "gcs_server" in " ".join(psutil.Process(pid).cmdline()[:1]):
            os.kill(pid, signal.SIGKILL)
    told = run.ends(75)
    assert "the head of the cluster" in told
    lab.wait_for(lambda: nobody_left(run), seconds=60, told="no worker is left")
    for host in run.three.hosts:
        host.kill().heal()
        (host.folder / "ray.log").unlink()
    run.three.start_ray()
    run.start("--workers", 3).ends(0)
    assert agrees(run.folder)
