"""Runs that shrink and grow with their cluster, and workers that hang: who decides what, without a cluster."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmri2img.commands import _range
from fmri2img.config import load_recipe
from fmri2img.errors import InputError, StoppedError
from fmri2img.launch import overseer, room
from fmri2img.launch.cluster import Place
from fmri2img.launch.fitting import CONTROLLER
from fmri2img.launch.overseer import Overseer
from fmri2img.launch.room import MoreRoom, admissible, check_range, find_room, more_room
from fmri2img.trainer import stopping
from fmri2img.trainer.stages import StageSpec


@pytest.fixture
def spec() -> StageSpec:
    """Twelve lanes: 12, 6, 4, 3, 2 and 1 workers are admissible."""
    values = ("pretraining.lanes=12", "pretraining.global_batch=48")
    recipe = load_recipe("default", values=values).model_dump(mode="json")
    return StageSpec(recipe, "data", ("subj01", "subj02"), "run")


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`slots.free`: how many workers find a place, without waiting."""
    told = SimpleNamespace(free=0, events=[])
    told.tell = lambda event, **facts: told.events.append((event, facts))
    monkeypatch.setattr(room, "wait_for_slots", lambda wanted, seconds, tell: told.free)
    monkeypatch.setattr(room, "count_slots", lambda free=True: told.free)
    monkeypatch.setattr(room, "probe_nodes", lambda: None)
    return told


def test_the_largest_number_that_the_recipe_admits_is_taken(spec: StageSpec) -> None:
    assert [admissible(spec, most) for most in (12, 11, 5, 3, 1, 0)] == [12, 6, 4, 3, 1, 0]


def test_a_run_begins_with_fewer_workers_where_that_is_allowed(spec: StageSpec, slots: Any) -> None:
    slots.free = 5
    assert find_room(spec, Place(12, least=2), slots, interrupted=True) == 4
    assert slots.events == [("shrunk", {"workers": 4, "wanted": 12})]


def test_below_the_fewest_a_run_stops_and_says_how_it_goes_on(spec: StageSpec, slots: Any) -> None:
    slots.free = 5
    with pytest.raises(StoppedError, match=r"5 of 12 workers find a place.*--workers 4 goes on"):
        find_room(spec, Place(12, least=6), slots, interrupted=True)
    with pytest.raises(InputError, match=r"--workers 12: the cluster has places for 5 .*use --workers 4"):
        find_room(spec, Place(12), slots, interrupted=False)


def test_a_run_that_has_shrunk_grows_to_the_next_admissible_number(spec: StageSpec, slots: Any) -> None:
    place = Place(12, least=1)
    grown = []
    for slots.free in (0, 1, 2, 5, 20):
        grown.append(more_room(spec, place, 4))
    assert grown == [0, 0, 6, 6, 12]
    assert more_room(spec, place, 12) == 0


def test_a_range_needs_one_admissible_number(spec: StageSpec) -> None:
    check_range(spec, Place(5, least=4))
    with pytest.raises(InputError, match="12 lanes cannot feed 11 workers"):
        check_range(spec, Place(11, least=7))
    with pytest.raises(InputError, match="12 lanes cannot feed 5 workers"):
        check_range(spec, Place(5))


def test_the_range_is_read_from_the_flag() -> None:
    assert (_range("4"), _range("1:4")) == ((None, 4), (1, 4))
    for wrong in ("1:", ":4", "a", "1:2:3", "-1"):
        with pytest.raises(InputError, match="as in 1:4"):
            _range(wrong)
    with pytest.raises(InputError, match="--workers 5:4"):
        Place(4, least=5)


def test_workers_that_write_nothing_more_are_told_to_go_and_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overseer, "HEAR_SECONDS", 0.2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as controller:
        (tmp_path / CONTROLLER).write_text(json.dumps({"host": socket.gethostname(), "pid": controller.pid}))
        look = Overseer(tmp_path, tmp_path, hang_after=0.4, room=lambda: 0)
        with look:
            for step in range(4):  # slow, and alive
                time.sleep(0.2)
                (tmp_path / "metrics.jsonl").write_text("a line\n" * (step + 1))
                assert controller.poll() is None
            assert controller.wait(timeout=30) == -9
    assert stopping.told(tmp_path) == stopping.AT_ONCE
    assert isinstance(look.told, TimeoutError) and "nothing new from the workers" in str(look.told)


def test_workers_that_have_not_begun_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("of an earlier start\n")
    look = Overseer(tmp_path, tmp_path, hang_after=0.05, room=lambda: 0)
    with look:
        time.sleep(0.4)
    assert look.told is None


def test_room_that_stays_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overseer, "ROOM_SECONDS", 0.0)
    monkeypatch.setattr(overseer, "LOOK_SECONDS", 0.01)
    answers, asked = iter([6, 0, 6, 4]), threading.Event()

    def found() -> int:
        answer = next(answers, 4)
        if answer == 4:
            asked.set()
        assert stopping.told(tmp_path) is None, "asked once"
        return answer

    look = Overseer(tmp_path, tmp_path, hang_after=100, room=found)
    with look:
        (tmp_path / "metrics.jsonl").write_text("a line\n")
        assert asked.wait(20)
        for _ in range(2000):
            if look.told is not None:
                break
            time.sleep(0.01)
    assert isinstance(look.told, MoreRoom) and look.told.workers == 4
    assert stopping.told(tmp_path) not in (None, stopping.AT_ONCE)


def test_workers_are_asked_to_stop_when_the_head_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overseer, "ROOM_SECONDS", 0.0)
    monkeypatch.setattr(overseer, "LOOK_SECONDS", 0.01)
    answers, gone = iter([True, True]), threading.Event()

    def head() -> bool:
        if next(answers, False):
            return True
        gone.set()
        return False

    look = Overseer(tmp_path, tmp_path, hang_after=100, head=head)
    with look:
        (tmp_path / "metrics.jsonl").write_text("a line\n")
        assert gone.wait(20)
    assert look.told is overseer.HEAD_LOST
    assert stopping.told(tmp_path) not in (None, stopping.AT_ONCE)
