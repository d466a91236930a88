"""A small checkpoint, committed the way a run of two ranks commits it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmri2img.checkpoints_schema import (
    CheckpointManifest,
    FeatureSpaceRecord,
    FileRecord,
    ParentRecord,
    SubjectRecord,
    commit,
    file_records,
    model_card,
    new_token,
    save_tensors,
    stage,
    step_path,
)

Commit = Callable[..., Path]


def describe(step: int, files: dict[str, FileRecord]) -> CheckpointManifest:
    """The manifest of the tests' checkpoint."""
    return CheckpointManifest(
        kind="decoder",
        recipe="demo",
        subjects={
            "subj02": SubjectRecord(voxels=3, dataset="simulated", fingerprint="a" * 64),
            "subj03": SubjectRecord(voxels=2, dataset="simulated", fingerprint="b" * 64),
        },
        feature_spaces={
            "pixels": FeatureSpaceRecord(
                shape=(3, 2, 2), dtype="float32", extractor={"name": "pixels", "side": 2}
            )
        },
        step=step,
        metrics={"loss": 0.5},
        files=files,
        parent=ParentRecord(path="pretrain/step-00000001", manifest_sha256="c" * 64, step=1),
        created_with={"fmri2img": "0.1.0", "torch": "2.13.0"},
        created_at="2026-11-20T12:00:00Z",
    )


def write_files(staging: Path, step: int, scale: float = 1.0) -> dict[str, FileRecord]:
    """What two ranks write: the model and the config by one, a part of the optimiser state by each."""
    tensors = {
        "heads.subj02.weight": scale * torch.arange(6.0).reshape(2, 3),
        "heads.subj03.weight": scale * torch.arange(4.0).reshape(2, 2),
        "backbone.bias": torch.full((2,), float(step)),
    }
    save_tensors(staging / "model.safetensors", tensors, {"step": str(step)})
    (staging / "config.json").write_text(json.dumps({"lanes": 2}))
    (staging / "README.md").write_text(
        model_card(describe(step, {"x": FileRecord(bytes=0, sha256="0" * 64)}))
    )
    records = file_records(staging, ["model.safetensors", "config.json", "README.md"])
    for rank in range(2):
        name = f"state/rank-{rank}.safetensors"
        save_tensors(staging / name, {"exp_avg": torch.full((2,), float(rank))})
        records |= file_records(staging, [name])
    return records


@pytest.fixture
def committed(tmp_path: Path) -> Commit:
    """Commit a checkpoint of a step into `tmp_path/run/checkpoints` and return its folder."""

    def make(step: int = 10, scale: float = 1.0) -> Path:
        folder = tmp_path / "run" / "checkpoints"
        staging = stage(folder, step, new_token())
        return commit(staging, step_path(folder, step), describe(step, write_files(staging, step, scale)))

    return make


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[int], tuple[Path, CheckpointManifest]]:
    """A checkpoint written and described, but not committed yet."""

    def make(step: int = 10) -> tuple[Path, CheckpointManifest]:
        staging = stage(tmp_path / "run" / "checkpoints", step, new_token())
        return staging, describe(step, write_files(staging, step))

    return make
