"""`fmri2img checkpoint inspect` and `migrate`: what is there is told, and old versions are written anew elsewhere."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from fmri2img.checkpoints_schema import (
    ExportedConfig,
    ExportedSpace,
    ExportedSubject,
    describe,
    find_latest,
    load_tensors,
    read_manifest,
    save_tensors,
    tensor_table,
    upgrade,
    verify,
    write_exported,
)
from fmri2img.checkpoints_schema.manifest import sealed
from fmri2img.checkpoints_schema.migrations import migrate
from fmri2img.cli import run
from fmri2img.errors import DamageError, InputError
from fmri2img.files import write_json

Commit = Callable[..., Path]


@pytest.fixture
def old_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Turn committed step folders into ones of a version 0, which readers migrate: subjects were called people."""

    def up(document: dict[str, Any]) -> dict[str, Any]:
        if document.get("schema_version") != 0:
            return migrate(document)
        rest = {name: value for name, value in document.items() if name != "people"}
        return migrate({**rest, "subjects": document["people"], "schema_version": 1})

    monkeypatch.setattr(sys.modules["fmri2img.checkpoints_schema.read"], "migrate", up)

    def make(folder: Path) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        document |= {"people": document.pop("subjects"), "schema_version": 0}
        write_json(folder / "manifest.json", sealed(document))

    return make


def test_the_table_of_tensors_is_that_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "weight": torch.ones(2, 3),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "one": torch.tensor(7, dtype=torch.int64),
        "none": torch.zeros(0, 4),
    }
    save_tensors(path, tensors, {"step": "3"})
    table = tensor_table(path)
    with safe_open(path, framework="pt") as file:
        assert set(table) == set(file.keys())
        for name, info in table.items():
            assert info.dtype == file.get_slice(name).get_dtype()
            assert list(info.shape) == file.get_slice(name).get_shape()
            assert info.bytes == tensors[name].numel() * tensors[name].element_size()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", (1 << 40).to_bytes(8, "little")]
)
def test_a_header_that_lies_is_named_and_allocates_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(DamageError, match=r"a\.safetensors is not a safetensors file"):
        tensor_table(tmp_path / "a.safetensors")


def test_inspect_tells_a_run_and_its_newest_checkpoint_as_json(
    committed: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    committed(10)
    path = committed(20, optional=True)
    assert run(["checkpoint", "inspect", str(path.parent.parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["what"] == "run"
    assert [entry["name"] for entry in told["checkpoints"]] == ["step-00000020", "step-00000010"]
    newest = told["newest"]
    assert (newest["what"], newest["step"], newest["kind"], newest["schema_version"]) == (
        "checkpoint",
        20,
        "decoder",
        1,
    )
    assert newest["subjects"]["subj02"] == {"voxels": 3, "dataset": "simulated", "fingerprint": "a" * 64}
    assert newest["feature_spaces"]["pixels"]["shape"] == [3, 2, 2]
    assert newest["metrics"] == {"loss": 0.5}
    assert newest["parent"]["path"] == "pretrain/step-00000001"
    weight = {"dtype": "F32", "shape": [2, 3], "bytes": 24}
    for name in ("model.safetensors", "ema.safetensors"):
        assert newest["tensors"][name]["heads.subj02.weight"] == weight


def test_inspect_tells_a_step_in_lines_for_people(
    committed: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", "inspect", str(committed(10))]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert told["feature_spaces"]["pixels"]["shape"] == "3 x 2 x 2"
    assert told["tensors"]["model.safetensors"]["backbone.bias"] == "F32 (2,) 8 bytes"


def test_inspect_tells_what_it_cannot_read_and_goes_on(committed: Commit) -> None:
    committed(10)
    path = committed(20)
    (path / "manifest.json").unlink()
    os.truncate(path.with_name("step-00000010") / "model.safetensors", 4)
    told = describe(path.parent)
    assert "has no manifest.json" in told["checkpoints"][0]["problem"]
    assert told["newest"]["step"] == 10
    assert "is not a safetensors file" in told["newest"]["tensors"]["model.safetensors"]["problem"]


def test_inspect_and_verify_know_an_exported_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ExportedConfig(
        kind="ridge",
        subjects={"subj01": ExportedSubject(voxels=3)},
        feature_spaces={"words": ExportedSpace(shape=(2,), directed=True)},
    )
    folder = write_exported(tmp_path / "out", config, {"maps.weight": torch.ones(2, 3)}, license="mit")
    assert describe(folder)["what"] == "hf-folder"
    assert describe(folder)["tensors"] == {
        "model.safetensors": {"maps.weight": {"dtype": "F32", "shape": [2, 3], "bytes": 24}}
    }
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert "RidgeDecoder.from_pretrained(" in body
    assert run(["checkpoint", "verify", str(folder)]) == 0
    os.truncate(folder / "model.safetensors", 20)
    capsys.readouterr()
    assert run(["checkpoint", "verify", str(folder)]) == 1
    shown = capsys.readouterr()
    assert "model.safetensors: has 20 bytes, config.json says" in shown.out
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize("action", ["inspect", "verify", "export"])
def test_a_path_without_a_checkpoint_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    out = [str(tmp_path / "out")] if action == "export" else []
    for path, why in ((tmp_path, "holds no checkpoint"), (tmp_path / "typo", "there is no folder")):
        assert run(["checkpoint", action, str(path), *out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line and "pass a run folder" in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "",
            "a command is missing; use one of inspect, verify, migrate, export, import; see fmri2img checkpoint --help",
        ),
        ("migrate x", "missing --out; see fmri2img checkpoint migrate --help"),
        (
            "export x y --to zip",
            "--to zip: use one of hf-folder, mindeye1, mindeye2; see fmri2img checkpoint export --help",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert run(["checkpoint", *line.split()]) == 2
    assert capsys.readouterr().err == f"fmri2img: error: {said}\n"


def test_a_run_of_an_old_version_is_written_anew_elsewhere_and_stays_as_it_was(
    committed: Commit,
    old_version: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = committed(10).parent.parent
    committed(20)
    for step in (source / "checkpoints").iterdir():
        old_version(step)
    (source / "metrics.jsonl").write_text('{"step": 1}\n')
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert find_latest(source) is not None  # readers take old versions as they are
    out = tmp_path / "new"
    assert run(["checkpoint", "migrate", str(source), "--out", str(out)]) == 0
    assert "holds step-00000010, step-00000020 in schema version 1" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert (out / "metrics.jsonl").read_text() == '{"step": 1}\n'
    for name in ("step-00000010", "step-00000020"):
        step = out / "checkpoints" / name
        assert verify(step) == []
        document = json.loads((step / "manifest.json").read_text())
        assert document["schema_version"] == 1 and "people" not in document
        assert read_manifest(step) == read_manifest(source / "checkpoints" / name).model_copy(
            update={"seal": document["seal"]}
        )
        assert torch.equal(load_tensors(step)["heads.subj03.weight"], torch.arange(4.0).reshape(2, 2))


def test_migrating_never_writes_over_anything_nor_into_what_it_reads(
    committed: Commit, old_version: Callable[[Path], None], tmp_path: Path
) -> None:
    step = committed(10)
    old_version(step)
    for out in (step.parent.parent, step, step / "new"):
        with pytest.raises(InputError, match=r"is there already|lies in"):
            upgrade(step, out)
    assert [path.name for path in upgrade(step, tmp_path / "new")] == ["step-00000010"]
    assert verify(step) == []


def test_a_damaged_checkpoint_is_not_migrated(
    committed: Commit, old_version: Callable[[Path], None], tmp_path: Path
) -> None:
    step = committed(10)
    old_version(step)
    (step / "config.json").unlink()
    with pytest.raises(DamageError, match=r"does not verify, so nothing was migrated.* config\.json: is in"):
        upgrade(step.parent, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_there_is_nothing_to_migrate_in_the_present_version(
    committed: Commit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert run(["checkpoint", "migrate", str(committed(10)), "--out", str(out)]) == 0
    assert "is of schema version 1, the newest: nothing to migrate" in capsys.readouterr().out
    assert not out.exists()
