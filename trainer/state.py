"""Save and load everything that a run needs to go on exactly: weights, optimiser, position."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import InputError
from fmri2img.files import write_json
from fmri2img.trainer.config import Recipe

OPTIMISER = "state/optimiser.safetensors"
POSITION = "state/position.json"
BEST = "state/best.safetensors"
# What a run may be resumed with otherwise than it began: no weight depends on it.
FREE = ("checkpoint_every", "keep", "log_every", "pictures_every", "reading_threads")


@dataclass(frozen=True)
class Identity:
    """What a checkpoint says about itself beside its weights. `config` is the resolved run configuration."""

    config: dict[str, Any]
    recipe: str
    subjects: dict[str, schema.SubjectRecord]
    spaces: dict[str, schema.FeatureSpaceRecord]
    parent: schema.ParentRecord | None = None


@dataclass
class Best:
    """The weights with the lowest validation loss so far. Saved, since a resumed run must know what it had."""

    loss: float = math.inf
    step: int = -1
    tensors: dict[str, Tensor] = field(default_factory=dict)


def checkpoints_of(run: Path) -> Path:
    """Where the step folders of a run lie."""
    return run / schema.CHECKPOINTS_FOLDER


def write_step(
    folder: Path,
    step: int,
    token: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    identity: Identity,
    *,
    metrics: Mapping[str, float],
    kind: Any = "decoder",
    position: Mapping[str, Any] | None = None,
) -> Path:
    """Write and commit one step folder from this process. `tensors` maps file names to what they hold.

    Raises StoppedError when the disk does not take it; nothing of it is left then.
    """
    with schema.attempt(folder, step, token) as staging:
        (staging / "state").mkdir(exist_ok=True)
        for name, content in tensors.items():
            schema.save_tensors(staging / name, content)
        write_json(staging / schema.CONFIG_NAME, identity.config)
        write_json(staging / POSITION, {"step": step, **(position or {})})
        draft = schema.CheckpointManifest(
            kind=kind,
            recipe=identity.recipe,
            subjects=identity.subjects,
            feature_spaces=identity.spaces,
            step=step,
            metrics=dict(metrics),
            files=schema.file_records(staging, [*tensors, schema.CONFIG_NAME, POSITION]),
            parent=identity.parent,
        )
        (staging / schema.CARD_NAME).write_text(schema.model_card(draft))
        files = {**draft.files, **schema.file_records(staging, [schema.CARD_NAME])}
        manifest = draft.model_copy(update={"files": files})
        return schema.commit(staging, schema.step_path(folder, step), manifest)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint of this very run to go on from."""

    step: int
    model: dict[str, Tensor]
    moments: dict[str, Tensor]
    ema: dict[str, Tensor]
    passed_over: tuple[tuple[Path, str], ...]
    metrics: dict[str, float]
    best: Best


def find_resumable(
    run: Path, config: dict[str, Any], *, parent: schema.ParentRecord | None = None
) -> Resumed | None:
    """The newest whole checkpoint of a run, or None for a new run.

    Raises InputError when the run folder belongs to another configuration or began from another parent.
    """
    found = schema.find_latest(run)
    if found is None:
        return None
    position = json.loads((found.path / POSITION).read_text())
    was = json.loads((found.path / schema.CONFIG_NAME).read_text())
    if _decisive(was) != _decisive(config):
        raise InputError(
            f"{run} holds a run of another configuration ({_difference(_decisive(was), _decisive(config))}): "
            "give the same one to resume it, or another --out"
        )
    began = found.manifest.parent
    if (began and began.manifest_sha256) != (parent and parent.manifest_sha256):
        raise InputError(
            f"{run} holds a run that began from {_called(began)}, this one begins from {_called(parent)}: "
            "give the same parent to resume it, or another --out"
        )
    weights = (
        "state/model.safetensors" if "state/model.safetensors" in found.manifest.files else schema.MODEL_NAME
    )
    model = schema.load_tensors(found.path, weights)
    moments = schema.load_tensors(found.path, OPTIMISER)
    averaged = (
        schema.load_tensors(found.path, schema.EMA_NAME) if schema.EMA_NAME in found.manifest.files else {}
    )
    best = Best(**position["best"]) if "best" in position else Best()
    if BEST in found.manifest.files:
        best.tensors = schema.load_tensors(found.path, BEST)
    metrics = dict(found.manifest.metrics)
    return Resumed(found.manifest.step, model, moments, averaged, found.passed_over, metrics, best)


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved configuration decides the finished model.

    A recipe that was stored before a setting existed holds that setting's default.
    """
    try:
        recipe = Recipe.model_validate(config["recipe"]).model_dump(mode="json")
    except ValidationError:  # of a version that said some things otherwise: shown as it is
        recipe = dict(config["recipe"])
    for stage in ("pretraining", "finetuning"):
        recipe[stage] = {key: value for key, value in recipe.get(stage, {}).items() if key not in FREE}
    return {**config, "recipe": recipe}


def _called(parent: schema.ParentRecord | None) -> str:
    return "no other checkpoint" if parent is None else f"{parent.path} ({parent.manifest_sha256[:12]})"


def _difference(was: Any, now: Any, path: str = "") -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(set(was) | set(now)):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    return f"{path} was {was!r}, is {now!r}"


def load_weights(decoder: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all weights or fail, naming what does not fit."""
    decoder.load_state_dict(dict(tensors), strict=True)
