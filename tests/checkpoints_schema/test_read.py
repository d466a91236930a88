"""Nothing wrong with a checkpoint passes silently: it is found, and named."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmri2img.checkpoints_schema import (
    Problem,
    find_latest,
    load_tensors,
    parent_record,
    parse_step,
    read_manifest,
    resolve,
    save_tensors,
    step_name,
    verify,
)
from fmri2img.checkpoints_schema.manifest import sealed
from fmri2img.errors import DamageError, InputError
from fmri2img.files import sha256_file, write_json

Commit = Callable[..., Path]
FILES = [
    "README.md",
    "config.json",
    "model.safetensors",
    "state/rank-0.safetensors",
    "state/rank-1.safetensors",
]


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def edit_manifest(folder: Path, changes: dict[str, object], *, seal: bool = True) -> None:
    document = json.loads((folder / "manifest.json").read_text()) | changes
    write_json(folder / "manifest.json", sealed(document) if seal else document)


def rules(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.file, problem.rule) for problem in problems]


def test_the_tests_damage_every_file_there_is(committed: Commit) -> None:
    assert sorted(read_manifest(committed()).files) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_in_every_file(committed: Commit, name: str) -> None:
    path = committed()
    flip(path / name)
    assert rules(verify(path)) == [(name, "sha256")]


@pytest.mark.parametrize("name", FILES)
def test_a_cut_tail_is_found_in_every_file(committed: Commit, name: str) -> None:
    path = committed()
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-1])
    assert rules(verify(path)) == [(name, "size")]
    assert f"has {len(data) - 1} bytes, the manifest says {len(data)}" in str(verify(path)[0])


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(committed: Commit, name: str) -> None:
    path = committed()
    (path / name).unlink()
    assert rules(verify(path)) == [(name, "missing")]


def test_a_stray_file_is_named_but_costs_nobody_their_checkpoint(committed: Commit) -> None:
    path = committed()
    (path / "state/notes.txt").write_text("mine")
    assert rules(verify(path)) == [("state/notes.txt", "stray")]
    assert resolve(path).path == path
    assert resolve(path.parent).path == path


@pytest.mark.parametrize("at", range(0, 1600, 37))
def test_a_flipped_bit_anywhere_in_the_manifest_is_found(committed: Commit, at: int) -> None:
    path = committed()
    flip(path / "manifest.json", at)
    problems = verify(path)
    assert rules(problems)[:1] == [("manifest.json", "manifest")]


def test_all_problems_are_listed_at_once(committed: Commit) -> None:
    path = committed()
    flip(path / "model.safetensors")
    (path / "config.json").unlink()
    (path / "extra").write_text("")
    assert rules(verify(path)) == [
        ("config.json", "missing"),
        ("model.safetensors", "sha256"),
        ("extra", "stray"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"kind": "oracle"}, "kind: Input should be 'decoder' or 'ridge'"),
        ({"subjects": {}}, "subjects"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "plain relative path"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "plain relative path"),
        ({"files": {"manifest.json": {"bytes": 1, "sha256": "0" * 64}}}, "cannot be listed"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"step": 11}, "says step 11, the folder's name says 10"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_named(
    committed: Commit, change: dict[str, object], message: str
) -> None:
    path = committed(10)
    edit_manifest(path, change)
    assert rules(verify(path))[0] == ("manifest.json", "manifest")
    assert message in str(verify(path)[0])


def test_an_edited_manifest_is_found_by_its_seal(committed: Commit) -> None:
    path = committed()
    edit_manifest(path, {"metrics": {"loss": 0.1}}, seal=False)
    with pytest.raises(DamageError, match="changed after it was committed"):
        read_manifest(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udc80", "[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_damage(committed: Commit, text: str) -> None:
    path = committed()
    (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DamageError, match=r"manifest\.json"):
        read_manifest(path)


def test_the_newest_whole_checkpoint_is_found_and_the_others_explained(committed: Commit) -> None:
    good, flipped, uncommitted = committed(10), committed(20), committed(30)
    flip(flipped / "model.safetensors")
    (uncommitted / "manifest.json").unlink()
    found = find_latest(good.parent.parent)
    assert found is not None
    assert found.path == good
    assert found.manifest.step == 10
    assert [path for path, _ in found.passed_over] == [uncommitted, flipped]
    assert "no manifest.json" in found.passed_over[0][1]
    assert "model.safetensors: has SHA-256" in found.passed_over[1][1]


def test_step_order_is_numeric_not_alphabetic(committed: Commit) -> None:
    committed(99_999_999)
    assert find_latest(committed(100_000_000).parent).manifest.step == 100_000_000  # type: ignore[union-attr]


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "not there") is None


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again_quietly(committed: Commit) -> None:
    path = committed(10)
    flip(path / "model.safetensors")
    with pytest.raises(DamageError, match=r"no checkpoint of .* verifies.*step-00000010: model.safetensors"):
        find_latest(path.parent.parent)


def test_a_path_may_be_a_run_its_checkpoints_or_a_step(committed: Commit) -> None:
    committed(10)
    path = committed(20)
    for meant in (path, path.parent, path.parent.parent):
        assert resolve(meant).path == path
        assert resolve(meant).manifest.step == 20
    renamed = path.rename(path.parent / "best")
    assert resolve(renamed).manifest.step == 20


def test_a_path_without_a_checkpoint_says_what_to_pass(tmp_path: Path, committed: Commit) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*pass a run folder"):
        resolve(tmp_path / "typo")
    with pytest.raises(InputError, match="holds no checkpoint: pass a run folder"):
        resolve(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match="is a data set folder"):
        resolve(tmp_path)
    path = committed()
    flip(path / "config.json")
    with pytest.raises(DamageError, match=r"does not verify\. config\.json"):
        resolve(path)


def test_tensors_of_a_damaged_file_are_not_loaded(committed: Commit) -> None:
    path = committed()
    flip(path / "model.safetensors")
    with pytest.raises(DamageError, match=r"model\.safetensors: has SHA-256"):
        load_tensors(path)
    assert torch.equal(load_tensors(path, "state/rank-1.safetensors")["exp_avg"], torch.ones(2))


def test_a_file_the_checkpoint_lacks_is_named_with_those_it_has(committed: Commit) -> None:
    with pytest.raises(
        InputError, match=r"no ema\.safetensors: its tensor files are model\.safetensors, state/"
    ):
        load_tensors(committed(), "ema.safetensors")


class Payload:
    """Unpickling this would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth", "model.pkl"])
def test_a_pickle_is_never_loaded_whatever_its_name(committed: Commit, tmp_path: Path, name: str) -> None:
    path, trace = committed(), tmp_path / "trace"
    (path / name).write_bytes(pickle.dumps(Payload(trace)))
    record = {"bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
    files = json.loads((path / "manifest.json").read_text())["files"] | {name: record}
    edit_manifest(path, {"files": files})
    assert verify(path) == []
    with pytest.raises((InputError, DamageError), match="safetensors file"):
        load_tensors(path, name)
    assert not trace.exists()
    with pytest.raises(InputError, match="never pickles"):
        save_tensors(path / "model.pt", {})


def test_tensors_that_share_memory_or_are_views_round_trip(committed: Commit) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "again": base, "row": base[1], "turned": base.T, "scalar": torch.tensor(2.0)}
    path = committed()
    save_tensors(path / "views.safetensors", {**tensors, "bf16": base.to(torch.bfloat16)})
    record = {
        "bytes": (path / "views.safetensors").stat().st_size,
        "sha256": sha256_file(path / "views.safetensors"),
    }
    edit_manifest(path, {"files": {"views.safetensors": record}})
    loaded = load_tensors(path, "views.safetensors")
    assert loaded.pop("bf16").dtype == torch.bfloat16
    assert sorted(loaded) == sorted(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize(
    "name", ["step-1", "step-000000001", "step-00000001x", "xstep-00000001", ".step-00000001"]
)
def test_other_names_are_not_step_folders(name: str) -> None:
    assert parse_step(name) is None
    assert parse_step(step_name(1)) == 1
    assert parse_step("step-123456789") == 123_456_789
    with pytest.raises(ValueError, match="must not be negative"):
        step_name(-1)


def test_a_child_names_its_parent_by_run_step_and_digest(committed: Commit) -> None:
    path = committed(20)
    record = parent_record(resolve(path))
    assert record.path == "run/step-00000020"
    assert record.step == 20
    assert record.manifest_sha256 == sha256_file(path / "manifest.json")
