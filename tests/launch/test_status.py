"""What `fmri2img status` and `events.jsonl` say of runs that run, ended, stopped and died."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmri2img.errors import InputError, StoppedError
from fmri2img.launch import events as story
from fmri2img.launch.events import EVENTS, HEARTBEAT, Story, following_nodes, read_events, telling
from fmri2img.launch.status import STALE_SECONDS, read_status

Say = Callable[..., Any]


def record(run: Path, step: int, at: float) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "total": 100, "time": at, "train/loss": 1 / step}) + "\n")


def commit(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(story, "BEAT_SECONDS", 0.02)


def test_a_running_job_tells_its_step_rate_and_time_left(tmp_path: Path) -> None:
    with telling(tmp_path, "pretrain", workers=2):
        for step in (10, 20, 30):
            record(tmp_path, step, time.time() + step)
        status = read_status(tmp_path)
    assert (status.state, status.job, status.step, status.total) == ("running", "pretrain", 30, 100)
    assert status.steps_per_second == pytest.approx(1, rel=0.01)
    assert status.seconds_left == pytest.approx(70, rel=0.01)
    assert status.checkpoint is None and status.faults == []


def test_checkpoints_are_told_once_each_as_they_are_committed(tmp_path: Path) -> None:
    commit(tmp_path, 5)
    with telling(tmp_path, "pretrain"):
        commit(tmp_path, 10)
        time.sleep(0.1)
        commit(tmp_path, 15)
    told = [event["step"] for event in read_events(tmp_path) if event["event"] == "checkpoint"]
    assert told == [10, 15]
    status = read_status(tmp_path)
    assert (status.state, status.checkpoint) == ("finished", 15)
    assert json.loads((tmp_path / HEARTBEAT).read_text())["state"] == "ended"


def test_a_refused_job_leaves_no_new_folder_and_spares_one_that_was_there(tmp_path: Path) -> None:
    def refuse(run: Path) -> None:
        with telling(run, "finetune"):
            raise InputError("--sessions 41: use 1 to 40")

    for run in (tmp_path / "new", tmp_path / "old"):
        if run.name == "old":
            commit(run, 5)
        with pytest.raises(InputError, match="--sessions 41"):
            refuse(run)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old" / "checkpoints" / "step-00000005").is_dir()
    assert read_events(tmp_path / "old")[-1]["event"] == "stopped"


def test_a_job_that_stops_says_why_and_with_which_exit_code(tmp_path: Path, said: Say) -> None:
    def stop() -> None:
        with telling(tmp_path, "pretrain"):
            record(tmp_path, 20, time.time())
            raise StoppedError("stopped by [SIGTERM]")

    with pytest.raises(StoppedError):
        stop()
    last = read_events(tmp_path)[-1]
    assert (last["event"], last["exit_code"], last["step"]) == ("stopped", 75, 20)
    status = read_status(tmp_path)
    assert (status.state, status.reason) == ("stopped", "stopped by [SIGTERM]")
    assert "stopped by [SIGTERM]" in said("status", tmp_path).out


def test_a_driver_that_is_not_heard_of_any_more_is_dead(tmp_path: Path) -> None:
    Story(tmp_path).tell("started", job="pretrain", step=0)
    beat = {"time": 1000.0, "host": "node7", "pid": 3, "state": "running"}
    (tmp_path / HEARTBEAT).write_text(json.dumps(beat))
    assert read_status(tmp_path, now=1000 + STALE_SECONDS / 2).state == "running"
    dead = read_status(tmp_path, now=1001 + STALE_SECONDS)
    assert (dead.state, dead.driver) == ("dead", "node7:3")


def test_a_failure_costs_the_steps_since_the_last_checkpoint_and_the_time_until_workers_train(
    tmp_path: Path,
) -> None:
    with telling(tmp_path, "pretrain") as told:
        commit(tmp_path, 20)
        record(tmp_path, 27, time.time())
        told.failed("worker 1 failed: gone")
        time.sleep(0.15)
        told.going([{"rank": 0}, {"rank": 1}])
        told.going([{"rank": 0}])
    restarted = [event for event in read_events(tmp_path) if event["event"] == "restarted"]
    assert [(e["step"], e["lost_steps"], e["workers"]) for e in restarted] == [(20, 7, 2)]
    assert 0.1 <= restarted[0]["seconds"] < 10
    status = read_status(tmp_path)
    assert (status.lost_steps, len(status.faults)) == (7, 1)


def test_nodes_that_join_and_are_lost_are_on_record(tmp_path: Path) -> None:
    alive: dict[str, str] = {"a": "10.0.0.1", "b": "10.0.0.2"}
    told = Story(tmp_path)
    with following_nodes(told, lambda: dict(alive)):
        time.sleep(0.1)
        del alive["b"]
        time.sleep(0.1)
        alive["c"] = "10.0.0.3"
        time.sleep(0.1)
    seen = [(event["event"], event["address"]) for event in read_events(tmp_path)]
    assert seen == [("node-lost", "10.0.0.2"), ("node-joined", "10.0.0.3")]


def test_an_event_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    Story(tmp_path).tell("started", job="pretrain", step=0)
    with open(tmp_path / EVENTS, "a") as file:
        file.write('{"time": 3, "eve')
    assert [event["event"] for event in read_events(tmp_path)] == ["started"]


def test_a_finetuning_tells_its_story_too(world: Any, said: Say, flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = ["--from", world.pretrained, "--data", world.data, "--subject", "subj01", "--out", run]
    assert said("finetune", *where, *flags).code == 0
    told = json.loads(said("status", run, "--json").out)
    assert (told["state"], told["job"], told["step"], told["checkpoint"]) == ("finished", "finetune", 4, 4)


def test_a_folder_without_a_run_is_refused(said: Say, tmp_path: Path) -> None:
    told = said("status", tmp_path)
    assert told.code == 2 and "holds no run" in told.line
