"""What a checkpoint folder says about itself: the typed `manifest.json` and its exported JSON Schema."""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, field_validator

from fmri2img.files import digest_json

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
EMA_NAME = "ema.safetensors"
TRIALS_NAME = "trials.safetensors"

Name = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Step = Annotated[int, Field(ge=0)]
Shape = tuple[Annotated[int, Field(gt=0)], ...]


class Record(BaseModel):
    """A part of the manifest: unknown keys are refused, fields cannot be set again."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(Record):
    """Size in bytes and SHA-256 of one file of the folder."""

    bytes: int = Field(ge=0)
    sha256: Digest


class SubjectRecord(Record):
    """A subject the checkpoint has a head for, and the data that head was trained on."""

    voxels: int = Field(gt=0)
    dataset: Name
    fingerprint: Name


class FeatureSpaceRecord(Record):
    """A feature space the decoder predicts: shape of one picture's features, dtype, and what made them."""

    shape: Shape
    dtype: Name
    extractor: dict[str, JsonValue]


class ParentRecord(Record):
    """The checkpoint that training started from; its manifest's digest names it whatever its path becomes."""

    path: Name
    manifest_sha256: Digest
    step: Step


class CheckpointManifest(Record):
    """`manifest.json`, schema version 1. Every file of the folder but the manifest itself is in `files`.

    A reader uses the files that it knows and leaves the others alone, so optional ones (averaged weights,
    latents of trials) need no new version.
    Names in `files` are relative, with `/` between folders. `created_at` is UTC, `2026-11-20T14:00:00Z`.
    `seal` is set by the commit: the SHA-256 of everything else in the document, see `sealed`.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["decoder", "ridge"]
    recipe: Name
    subjects: dict[Name, SubjectRecord] = Field(min_length=1)
    feature_spaces: dict[Name, FeatureSpaceRecord] = Field(min_length=1)
    step: Step
    metrics: dict[Name, FiniteFloat] = Field(default_factory=dict)
    files: dict[Name, FileRecord] = Field(min_length=1)
    parent: ParentRecord | None = None
    created_with: dict[Name, str] = Field(default_factory=lambda: versions())
    created_at: str = Field(
        default_factory=lambda: utc_now(), pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$"
    )
    seal: Digest | None = None

    @field_validator("files")
    @classmethod
    def _names_stay_inside(cls, value: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in value:
            check_name(name)
        return value


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a plain relative path below the folder and not the manifest's own."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise ValueError(f"file name {name!r} must be a plain relative path with / between folders")
    if name in (MANIFEST_NAME, "."):
        raise ValueError(f"file name {name!r} cannot be listed: the manifest lists the other files")


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest's document with its `seal`: the SHA-256 of the canonical JSON of all its other keys."""
    rest = {key: value for key, value in document.items() if key != "seal"}
    return {**rest, "seal": digest_json(rest)}


def utc_now() -> str:
    """The present second in UTC, as `created_at` holds it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """The versions that explain a checkpoint's bytes: this package, Python, the libraries that trained it."""
    found = {"python": platform.python_version()}
    for name in ("fmri2img", "torch", "deepspeed", "accelerate", "safetensors", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`, as the pydantic models give it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"fmri2img/checkpoint.v{SCHEMA_VERSION}.json",
        **CheckpointManifest.model_json_schema(),
    }


def schema_text() -> str:
    """The text that `schema/checkpoint.v1.json` must hold."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"


def schema_path() -> Path:
    """Where the exported schema lies in this installation."""
    return (
        Path(str(package_files("fmri2img.checkpoints_schema"))) / f"schema/checkpoint.v{SCHEMA_VERSION}.json"
    )


def write_schema() -> Path:
    """Write the exported schema anew; a change that old readers refuse needs a new schema version."""
    path = schema_path()
    path.write_text(schema_text())
    return path
