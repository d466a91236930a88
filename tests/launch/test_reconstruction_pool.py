"""Units over workers: what fails is tried elsewhere, who dies is replaced, and one bad unit takes none down with it."""

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from fmri2img.errors import DamageError, Fmri2imgError, InputError, StoppedError
from fmri2img.launch.cluster import WORKER, Place
from fmri2img.launch.slots import actor_options, check_room, worker_resources
from fmri2img.launch.workers import DEATHS, HOPELESS, TRIES, Pool

ERRORS = {"break": RuntimeError, "damage": DamageError, "refuse": InputError, "fill": StoppedError}


@dataclass
class Stage:
    """Ray's part in one process: calls wait until somebody asks for one, and end in the order that is drawn."""

    script: dict[Any, str]
    calls: list[tuple[int, Any]] = field(default_factory=list)  # who was given what, in order
    actors: int = 0
    draws: random.Random = field(default_factory=lambda: random.Random(3))

    def start(self) -> Any:
        """An actor with the methods `load` and `make`."""
        self.actors += 1
        actor = SimpleNamespace(number=self.actors, dead=False)
        actor.load = SimpleNamespace(remote=lambda: Call(actor, "load"))
        actor.make = SimpleNamespace(remote=lambda number: Call(actor, number))
        return actor

    def wait(
        self, calls: list["Call"], num_returns: int, timeout: float
    ) -> tuple[list["Call"], list["Call"]]:
        """One of the calls, after what it does is done."""
        call = self.draws.choice(calls)
        if not call.actor.dead:
            before = sum(what == call.what for _, what in self.calls)
            self.calls.append((call.actor.number, call.what))
            do, _, times = self.script.get(call.what, "").partition(" ")
            if do and before < int(times or 10**6):
                call.does, call.actor.dead = do, do == "die"
        return [call], [other for other in calls if other is not call]

    def get(self, call: "Call") -> Any:
        """What the call gave, or what Ray raises for it."""
        if call.actor.dead:
            raise ray.exceptions.ActorDiedError()
        if call.does:
            error = ERRORS[call.does](f"told to {call.does}")
            raise ray.exceptions.RayTaskError("make", "a traceback", error).as_instanceof_cause()
        return {"weights": {}} if call.what == "load" else call.what

    def given(self, what: object) -> list[int]:
        """The workers that were given a unit, in order."""
        return [number for number, given in self.calls if given == what]


@dataclass(eq=False)
class Call:
    actor: Any
    what: Any
    does: str = ""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`make(count, {unit: "die" | "break 1" ...})`: what failed, what two workers made, the stage."""

    def make_them(count: int, script: dict[Any, str]) -> tuple[dict[int, Exception], list[int], Stage]:
        stage, made = Stage(script), list[int]()
        monkeypatch.setattr(ray, "wait", stage.wait)
        monkeypatch.setattr(ray, "get", stage.get)
        monkeypatch.setattr(ray, "kill", lambda actor: setattr(actor, "dead", True))
        pool = Pool(stage.start, 2, in_hand=3, told=made.append, loaded=lambda told: None)
        return pool.run(range(count)), sorted(made), stage

    return make_them


def test_sigterm_ends_a_job_whose_units_take_long(monkeypatch: pytest.MonkeyPatch, handler: None) -> None:
    stage = Stage({})

    def never(calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        os.kill(os.getpid(), signal.SIGTERM)  # must not raise here: Ray would make another error of it
        return [], calls

    monkeypatch.setattr(ray, "wait", never)
    monkeypatch.setattr(ray, "kill", lambda actor: setattr(actor, "dead", True))
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        Pool(stage.start, 2, in_hand=3, told=print, loaded=print).run(range(4))


def test_a_unit_that_fails_is_made_by_another_worker(make: Any) -> None:
    failed, made, stage = make(8, {3: "break 1", 5: "damage 1"})
    assert (failed, made) == ({}, list(range(8)))
    for number in (3, 5):
        first, second = stage.given(number)
        assert first != second
    assert all(len(stage.given(number)) == 1 for number in (0, 1, 2, 4, 6, 7))


def test_a_worker_at_which_something_broke_gets_nothing_more(make: Any) -> None:
    """It may be its GPU. What only found damaged data goes on."""
    _, _, stage = make(30, {3: "break 1", 9: "damage 1"})
    broken, damaged = stage.given(3)[0], stage.given(9)[0]
    after = stage.calls.index((broken, 3)) + 1
    assert sum(who == broken for who, _ in stage.calls[after:]) <= 2  # what it had in hand
    assert stage.actors == 3
    assert sum(who == damaged for who, _ in stage.calls[stage.calls.index((damaged, 9)) :]) > 3


def test_a_unit_that_fails_everywhere_is_told_and_the_others_are_made(make: Any) -> None:
    failed, made, stage = make(8, {3: "damage", 4: "break"})
    assert made == [0, 1, 2, 5, 6, 7]
    assert {number: (type(error), str(error)) for number, error in failed.items()} == {
        3: (DamageError, "told to damage"),
        4: (RuntimeError, "told to break"),
    }
    assert len(stage.given(3)) == len(stage.given(4)) == TRIES


def test_a_unit_that_kills_its_workers_takes_no_other_down(make: Any) -> None:
    failed, made, stage = make(8, {2: "die", 5: "die"})
    assert made == [0, 1, 3, 4, 6, 7]
    assert sorted(failed) == [2, 5]
    for number in (2, 5):
        assert f"{DEATHS} workers died making it" in str(failed[number])
        assert len(set(stage.given(number))) in (DEATHS, DEATHS + 1)  # once perhaps with others in hand


def test_workers_that_die_now_and_then_are_replaced(make: Any) -> None:
    failed, made, stage = make(30, dict.fromkeys((1, 6, 13, 20), "die 1"))
    assert (failed, made) == ({}, list(range(30)))
    assert stage.actors == 6


def test_a_worker_that_dies_while_loading_is_replaced_a_few_times(make: Any) -> None:
    assert make(4, {"load": "die 2"})[:2] == ({}, [0, 1, 2, 3])
    with pytest.raises(Fmri2imgError, match="the workers cannot load their models"):
        make(4, {"load": "die"})


def test_what_a_worker_refuses_to_load_ends_the_job_in_its_own_words(make: Any) -> None:
    with pytest.raises(InputError, match=r"^told to refuse$"):
        make(4, {"load": "refuse"})


def test_a_full_disk_ends_the_job_in_its_own_words(make: Any) -> None:
    with pytest.raises(StoppedError, match=r"^told to fill$"):
        make(4, {1: "fill"})


def test_when_all_units_fail_the_job_ends_early(make: Any) -> None:
    with pytest.raises(Fmri2imgError, match=f"the first {HOPELESS} units all failed.*told to damage"):
        make(100, dict.fromkeys(range(100), "damage"))


def test_more_workers_than_the_cluster_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"CPU": 8.0, "fmri2img_worker": 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    check_room(Place(2), "cpu")
    with pytest.raises(InputError, match="--workers 3: the cluster has 2 of fmri2img_worker, each takes 1"):
        check_room(Place(3), "cpu")
    with pytest.raises(InputError, match="the cluster has 0 of GPU"):
        check_room(Place(2), "cuda")
    del has["fmri2img_worker"]  # a cluster that somebody else started
    check_room(Place(8), "cpu")
    with pytest.raises(InputError, match="--workers 9: the cluster has 8 of CPU"):
        check_room(Place(9), "cpu")


def test_a_worker_asks_for_our_resource_only_where_the_cluster_offers_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features, reconstruction and training alike: on a cluster without it Ray would wait for ever."""
    has = {"CPU": 8.0, "GPU": 2.0, WORKER: 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    ours = actor_options("cuda", in_hand=3)
    assert (ours["num_cpus"], ours["num_gpus"], ours["resources"]) == (1, 1, {WORKER: 1})
    assert ours["max_concurrency"] == 3
    assert actor_options("cpu", in_hand=1)["num_gpus"] == 0
    assert worker_resources() == {"CPU": 1, "GPU": 1, WORKER: 1}
    del has[WORKER]
    assert actor_options("cuda", in_hand=3)["resources"] == {}
    assert worker_resources() == {"CPU": 1, "GPU": 1}
