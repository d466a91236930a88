"""What `fmri2img doctor` and the preflight find: facts of this node, and what facts of several nodes mean."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmri2img.errors import Fmri2imgError
from fmri2img.launch.doctor import preflight
from fmri2img.launch.doctor.collectives import SIZES, measure
from fmri2img.launch.doctor.facts import gather_facts
from fmri2img.launch.doctor.findings import Finding, failed, judge_cluster, judge_node

Say = Callable[..., Any]


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """Facts of a node that nothing is wrong with."""
    found = gather_facts({"run": str(tmp_path)}, measure=False)
    found |= {"shared_memory": 8e9, "open_files": 65536, "processes": -1, "own_address": "10.0.0.1"}
    found["memory"] = {"total": 64e9, "free": 32e9}
    found["folders"]["run"] |= {"free": 1e12, "writable": True}
    return found


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings if finding.state != "ok"}


def test_nothing_is_found_on_a_good_node(facts: dict[str, Any]) -> None:
    assert states(judge_node("n", facts)) == {}
    assert states(judge_cluster({"a": facts, "b": facts}, {"a": 0.0, "b": 0.1})) == {}


@pytest.mark.parametrize(
    ("key", "value", "check", "state"),
    [
        ("shared_memory", 64e6, "shared memory", "warn"),
        ("shared_memory", None, "shared memory", "warn"),
        ("open_files", 1024, "open files", "warn"),
        ("processes", 100, "processes", "fail"),
        ("memory", {"total": 64e9, "free": 1e8}, "memory", "warn"),
        ("mark", False, "shared folder", "fail"),
        (
            "folders",
            {"run": {"path": "/r", "exists": True, "writable": False, "free": 1e12}},
            "run folder",
            "fail",
        ),
        (
            "folders",
            {"run": {"path": "/r", "exists": True, "writable": True, "free": 1e8}},
            "run folder",
            "fail",
        ),
        (
            "folders",
            {"data": {"path": "/d", "exists": False, "writable": True, "free": 0}},
            "data folder",
            "fail",
        ),
    ],
)
def test_what_is_wrong_with_a_node_is_found_with_what_to_do(
    key: str, value: Any, check: str, state: str, facts: dict[str, Any]
) -> None:
    found = judge_node("n", facts | {key: value})
    assert states(found) == {check: state}
    assert all(finding.way_out for finding in found if finding.state != "ok")


def test_wandb_online_without_a_key_is_found(facts: dict[str, Any]) -> None:
    assert states(judge_node("n", facts | {"wandb_mode": "online", "wandb_key": False})) == {"wandb": "warn"}


def test_the_node_with_another_version_is_named(facts: dict[str, Any]) -> None:
    other = copy.deepcopy(facts)
    other["versions"]["torch"] = "1.0"
    (found,) = failed(judge_cluster({"a": facts, "b": other, "c": facts}, {}))
    assert found.check == "torch" and "1.0 on b" in found.value
    assert found.way_out == f"install torch {facts['versions']['torch']} on b"


def test_a_clock_that_is_off_and_a_name_that_means_loopback_are_found(facts: dict[str, Any]) -> None:
    found = judge_cluster({"a": facts, "b": facts | {"own_address": "127.0.1.1"}}, {"a": 0.0, "b": -30.0})
    assert {(f.node, f.check) for f in found if f.state != "ok"} == {("b", "clock"), ("b", "own name")}


def test_the_facts_of_this_machine_are_read(tmp_path: Path) -> None:
    found = gather_facts({"run": str(tmp_path / "to be made"), "data": str(tmp_path)}, measure=True)
    assert found["versions"]["torch"] != "none" and found["memory"]["total"] > found["memory"]["free"] > 0
    assert found["folders"]["run"]["writable"] and not found["folders"]["run"]["exists"]
    assert found["folders"]["run"]["write_speed"] > 0
    assert list(tmp_path.iterdir()) == []
    assert isinstance(found["gpus"], list)


def test_collectives_are_measured(tmp_path: Path) -> None:
    taken = measure(0, 1, "127.0.0.1", _port(), "gloo")
    assert taken.keys() == SIZES.keys() and 0 < taken["1 KB"] < taken["64 MB"] < 10


def _port() -> int:
    from fmri2img.launch.doctor.collectives import free_port

    return free_port()


def test_the_preflight_takes_a_moment_and_stops_at_what_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.process_time()
    preflight(address=None, data=tmp_path, out=tmp_path)
    assert time.process_time() - begun < 0.5
    with pytest.raises(
        Fmri2imgError, match=r"preflight: this node: data folder: .*missing.*--skip-preflight"
    ):
        preflight(address=None, data=tmp_path / "missing", out=tmp_path)


def test_the_command_says_what_it_found_and_fails_when_a_check_does(
    world: Any, said: Say, tmp_path: Path
) -> None:
    good = said("doctor", "--data", world.data, "--checkpoint", world.pretrained, "--json")
    found = json.loads(good.out)
    assert {"data set", "checkpoint", "shared memory", "devices"} <= {finding["check"] for finding in found}
    assert good.code == int(any(finding["state"] == "fail" for finding in found))
    bad = said("doctor", "--data", tmp_path / "none")
    assert bad.code == 1
    assert "data set (here)" in bad.line and "✗" in bad.out
