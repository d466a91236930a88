"""A checkpoint is whole or not there, and what is committed stays."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmri2img.checkpoints_schema import (
    CheckpointManifest,
    clean_stale,
    commit,
    discard,
    file_records,
    find_latest,
    load_tensors,
    new_token,
    resolve,
    save_tensors,
    stage,
    step_path,
    verify,
)
from fmri2img.errors import DamageError, InputError

Commit = Callable[..., Path]
Staged = Callable[..., tuple[Path, CheckpointManifest]]


def final_of(staging: Path, manifest: CheckpointManifest) -> Path:
    return step_path(staging.parent, manifest.step)


def test_a_committed_checkpoint_verifies_and_gives_its_tensors_back(committed: Commit) -> None:
    path = committed(10)
    assert path.name == "step-00000010"
    assert verify(path) == []
    tensors = load_tensors(path)
    assert torch.equal(tensors["heads.subj02.weight"], torch.arange(6.0).reshape(2, 3))
    assert sorted(tensors) == ["backbone.bias", "heads.subj02.weight", "heads.subj03.weight"]


def test_every_rank_stages_into_the_same_folder(tmp_path: Path) -> None:
    token = new_token()
    assert stage(tmp_path, 5, token) == stage(tmp_path, 5, token)
    assert stage(tmp_path, 5, token) != stage(tmp_path, 5, new_token())


@pytest.mark.parametrize("token", ["", "a/b", "..", "x" * 65])
def test_a_token_cannot_leave_the_folder(tmp_path: Path, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        stage(tmp_path, 5, token)


@pytest.mark.parametrize("moment", ["write_json", "fsync_folder", "rename"])
def test_a_failure_before_the_rename_leaves_nothing_a_reader_takes(
    committed: Commit, staged: Staged, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = committed(10)
    staging, manifest = staged(20)

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    module = sys.modules["fmri2img.checkpoints_schema.commit"]
    if moment == "rename":
        monkeypatch.setattr(os, "rename", fail)
    else:
        monkeypatch.setattr(module, moment, fail)
    with pytest.raises(OSError, match="no space left"):
        commit(staging, final_of(staging, manifest), manifest)
    found = find_latest(older.parent.parent)
    assert found is not None
    assert found.path == older
    assert found.passed_over == ()


def _die_in_commit(staging: Path, final: Path, manifest: CheckpointManifest) -> None:
    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.rename = die  # type: ignore[assignment]
    commit(staging, final, manifest)


def test_a_rank_killed_in_the_commit_leaves_the_older_checkpoint_and_litter_that_is_cleaned(
    committed: Commit, staged: Staged
) -> None:
    older = committed(10)
    staging, manifest = staged(20)
    arguments = (staging, final_of(staging, manifest), manifest)
    process = multiprocessing.get_context("fork").Process(target=_die_in_commit, args=arguments)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert staging.exists()
    assert resolve(older.parent.parent).path == older
    assert clean_stale(older.parent) == [staging]
    assert [path.name for path in older.parent.iterdir()] == ["step-00000010"]


def test_cleaning_touches_nothing_but_our_own_temporary_folders(committed: Commit) -> None:
    folder = committed(10).parent
    for name in (".step-00000020.tmp-abc.txt", "notes", ".git", "step-00000030.tmp-abc"):
        (folder / name).mkdir()
    (folder / ".step-00000040.tmp-afile").write_text("a file, not a folder")
    stale = stage(folder, 50, "abc")
    assert clean_stale(folder) == [stale]
    assert len(list(folder.iterdir())) == 6
    assert clean_stale(folder / "not there") == []


def test_only_staging_folders_are_discarded(committed: Commit, staged: Staged) -> None:
    path = committed(10)
    with pytest.raises(ValueError, match="not a staging folder"):
        discard(path)
    staging, _ = staged(20)
    discard(staging)
    assert not staging.exists()
    assert path.exists()


def test_a_replay_of_the_same_bytes_keeps_the_first_commit(committed: Commit, staged: Staged) -> None:
    path = committed(10)
    before = (path / "manifest.json").stat().st_ino
    staging, manifest = staged(10)
    (staging / "README.md").write_text("a card of another day")
    manifest = manifest.model_copy(update={"files": manifest.files | file_records(staging, ["README.md"])})
    assert commit(staging, path, manifest) == path
    assert (path / "manifest.json").stat().st_ino == before
    assert not staging.exists()


def test_other_contents_never_replace_a_committed_step(committed: Commit) -> None:
    path = committed(10)
    with pytest.raises(InputError, match="committed already with other contents") as error:
        committed(10, scale=2.0)
    assert str(path) in str(error.value)
    assert torch.equal(load_tensors(path)["heads.subj03.weight"], torch.arange(4.0).reshape(2, 2))


def test_a_damaged_step_is_replaced(committed: Commit) -> None:
    path = committed(10)
    (path / "model.safetensors").write_bytes(b"")
    assert committed(10, scale=2.0) == path
    assert verify(path) == []
    assert torch.equal(load_tensors(path)["heads.subj03.weight"], 2 * torch.arange(4.0).reshape(2, 2))
    assert [folder.name for folder in path.parent.iterdir()] == ["step-00000010"]


def test_a_file_of_a_rank_on_another_disk_is_missed_before_the_commit(staged: Staged) -> None:
    staging, manifest = staged(10)
    (staging / "state/rank-1.safetensors").unlink()
    with pytest.raises(DamageError, match=r"rank-1.safetensors .* one shared folder"):
        commit(staging, final_of(staging, manifest), manifest)
    assert find_latest(staging.parent) is None


def test_a_file_without_a_record_or_of_another_size_is_refused(staged: Staged) -> None:
    staging, manifest = staged(10)
    (staging / "extra.bin").write_bytes(b"x")
    with pytest.raises(DamageError, match=r"extra.bin is in no rank's records"):
        commit(staging, final_of(staging, manifest), manifest)
    (staging / "extra.bin").unlink()
    with open(staging / "config.json", "a") as file:
        file.write(" ")
    with pytest.raises(DamageError, match=r"config.json has 13 bytes, its record says 12"):
        commit(staging, final_of(staging, manifest), manifest)


def test_the_folder_and_the_manifest_agree_on_the_step(staged: Staged) -> None:
    staging, manifest = staged(10)
    with pytest.raises(ValueError, match="cannot hold step 10"):
        commit(staging, step_path(staging.parent, 11), manifest)
    with pytest.raises(ValueError, match="must come from stage"):
        commit(staging, step_path(staging.parent / "elsewhere", 10), manifest)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {key: key for key in "abcdefgh"}
    contents = set()
    for attempt in range(4):
        path = tmp_path / f"{attempt}.safetensors"
        names = ["x", "y"] if attempt % 2 else ["y", "x"]
        save_tensors(path, {name: torch.ones(3) for name in names}, metadata)
        contents.add(path.read_bytes())
    assert len(contents) == 1
