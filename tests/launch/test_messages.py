"""What a user does wrong with data, runs and folders: one line, the right exit code, nothing half-written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fmri2img.launch import pretraining, units
from fmri2img.simulation import Simulation, SimulationSpec

Words = list[object]
Say = Callable[..., Any]


@pytest.fixture
def never_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """These mistakes are found before a cluster is started."""

    def refuse(*_: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(pretraining, "cluster", refuse)


@pytest.fixture
def pretrain_words(world: Any, tmp_path: Path, flags: Words) -> Words:
    return ["pretrain", "--data", world.data, "--out", tmp_path / "out", "--hold-out", "subj01", *flags]


@pytest.fixture
def finetune_words(world: Any, tmp_path: Path, flags: Words) -> Words:
    return ["finetune", "--data", world.data, "--out", tmp_path / "out", "--subject", "subj01", *flags]


@pytest.fixture
def reconstruct_words(world: Any, tmp_path: Path) -> Words:
    return [
        *("reconstruct", "--from", world.finetuned, "--data", world.data),
        *("--out", tmp_path / "out", "--workers", 0),
    ]


@pytest.mark.parametrize(
    ("flags_of_it", "told"),
    [
        ("--workers 3", "4 lanes cannot feed 3 workers: the number of workers must divide it. Use one of [1, 2, 4]"),
        ("--workers 0", "--workers 0: a job needs at least 1"),
        ("--workers 3 --emulate-nodes 2", "every node gets as many workers, so use a multiple of 2"),
        ("--emulate-nodes -2 --workers 2", "--emulate-nodes -2: start at least 1 node"),
        ("--emulate-nodes 2 --cluster auto", "give one of them"),
        ("--set pretraining.global_batch=12", "it must be a multiple of 8. Use 8 or 16"),
        ("--set spaces.pixels-16.extractor.size=8", "give the space another name in the recipe"),
        ("--subjects subj09", "has no subj09: its subjects are subj01, subj02, subj03"),
        ("--hold-out subj09", "has no subj09"),
        ("--hold-out subj01 subj02 subj03", "leaves no subject to train on"),
        ("--subjects subj02 subj02", "--subjects names subj02 more than once"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("never_a_cluster")
def test_pretraining_that_cannot_work_is_refused_before_it_starts(
    said: Say, pretrain_words: Words, tmp_path: Path, flags_of_it: str, told: str
) -> None:
    result = said(*pretrain_words, *flags_of_it.split())
    assert (result.code, told in result.line) == (2, True), result
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags_of_it", "told"),
    [
        ("--baseline scratch --sessions 0", "--sessions 0: subj01 has sessions 1 to 2"),
        ("--baseline ridge --sessions 3", "--sessions 3: subj01 has sessions 1 to 2"),
        ("--baseline ridge --subject subj09", "has no subj09: its subjects are"),
        ("--from /nowhere", "there is no folder /nowhere: pass a run folder"),
    ],
)
def test_finetuning_that_cannot_work_is_refused(
    said: Say, finetune_words: Words, tmp_path: Path, flags_of_it: str, told: str
) -> None:
    result = said(*finetune_words, *flags_of_it.split())
    assert (result.code, told in result.line) == (2, True), result
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags_of_it", "told"),
    [
        ("--subjects subj02", "has no head for subj02: it has subj01 (40 voxels)"),
        ("--subjects subj09", "not subj09: pass --subjects"),
        ("--subjects subj01 subj01", "--subjects names subj01 more than once"),
        ("--split val", "'val' is not a split"),
        ("--batch 0", "--batch 0: it must be greater than or equal to 1"),
        ("--samples 0", "--samples 0: it must be"),
        ("--workers 1 --cluster 127.0.0.1:1", "no Ray cluster answers there"),
        ("--workers 3 --emulate-nodes 2", "use a multiple of 2"),
    ],
)
def test_a_reconstruction_that_cannot_work_is_refused(
    said: Say, reconstruct_words: Words, flags_of_it: str, told: str
) -> None:
    result = said(*reconstruct_words, *flags_of_it.split())
    assert (result.code, told in result.line) == (2, True), result


COMMANDS = {
    "features": ["features", "DATA"],
    "verify": ["data", "verify", "DATA"],
    "info": ["data", "info", "DATA"],
    "pretrain": ["pretrain", "--data", "DATA", "--out", "OUT"],
    "finetune": ["finetune", "--data", "DATA", "--out", "OUT", "--subject", "subj01", "--baseline", "ridge"],
    "reconstruct": ["reconstruct", "--from", "RUN", "--data", "DATA", "--out", "OUT", "--workers", "0"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_data_set_is_told_from_one_that_is_not_there(
    said: Say, world: Any, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path / "no": "is not a folder",
        tmp_path / "file": "is not a folder",
        world.pretrained: "holds no dataset.json",
    }
    for path, told in cases.items():
        places = {"DATA": path, "OUT": tmp_path / "out", "RUN": world.finetuned}
        result = said(*[places.get(word, word) for word in COMMANDS[command]])
        assert (result.code, told in result.line, str(path) in result.line) == (2, True, True), result
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune", "reconstruct"])
@pytest.mark.usefixtures("never_a_cluster")
def test_a_job_writes_into_no_file_data_set_or_folder_of_something_else(
    said: Say, world: Any, tmp_path: Path, command: str, flags: Words
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    cases = {
        tmp_path / "file": "is a file",
        tmp_path / "file" / "x": "is a file",
        world.data: "is a data set",
        tmp_path / "other": "is not empty and holds no",
    }
    for path, told in cases.items():
        places = {"DATA": world.data, "OUT": path, "RUN": world.finetuned}
        more = [] if command == "reconstruct" else flags
        result = said(*[places.get(word, word) for word in COMMANDS[command]], *more)
        assert (result.code, told in result.line) == (2, True), result
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_a_folder_without_permission_is_refused_before_work(
    said: Say, finetune_words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmri2img.launch.folders.os.access", lambda *_: False)
    result = said(*finetune_words, "--baseline", "ridge")
    assert (result.code, "cannot be written to" in result.line) == (2, True)


def test_a_run_goes_on_only_as_it_began(said: Say, world: Any, tmp_path: Path, flags: Words) -> None:
    out = tmp_path / "out"
    shutil.copytree(world.finetuned, out)
    words = ["finetune", "--data", world.data, "--out", out, "--subject", "subj01", *flags]
    again = said(*words, "--from", world.pretrained, "--sessions", 1)
    assert again.code == 0 and again.err == ""
    for change, told in {
        ("--from", world.pretrained, "--sessions", 2): "sessions was [1], is [1, 2]",
        ("--from", world.pretrained, "--sessions", 1, "--set", "finetuning.steps=5"): "steps was 4, is 5",
        ("--baseline", "ridge", "--sessions", 1): "holds a run that made a decoder, not a ridge",
    }.items():
        result = said(*words, *change)
        assert (result.code, told in result.line) == (2, True), result


def test_a_ridge_baseline_is_not_finetuned(said: Say, finetune_words: Words, tmp_path: Path) -> None:
    assert said(*finetune_words, "--baseline", "ridge").code == 0
    result = said(*finetune_words, "--from", tmp_path / "out", "--out", tmp_path / "second")
    assert (result.code, "is a ridge decoder" in result.line) == (2, True)
    result = said(*finetune_words, "--baseline", "scratch")
    assert (result.code, "holds a run that made a ridge" in result.line) == (2, True)


def test_a_data_set_of_other_voxel_counts_is_refused(
    said: Say, reconstruct_words: Words, tmp_path: Path
) -> None:
    from fmri2img.datasets import build_dataset

    spec = SimulationSpec(subjects={"subj01": 41}, sessions=2, trials_per_session=60, test_pictures=10)
    build_dataset(Simulation(spec), tmp_path / "other")
    result = said(*reconstruct_words, "--data", tmp_path / "other")
    assert result.code == 2
    assert "was trained on subj01 (40 voxels), the data hold subj01 (41 voxels)" in result.line


def test_a_truncated_shard_is_damage_that_names_the_file(
    said: Say, data: Path, tmp_path: Path, flags: Words
) -> None:
    file = next((data / "subj01").glob("train-*.responses.tar"))
    os.truncate(file, file.stat().st_size // 2)
    result = said("data", "verify", data)
    assert result.code == 1
    assert "listed above" in result.line and file.name in result.out
    words = ["finetune", "--data", data, "--out", tmp_path / "out", "--subject", "subj01", *flags]
    for start in ("scratch", "ridge"):
        result = said(*words, "--baseline", start)
        assert result.code == 1
        assert str(file) in result.line and "fmri2img data verify" in result.line
        assert not (tmp_path / "out" / "checkpoints").exists()


def test_features_of_a_truncated_shard_name_the_file_and_leave_the_data_set_as_it_was(
    said: Say, data: Path
) -> None:
    file = next((data / "subj02").glob("train-*.stimuli.tar"))
    os.truncate(file, 1000)
    before = (data / "dataset.json").read_bytes()
    more = "spaces.pixels-8={extractor: {kind: pixels, size: 8, channels: 3}}"
    result = said("features", data, "--set", more)
    assert (result.code, str(file) in result.line) == (1, True), result
    assert (data / "dataset.json").read_bytes() == before


def test_a_damaged_checkpoint_is_damage(said: Say, world: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.finetuned, run)
    for model in run.glob("checkpoints/*/model.safetensors"):
        os.truncate(model, 100)
    words = ["reconstruct", "--from", run, "--data", world.data, "--out", tmp_path / "out", "--workers", 0]
    result = said(*words)
    assert (result.code, "model.safetensors" in result.line) == (1, True), result
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "name"), [(units, "save"), (units, "write_json")])
def test_a_full_disk_leaves_no_half_unit_and_the_same_command_goes_on(
    said: Say,
    reconstruct_words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/full")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        result = said(*reconstruct_words)
    assert (result.code, "No space left on device" in result.line) == (75, True)
    assert list((tmp_path / "out" / "units").iterdir()) == []
    assert said(*reconstruct_words).code == 0


def test_judging_asks_for_what_it_needs(
    said: Say, reconstruct_words: Words, world: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert said(*reconstruct_words).code == 0
    cases = {
        ("report", out): "run `fmri2img evaluate` first",
        ("report", tmp_path / "no"): "there is no folder",
        ("evaluate", world.finetuned): "does not say which data it was made from: pass --data",
        ("evaluate", out, "--pool", 1): "--pool 1: it must be greater than or equal to 2",
        ("evaluate", out, "--data", world.pretrained): "holds no dataset.json",
    }
    for words, told in cases.items():
        result = said(*words)
        assert (result.code, told in result.line) == (2, True), (words, result)
    assert said("evaluate", out).code == 0
    result = said("report", out, "--out", tmp_path)
    assert (result.code, "is a folder" in result.line) == (2, True)
    assert said("report", out).code == 0 and (tmp_path / "report.html").stat().st_size > 1000
    (out / "source.json").write_text("{")
    result = said("evaluate", out)
    assert (result.code, "source.json is damaged: pass --data" in result.line) == (1, True)
    (out / "source.json").write_text(json.dumps({"data": str(tmp_path / "gone"), "checkpoint": "x"}))
    result = said("evaluate", out)
    assert (result.code, "which is not there any more: pass --data" in result.line) == (2, True)


def test_evaluation_on_other_data_is_refused(said: Say, reconstruct_words: Words, tmp_path: Path) -> None:
    from fmri2img.datasets import build_dataset

    assert said(*reconstruct_words).code == 0
    spec = SimulationSpec(
        seed=9, subjects={"subj01": 40}, sessions=2, trials_per_session=60, test_pictures=10
    )
    build_dataset(Simulation(spec), tmp_path / "other")
    result = said("evaluate", tmp_path / "out", "--data", tmp_path / "other")
    assert (result.code, "was made from other data" in result.line) == (2, True)


def test_a_demo_of_another_seed_is_refused_in_the_same_folder(said: Say, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"seed": 0, "size": "small", "version": "0"}))
    result = said("demo", "--out", tmp_path, "--seed", 1, "--size", "small")
    assert (result.code, "give another --out or remove it" in result.line) == (2, True)
