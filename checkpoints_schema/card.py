"""Model cards of checkpoints and exported folders: `README.md` with the front matter that the hub reads."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from fmri2img.checkpoints_schema.manifest import (
    EMA_NAME,
    MODEL_NAME,
    TRIALS_NAME,
    CheckpointManifest,
    ParentRecord,
)

if TYPE_CHECKING:
    from fmri2img.checkpoints_schema.exported import ExportedConfig

_KINDS = {
    "decoder": "A decoder: one head per subject, a shared backbone, one branch per feature space.",
    "ridge": "A linear decoder: ridge regression from voxels to each feature space, fitted per subject.",
}
_CLASSES = {
    "decoder": ("fmri2img.models.decoder", "MultiSubjectDecoder"),
    "ridge": ("fmri2img.models.linear", "RidgeDecoder"),
}
_OPTIONAL = {
    EMA_NAME: "the weights averaged over the steps of training",
    TRIALS_NAME: "the latents of single training trials, which a new subject's head can be fitted to",
}


def model_card(manifest: CheckpointManifest, *, license: str = "other") -> str:
    """The card of a checkpoint. It states what the manifest holds and nothing else.

    `license` is the licence of the weights, an identifier of the hub. Weights inherit the terms of the data
    they were trained on, so the default names none.
    """
    subjects = {
        name: (record.voxels, record.dataset, record.fingerprint)
        for name, record in manifest.subjects.items()
    }
    shapes = {name: record.shape for name, record in manifest.feature_spaces.items()}
    lines = [
        *_front(manifest.kind, manifest.metrics, license),
        f"# {manifest.recipe}, step {manifest.step}",
        "",
        f"{_KINDS[manifest.kind]} It predicts features of the picture a person saw from their fMRI.",
        f"The weights are in `{MODEL_NAME}`; `manifest.json` says what every file is.",
        *(f"`{name}` holds {what}." for name, what in _OPTIONAL.items() if name in manifest.files),
        "",
        *_tables(subjects, shapes, manifest.metrics),
        *_origin(manifest.parent, "Trained from"),
        *_made(manifest.created_with, manifest.created_at),
    ]
    return "\n".join(lines)


def exported_card(config: "ExportedConfig", *, license: str = "other") -> str:
    """The card of an exported folder, with the lines of Python that load it."""
    module, name = _CLASSES[config.kind]
    subjects = {
        subject: (record.voxels, record.dataset or "-", record.fingerprint or "-")
        for subject, record in config.subjects.items()
    }
    shapes = {space: record.shape for space, record in config.feature_spaces.items()}
    title = "An fMRI decoder" if config.recipe is None else f"{config.recipe}, step {config.step}"
    lines = [
        *_front(config.kind, config.metrics, license),
        f"# {title}",
        "",
        f"{_KINDS[config.kind]} It predicts features of the picture a person saw from their fMRI.",
        "",
        *("```python", f"from {module} import {name}", ""),
        *(f'decoder = {name}.from_pretrained("this folder, or its name on the hub")', "```", ""),
        *_tables(subjects, shapes, config.metrics),
        *_origin(config.source, "Exported from checkpoint"),
        *_made(config.created_with, config.created_at),
    ]
    return "\n".join(lines)


def _front(kind: str, metrics: Mapping[str, float], license: str) -> list[str]:
    front: dict[str, object] = {"library_name": "fmri2img", "license": license}
    if license == "other":
        front["license_name"] = "terms-of-the-training-data"
    front["tags"] = ["fmri", "brain-decoding", "image-reconstruction", kind]
    if metrics:
        front["metrics"] = sorted(metrics)
    return ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def _tables(
    subjects: Mapping[str, tuple[int, str, str]],
    shapes: Mapping[str, tuple[int, ...]],
    metrics: Mapping[str, float],
) -> list[str]:
    lines = ["| subject | voxels | data set | fingerprint |", "|---|---|---|---|"]
    for name, (voxels, dataset, fingerprint) in sorted(subjects.items()):
        lines.append(f"| {name} | {voxels} | {dataset} | `{fingerprint[:12]}` |")
    lines += ["", "| feature space | shape | values |", "|---|---|---|"]
    for name, shape in sorted(shapes.items()):
        lines.append(f"| {name} | {' x '.join(map(str, shape)) or 'scalar'} | {math.prod(shape)} |")
    if metrics:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items())]
    return [*lines, ""]


def _origin(parent: ParentRecord | None, verb: str) -> list[str]:
    return [] if parent is None else [f"{verb} `{parent.path}`, step {parent.step}.", ""]


def _made(created_with: Mapping[str, str], created_at: str) -> list[str]:
    made = ", ".join(f"{name} {version}" for name, version in sorted(created_with.items()))
    return [f"Made {created_at} with {made}." if made else f"Made {created_at}.", ""]
