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


def write_files(
    staging: Path, step: int, scale: float = 1.0, optional: bool = False
) -> dict[str, FileRecord]:
    """What two ranks write: the model and the config by one, a part of the optimiser state by each.

    No file of another `scale` is the same. `optional` adds averaged weights and latents of trials.
    """
    tensors = {
        "heads.subj02.weight": scale * torch.arange(6.0).reshape(2, 3),
        "heads.subj03.weight": scale * torch.arange(4.0).reshape(2, 2),
        "backbone.bias": torch.full((2,), float(step)),
    }
    save_tensors(staging / "model.safetensors", tensors, {"step": str(step)})
    names = ["model.safetensors", "config.json"]
    if optional:
        save_tensors(staging / "ema.safetensors", {name: value / 2 for name, value in tensors.items()})
        save_tensors(staging / "trials.safetensors", {"subj02.latent": scale * torch.ones(5, 2)})
        names += ["ema.safetensors", "trials.safetensors"]
    config: dict[str, float] = {"lanes": 2} if scale == 1 else {"lanes": 2, "scale": scale}
    (staging / "config.json").write_text(json.dumps(config))
    records = file_records(staging, names)
    card = describe(step, records).model_copy(update={"metrics": {"loss": 0.5 * scale}})
    (staging / "README.md").write_text(model_card(card))
    records |= file_records(staging, ["README.md"])
    for rank in range(2):
        name = f"state/rank-{rank}.safetensors"
        save_tensors(staging / name, {"exp_avg": torch.full((2,), rank * scale + scale - 1)})
        records |= file_records(staging, [name])
    return records


@pytest.fixture(scope="session")
def commit_into() -> Commit:
    """Commit a checkpoint of a step into `run/checkpoints` and return its folder."""

    def make(run: Path, step: int = 10, scale: float = 1.0, *, optional: bool = False) -> Path:
        folder = run / "checkpoints"
        staging = stage(folder, step, new_token())
        files = write_files(staging, step, scale, optional)
        return commit(staging, step_path(folder, step), describe(step, files))

    return make


@pytest.fixture
def committed(commit_into: Commit, tmp_path: Path) -> Commit:
    """`commit_into` the run folder `tmp_path/run`."""

    def make(step: int = 10, scale: float = 1.0, *, run: str = "run", **settings: bool) -> Path:
        return commit_into(tmp_path / run, step, scale, **settings)

    return make


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[int], tuple[Path, CheckpointManifest]]:
    """A checkpoint written and described, but not committed yet."""

    def make(step: int = 10) -> tuple[Path, CheckpointManifest]:
        staging = stage(tmp_path / "run" / "checkpoints", step, new_token())
        return staging, describe(step, write_files(staging, step))

    return make
