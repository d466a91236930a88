"""The format: its exported schema, its golden folder, its versions, its subjects, its card."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from pydantic import ValidationError

from fmri2img.checkpoints_schema import (
    EMA_NAME,
    SCHEMA_VERSION,
    TRIALS_NAME,
    CheckpointManifest,
    FileRecord,
    check_data,
    check_subjects,
    load_tensors,
    model_card,
    other_data,
    read_manifest,
    resolve,
    verify,
)
from fmri2img.checkpoints_schema.exported import EXPORT_VERSION, export_schema_path, export_schema_text
from fmri2img.checkpoints_schema.manifest import schema_path, schema_text, sealed
from fmri2img.checkpoints_schema.migrations import MIGRATIONS, Migration, migrate
from fmri2img.errors import InputError
from fmri2img.files import write_json

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def manifest() -> CheckpointManifest:
    return read_manifest(GOLDEN / "v1")


def test_the_exported_schema_is_the_one_of_the_models() -> None:
    if schema_path().read_text() != schema_text():
        pytest.fail(
            "checkpoints_schema/schema/checkpoint.v1.json differs from the pydantic models. If old readers "
            "accept the change, write it anew with `make schemas`; if not, it needs a new schema version"
        )


def test_the_schema_of_exported_folders_is_the_one_of_the_models_and_their_golden_folders_fit_it() -> None:
    text = export_schema_path().read_text()
    assert text == export_schema_text(), "write it anew with `make schemas`, or raise EXPORT_VERSION"
    folders = sorted((GOLDEN.parent.parent / "models" / "golden").glob(f"pretrained-v{EXPORT_VERSION}-*"))
    assert len(folders) == 2
    for folder in folders:
        jsonschema.validate(json.loads((folder / "config.json").read_text()), json.loads(text))


def test_the_golden_folder_fits_the_exported_schema() -> None:
    jsonschema.validate(
        json.loads((GOLDEN / "v1" / "manifest.json").read_text()), json.loads(schema_path().read_text())
    )


def test_every_schema_version_has_a_golden_folder_and_a_way_up() -> None:
    for version in range(1, SCHEMA_VERSION + 1):
        assert (GOLDEN / f"v{version}" / "manifest.json").is_file()
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_the_golden_folder_of_v1_loads() -> None:
    folder = GOLDEN / "v1"
    assert verify(folder) == []
    manifest = resolve(folder).manifest
    assert (manifest.kind, manifest.recipe, manifest.step) == ("decoder", "demo", 12000)
    assert {name: record.voxels for name, record in manifest.subjects.items()} == {"subj02": 3, "subj03": 2}
    assert manifest.feature_spaces["pixels"].shape == (3, 2, 2)
    assert manifest.feature_spaces["pixels"].extractor == {"name": "pixels", "side": 2}
    assert manifest.parent is not None
    assert manifest.parent.path == "pretrain/step-00000001"
    tensors = load_tensors(folder)
    assert torch.equal(tensors["heads.subj02.weight"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(tensors["backbone.bias"], torch.full((2,), 12000.0))
    assert torch.equal(load_tensors(folder, "state/rank-1.safetensors")["exp_avg"], torch.ones(2))


def test_a_golden_folder_of_v1_with_optional_files_loads_and_unknown_ones_are_left_alone() -> None:
    folder = GOLDEN / "v1-optional"
    assert verify(folder) == []
    files = set(resolve(folder).manifest.files)
    assert files - set(read_manifest(GOLDEN / "v1").files) == {EMA_NAME, TRIALS_NAME, "probe.bin"}
    whole = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(load_tensors(folder)["heads.subj02.weight"], whole)
    assert torch.equal(load_tensors(folder, EMA_NAME)["heads.subj02.weight"], whole / 2)
    assert torch.equal(load_tensors(folder, TRIALS_NAME)["subj02.latent"], torch.ones(5, 2))


def test_the_card_names_the_optional_files_that_are_there() -> None:
    card = model_card(read_manifest(GOLDEN / "v1-optional"))
    assert "`ema.safetensors` holds the weights averaged over the steps of training." in card
    assert "`trials.safetensors` holds the latents of single training trials" in card
    assert "ema.safetensors" not in model_card(read_manifest(GOLDEN / "v1"))


def test_a_newer_version_is_refused_with_the_way_out(tmp_path: Path, manifest: CheckpointManifest) -> None:
    document = manifest.model_dump(mode="json") | {"schema_version": 2, "invention": True}
    write_json(tmp_path / "manifest.json", sealed(document))
    with pytest.raises(InputError, match=r"schema_version 2 is newer than 1.*pip install --upgrade fmri2img"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("version", [None, "1", 1.0, True, 0, -1])
def test_a_version_that_is_none_is_refused(version: object) -> None:
    with pytest.raises(InputError, match="this is no checkpoint of fmri2img"):
        migrate({"schema_version": version})


def test_migrations_run_one_version_at_a_time_and_change_nothing_in_place() -> None:
    steps: dict[int, Migration] = {
        1: lambda document: {**document, "trail": [*document["trail"], 1]},
        2: lambda document: {**document, "trail": [*document["trail"], 2]},
    }
    old = {"schema_version": 1, "trail": []}
    assert migrate(old, to=3, migrations=steps) == {"schema_version": 3, "trail": [1, 2]}
    assert old == {"schema_version": 1, "trail": []}
    with pytest.raises(InputError, match="older than this fmri2img reads"):
        migrate(old, to=3, migrations={2: steps[2]})


def test_a_manifest_cannot_be_changed_or_hold_what_json_cannot(manifest: CheckpointManifest) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest.step = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="finite"):
        CheckpointManifest.model_validate(manifest.model_dump() | {"metrics": {"loss": float("nan")}})
    with pytest.raises(ValidationError, match="bytes"):
        FileRecord(bytes=-1, sha256="0" * 64)


def test_versions_and_time_are_filled_in(manifest: CheckpointManifest) -> None:
    given = manifest.model_dump(exclude={"created_with", "created_at"})
    fresh = CheckpointManifest.model_validate(given)
    assert {"fmri2img", "torch", "deepspeed", "python"} <= set(fresh.created_with)
    assert fresh.created_at.endswith("Z")


def test_subjects_that_fit_pass(manifest: CheckpointManifest) -> None:
    check_subjects(manifest, {"subj02": 3})
    check_subjects(manifest, {"subj03": 2, "subj02": 3})


def test_a_checkpoint_of_other_subjects_says_which_and_what_to_pass(manifest: CheckpointManifest) -> None:
    with pytest.raises(InputError) as error:
        check_subjects(manifest, {"subj01": 4, "subj02": 3}, checkpoint="runs/pretrain")
    message = str(error.value)
    assert "runs/pretrain has no head for subj01" in message
    assert "it has subj02 (3 voxels), subj03 (2 voxels), asked for were subj01 (4 voxels)" in message
    assert "Pass --subject with one of subj02, subj03, or finetune a head for subj01 first" in message


def test_a_head_of_another_voxel_count_is_refused(manifest: CheckpointManifest) -> None:
    with pytest.raises(InputError) as error:
        check_subjects(manifest, {"subj02": 5, "subj03": 2})
    message = str(error.value)
    assert "was trained on subj02 (3 voxels), the data hold subj02 (5 voxels)" in message
    assert "Pass the data set it was trained on (simulated), or finetune on this one" in message


def test_subjects_of_other_data_are_told_apart(manifest: CheckpointManifest) -> None:
    assert other_data(manifest, {"subj02": "a" * 64, "subj03": "b" * 64}) == []
    assert other_data(manifest, {"subj03": "x", "subj02": "a" * 64, "subj09": "x"}) == ["subj03"]


def test_other_data_under_a_known_subject_are_refused_with_what_to_pass(manifest: CheckpointManifest) -> None:
    check_data(manifest, {"subj02": "a" * 64})
    with pytest.raises(InputError) as error:
        check_data(manifest, {"subj02": "f" * 64}, checkpoint="runs/pretrain", data="data/new")
    assert str(error.value) == (
        "runs/pretrain was trained on subj02 of simulated (aaaaaaaaaaaa), data/new holds other data of that name "
        "(ffffffffffff): pass the data set it was trained on, or finetune subj02 on this one"
    )


def test_the_card_opens_with_front_matter_and_states_the_manifest(manifest: CheckpointManifest) -> None:
    _, front, body = model_card(manifest).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "fmri2img",
        "license": "other",
        "license_name": "terms-of-the-training-data",
        "tags": ["fmri", "brain-decoding", "image-reconstruction", "decoder"],
        "metrics": ["loss"],
    }
    assert "| subj02 | 3 | simulated | `aaaaaaaaaaaa` |" in body
    assert "| pixels | 3 x 2 x 2 | 12 |" in body
    assert "| loss | 0.5 |" in body
    assert "Trained from `pretrain/step-00000001`, step 1." in body
    assert "license: cc-by-4.0" in model_card(manifest, license="cc-by-4.0")
