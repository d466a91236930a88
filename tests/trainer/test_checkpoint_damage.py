"""A run whose newest checkpoint is damaged goes on from the one before; one of other data or runs is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmri2img import checkpoints_schema as schema
from fmri2img.checkpoints_schema.manifest import sealed
from fmri2img.cli import run
from fmri2img.errors import InputError
from fmri2img.files import write_json
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.stages import StageSpec, finetune
from fmri2img.trainer.state import find_resumable

FILES = [
    "manifest.json",
    "config.json",
    "README.md",
    "ema.safetensors",
    "model.safetensors",
    "state/best.safetensors",
    "state/optimiser.safetensors",
    "state/position.json",
]
SETTINGS = {"ema": 0.5, "select": "best", "keep": 9}
_made: dict[str, Path] = {}

Spec = Callable[..., StageSpec]


@pytest.fixture
def runs(spec: Spec, faults: Any, killed: type[BaseException], tmp_path_factory: Any) -> Path:
    """`broken`, killed at step 7 with checkpoints of steps 2, 4 and 6, and `other`, the same with another seed."""
    if "runs" not in _made:
        folder = tmp_path_factory.mktemp("runs")
        for name, seed in (("broken", 0), ("other", 1)):
            told = replace(spec(name, seed=seed, **SETTINGS), run=str(folder / name))
            with pytest.raises(killed):
                finetune(told, listener=faults.kill_at(7))
        _made["runs"] = folder
    return _made["runs"]


def newest(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / "step-00000006"


@pytest.fixture
def broken(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(runs / "broken", tmp_path / "broken"))


def damage(path: Path, how: str, other: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "truncated":
        path.write_bytes(content[:middle])
    elif how == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif how == "removed":
        path.unlink()
    else:
        assert other.read_bytes() != content
        shutil.copyfile(other, path)


def test_the_matrix_has_every_file_of_a_run(runs: Path) -> None:
    found = schema.resolve(runs / "broken")
    assert found.path == newest(runs / "broken")
    assert sorted([*found.manifest.files, "manifest.json"]) == sorted(FILES)


@pytest.mark.parametrize("how", ["truncated", "flipped", "removed", "swapped"])
@pytest.mark.parametrize("name", FILES)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    runs: Path, broken: Path, spec: Spec, name: str, how: str
) -> None:
    damage(newest(broken) / name, how, newest(runs / "other") / name)
    config = spec("broken", seed=0, **SETTINGS).config()
    resumed = find_resumable(broken, config)
    assert resumed is not None
    assert resumed.step == 4
    ((path, why),) = resumed.passed_over
    assert path == newest(broken)
    assert name in why or (name, how) == ("manifest.json", "swapped")


@pytest.mark.parametrize(("name", "how"), [("manifest.json", "removed"), ("ema.safetensors", "swapped")])
def test_the_end_of_a_run_that_went_on_so_is_the_same_to_the_bit(
    runs: Path, broken: Path, spec: Spec, name: str, how: str
) -> None:
    whole = finetune(spec("whole", seed=0, **SETTINGS))
    damage(newest(broken) / name, how, newest(runs / "other") / name)
    end = finetune(spec("broken", seed=0, **SETTINGS))
    for file in ("model.safetensors", "ema.safetensors", "state/optimiser.safetensors"):
        assert (end / file).read_bytes() == (whole / file).read_bytes(), file
    assert schema.find_latest(broken).passed_over == ()  # type: ignore[union-attr]
    assert not schema.verify(newest(broken)), "the damaged step was written anew"


def test_a_whole_checkpoint_of_another_run_is_refused_with_what_differs(
    runs: Path, broken: Path, spec: Spec
) -> None:
    shutil.rmtree(newest(broken))
    shutil.copytree(newest(runs / "other"), newest(broken))
    with pytest.raises(InputError, match=r"finetuning\.seed was 1, is 0\): give the same one to resume it"):
        finetune(spec("broken", seed=0, **SETTINGS))


def test_a_run_on_other_data_is_refused_with_what_to_pass(broken: Path, spec: Spec) -> None:
    config = spec("broken", seed=0, **SETTINGS).config() | {"fingerprint": "f" * 64}
    with pytest.raises(
        InputError, match=r"\(fingerprint was .*, is 'f+'\): give the same one .* or another --out"
    ):
        find_resumable(broken, config)


def test_export_takes_the_checkpoint_before_a_damaged_one_and_says_so(
    runs: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(newest(broken) / "model.safetensors", "flipped", newest(broken))
    out = tmp_path / "out"
    assert run(["checkpoint", "export", str(broken), "--to", "hf-folder", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "step-00000006 is passed over: model.safetensors: has SHA-256" in shown
    exported = MultiSubjectDecoder.from_pretrained(out)
    stored = schema.load_tensors(broken / "checkpoints" / "step-00000004")
    assert all((value == stored[name]).all() for name, value in exported.state_dict().items())
    config = schema.read_exported(out)
    assert (config.recipe, config.step) == ("tiny", 4)
    assert config.source is not None and config.source.path == "broken/step-00000004"
    assert config.subjects["subj01"].dataset == "linear"
    assert (config.feature_spaces["pixels-2"].extractor or {})["kind"] == "pixels"
    assert run(["checkpoint", "export", str(broken), str(out)]) == 2
    assert "is there already and nothing is written over" in capsys.readouterr().err


def test_commands_say_which_checkpoint_they_pass_over(
    runs: Path, broken: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(newest(broken) / "state/position.json", "removed", newest(broken))
    flags = ["--data", str(data), "--out", str(tmp_path / "out"), "--subjects", "subj01", "--workers", "0"]
    assert run(["reconstruct", "--from", str(broken), *flags]) == 0
    told = "step-00000006 is passed over: state/position.json: is in the manifest but not in the folder"
    assert told in " ".join(capsys.readouterr().out.split())
    again = ["--data", str(data), "--out", str(broken), "--subject", "subj01", "--baseline", "scratch"]
    assert run(["finetune", *again]) == 2  # with another recipe, which is found out after it was told
    assert told in " ".join(capsys.readouterr().out.split())


def test_averaged_weights_are_exported_when_asked(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["checkpoint", "export", str(broken), str(out), "--weights", "ema"]) == 0
    exported = MultiSubjectDecoder.from_pretrained(out).state_dict()
    averaged = schema.load_tensors(newest(broken), "ema.safetensors")
    model = schema.load_tensors(newest(broken))
    assert all((value == averaged[name]).all() for name, value in exported.items())
    assert not all((value == model[name]).all() for name, value in exported.items())


@pytest.mark.parametrize("what", ["data", "voxels", "subject"])
def test_reconstructing_other_data_or_subjects_is_refused_with_what_to_pass(
    broken: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    for path in (broken / "checkpoints").iterdir():
        document = json.loads((path / "manifest.json").read_text())
        record = document["subjects"].pop("subj01")
        if what == "data":
            record["fingerprint"] = "e" * 64
        elif what == "voxels":
            record["voxels"] += 1
        document["subjects"]["subj02" if what == "subject" else "subj01"] = record
        write_json(path / "manifest.json", sealed(document))
    flags = ["--data", str(data), "--out", str(tmp_path / "out"), "--subjects", "subj01", "--workers", "0"]
    assert run(["reconstruct", "--from", str(broken), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    told = {
        "data": f"{data} holds other data of that name",
        "voxels": "was trained on subj01 (9 voxels), the data hold subj01 (8 voxels)",
        "subject": "has no head for subj01: it has subj02 (8 voxels)",
    }
    assert told[what] in line
    assert "ass the data set it was trained on" in line or "Pass --subjects with one of subj02" in line
