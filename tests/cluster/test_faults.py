"""Pretraining over three real hosts: the same weights, whatever happens to a host."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fmri2img import checkpoints_schema as schema
from fmri2img.launch.events import read_events
from fmri2img.launch.pretraining import read_workers
from fmri2img.trainer.watch import read_records

Agrees = Callable[[Path], bool]
SCRIPT = Path(sys.executable).with_name("fmri2img")


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(schema.resolve(run).path / "model.safetensors")


def same_bytes(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}


def starts(lab: Any, world: Any, run: Path, *more: object, workers: int = 3) -> "subprocess.Popen[str]":
    """The command, on the head's host."""
    place = ["--cluster", lab.address, "--workers", workers]
    return lab.host(0).start(SCRIPT, *world.words(run, *place, *more))


def ended(driver: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = driver.communicate(timeout=200)
    return driver.returncode, out + err


def reached(run: Path, step: int) -> bool:
    return any(record["step"] >= step for record in read_records(run))


def events(run: Path) -> list[str]:
    return [event["event"] for event in read_events(run) if event["event"] != "checkpoint"]


@pytest.fixture(scope="session")
def undisturbed(lab: Any, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three hosts that nothing happens to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with lab.hosts(3) as made:
        made.start_ray()
        code, told = ended(starts(made, world, run))
        assert code == 0, told
        names = [host.name for host in made.hosts]
        addresses = [host.address for host in made.hosts]
    (workers,) = read_workers(run)
    assert sorted(worker["host"] for worker in workers) == names
    assert sorted(worker["address"] for worker in workers) == addresses
    assert sorted(worker["node_rank"] for worker in workers) == [0, 1, 2]
    return run


def test_three_hosts_make_the_model_that_one_process_makes(undisturbed: Path, agrees: Agrees) -> None:
    assert agrees(undisturbed)
    assert events(undisturbed) == ["started", "finished"]


def test_a_host_that_dies_and_returns_costs_some_steps_and_changes_nothing(
    undisturbed: Path, three: Any, lab: Any, world: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    driver = starts(three, world, run)
    lab.wait_for(lambda: reached(run, 15) or driver.poll() is not None, seconds=120, told="step 15")
    three.host(2).kill()
    lab.wait_for(lambda: "node-lost" in events(run), seconds=60, told="the loss is on record")
    three.host(2).start_ray()
    code, told = ended(driver)
    assert code == 0, told
    assert same_bytes(run, undisturbed)
    told_of = [name for name in events(run) if name != "waiting"]
    # Ray may say that a node is gone before or after training says that it failed.
    assert sorted(told_of[1:3]) == ["failed", "node-lost"]
    assert told_of[:1] + told_of[3:] == ["started", "node-joined", "restarted", "finished"]
    (cost,) = [event for event in read_events(run) if event["event"] == "restarted"]
    assert cost["workers"] == 3 and 0 <= cost["lost_steps"] <= 10 and cost["seconds"] > 0


def test_a_host_that_dies_and_stays_away_stops_a_run_that_two_hosts_finish(
    agrees: Agrees, three: Any, lab: Any, world: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    driver = starts(three, world, run, "--wait-for-nodes", 5)
    lab.wait_for(lambda: reached(run, 15) or driver.poll() is not None, seconds=120, told="step 15")
    three.host(2).kill()
    code, told = ended(driver)
    assert code == 75, told
    assert "2 of 3 workers find a place" in told and "--workers 2" in told
    assert read_events(run)[-1]["event"] == "stopped" and read_events(run)[-1]["exit_code"] == 75
    code, told = ended(starts(three, world, run, workers=2))
    assert code == 0, told
    assert agrees(run)
