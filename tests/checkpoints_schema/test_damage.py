"""Every file of a checkpoint damaged in every way: found, named, and the checkpoint before it taken instead."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmri2img.checkpoints_schema import check, find_latest, load_tensors, read_manifest, resolve, verify
from fmri2img.cli import run
from fmri2img.errors import DamageError, InputError

Commit = Callable[..., Path]
FILES = [
    "manifest.json",
    "README.md",
    "config.json",
    "ema.safetensors",
    "model.safetensors",
    "state/rank-0.safetensors",
    "state/rank-1.safetensors",
    "trials.safetensors",
]
DAMAGES = ["truncated", "emptied", "flipped", "removed", "swapped"]


def damage(path: Path, how: str, other: Path) -> None:
    """Damage a file; `other` is the file of that name of another run."""
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif how == "removed":
        path.unlink()
    else:
        assert other.read_bytes() != content
        shutil.copyfile(other, path)


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runs(commit_into: Commit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two checkpoints, and another run whose files all differ from the second's."""
    folder = tmp_path_factory.mktemp("runs")
    commit_into(folder / "run", 10, optional=True)
    commit_into(folder / "run", 20, optional=True)
    commit_into(folder / "other", 20, 3.0, optional=True)
    return folder


@pytest.fixture(params=DAMAGES)
def damaged(runs: Path, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run of two checkpoints, the newest of which is damaged in one file."""
    newest = Path(shutil.copytree(runs / "run", tmp_path / "run")) / "checkpoints" / "step-00000020"
    damage(newest / name, request.param, runs / "other" / "checkpoints" / "step-00000020" / name)
    return newest


def test_the_matrix_has_every_file_there_is(committed: Commit) -> None:
    assert sorted(["manifest.json", *read_manifest(committed(optional=True)).files]) == sorted(FILES)


def test_the_damage_is_named_and_the_checkpoint_before_is_taken(damaged: Path, name: str) -> None:
    problems = verify(damaged)
    told = " ".join(map(str, problems))
    if name != "manifest.json":
        assert [problem.file for problem in problems] == [name]
    else:  # a manifest of another run describes none of these files
        assert "manifest.json" in told or {problem.file for problem in problems} >= {"model.safetensors"}
    run_folder = damaged.parent.parent
    for found in (find_latest(run_folder), resolve(run_folder)):
        assert found is not None
        assert found.path.name == "step-00000010"
        assert [path for path, _ in found.passed_over] == [damaged]
        assert all(str(problem) in found.passed_over[0][1] for problem in problems)
    with pytest.raises(DamageError, match="does not verify"):
        resolve(damaged)
    if name.endswith(".safetensors"):
        with pytest.raises(DamageError, match=name):
            load_tensors(damaged, name)


def test_the_command_line_tells_all_of_it_and_fails(
    damaged: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", "verify", str(damaged.parent.parent)]) == 1
    shown = capsys.readouterr()
    assert f"{damaged.name}: a reader passes it over" in shown.out
    assert "step-00000010: a reader takes it" in shown.out
    assert name in shown.out or (name == "manifest.json" and "model.safetensors: has" in shown.out)
    assert len(shown.err.splitlines()) == 1
    assert "has 1 damaged of 2 checkpoints (step-00000020), a reader takes step-00000010" in shown.err
    assert run(["checkpoint", "inspect", str(damaged.parent)]) == 0
    assert "step-00000010" in capsys.readouterr().out
    assert run(["checkpoint", "inspect", str(damaged)]) in (0, 1, 2)
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_whole_checkpoint_of_another_run_that_was_put_in_its_place_is_whole(committed: Commit) -> None:
    mine, other = committed(20), committed(20, 3.0, run="other")
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    assert verify(mine) == []  # resume tells it from its own by configuration and parent: tests/trainer


def test_a_checkpoint_under_the_name_of_another_step_is_found(committed: Commit) -> None:
    path = committed(10)
    moved = path.rename(path.with_name("step-00000030"))
    assert "says step 10, the folder's name says 30" in str(verify(moved)[0])


def test_nothing_is_left_when_all_are_damaged_and_that_is_said(
    committed: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (10, 20):
        (committed(step) / "config.json").unlink()
    folder = committed(30).parent
    shutil.rmtree(folder / "step-00000030")
    assert [one.usable for one in check(folder)] == [False, False]
    assert run(["checkpoint", "verify", str(folder)]) == 1
    assert (
        "2 damaged of 2 checkpoints (step-00000020, step-00000010), none is left" in capsys.readouterr().err
    )


def test_a_stray_file_and_litter_are_told_and_are_no_damage(
    committed: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    path = committed(10)
    (path / "notes.txt").write_text("mine")
    (path.parent / ".step-00000020.tmp-abc").mkdir()
    assert run(["checkpoint", "verify", str(path.parent)]) == 0
    shown = capsys.readouterr().out
    assert "step-00000010: a reader takes it" in shown
    assert "notes.txt: is not in the manifest" in shown
    assert ".step-00000020.tmp-abc: left half written" in shown


def test_a_stray_file_does_not_let_other_contents_replace_a_committed_step(committed: Commit) -> None:
    path = committed(10)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="committed already with other contents"):
        committed(10, 3.0)
    assert committed(10) == path
    assert (path / "notes.txt").read_text() == "mine"
    assert torch.equal(load_tensors(path)["heads.subj03.weight"], torch.arange(4.0).reshape(2, 2))
