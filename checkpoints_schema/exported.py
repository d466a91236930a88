"""A folder in the style of the Hugging Face hub: weights, a config that suffices to build the decoder, a card.

    config.json          what the decoder is, what it was trained on, size and SHA-256 of the weights, a seal
    model.safetensors    every tensor of the decoder
    README.md            model card

A checkpoint holds what a run needs to go on; this holds what a user of the finished decoder needs, no more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from fmri2img.checkpoints_schema.card import exported_card
from fmri2img.checkpoints_schema.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MODEL_NAME,
    FileRecord,
    Name,
    ParentRecord,
    Record,
    Shape,
    Step,
    schema_path,
    sealed,
    utc_now,
    versions,
)
from fmri2img.checkpoints_schema.read import compare, first_error, parse_object
from fmri2img.checkpoints_schema.tensors import read_tensors, save_tensors
from fmri2img.errors import DamageError, InputError
from fmri2img.files import sha256_file, staged_folder, write_json

if TYPE_CHECKING:
    import torch

MODEL_TYPE: Literal["fmri2img"] = "fmri2img"
EXPORT_VERSION: Literal[1] = 1
EXPORTED_FILES = (CONFIG_NAME, MODEL_NAME, CARD_NAME)


class ExportedSubject(Record):
    """A subject with a head; `dataset` and `fingerprint` name the data, where the checkpoint knew them."""

    voxels: int = Field(gt=0)
    dataset: Name | None = None
    fingerprint: Name | None = None


class ExportedSpace(Record):
    """A feature space: shape of one picture's features, whether it is contrasted, what makes it, its diffusion prior.

    A `prior` that is not there is not written, so that readers from before priors read what has none.
    """

    shape: Shape
    directed: bool = False
    extractor: dict[str, JsonValue] | None = None
    prior: dict[str, JsonValue] | None = None

    @model_serializer(mode="wrap")
    def _only_a_prior_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "prior" or value is not None}


class ExportedConfig(Record):
    """`config.json`, format version 1. `sizes` are the decoder's own: width of the latent and so on.

    `recipe`, `step`, `metrics` and `source` say which checkpoint it came from, where it came from one. `weights` and
    `seal` are set when the folder is written.
    """

    model_type: Literal["fmri2img"] = MODEL_TYPE
    format_version: Literal[1] = EXPORT_VERSION
    kind: Literal["decoder", "ridge"]
    subjects: dict[Name, ExportedSubject] = Field(min_length=1)
    feature_spaces: dict[Name, ExportedSpace] = Field(min_length=1)
    sizes: dict[Name, int | FiniteFloat | str] = Field(default_factory=dict)
    recipe: Name | None = None
    step: Step | None = None
    metrics: dict[Name, FiniteFloat] = Field(default_factory=dict)
    source: ParentRecord | None = None
    weights: FileRecord | None = None
    created_with: dict[Name, str] = Field(default_factory=lambda: versions())
    created_at: str = Field(default_factory=lambda: utc_now())
    seal: str | None = None


def write_exported(
    folder: Path, config: ExportedConfig, tensors: Mapping[str, "torch.Tensor"], *, license: str = "other"
) -> Path:
    """Write the folder, whole or not at all. Raises InputError when there is anything in its place already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and nothing is written over: give another folder")
    with staged_folder(folder) as staging:
        weights = staging / MODEL_NAME
        save_tensors(weights, tensors)
        record = FileRecord(bytes=weights.stat().st_size, sha256=sha256_file(weights))
        config = config.model_copy(update={"weights": record})
        write_json(staging / CONFIG_NAME, sealed(config.model_dump(mode="json")))
        (staging / CARD_NAME).write_text(exported_card(config, license=license))
    return folder


def is_exported(folder: Path) -> bool:
    """Whether a folder says that it is an exported decoder, rather than a checkpoint or something else."""
    try:
        return parse_object(folder / CONFIG_NAME).get("model_type") == MODEL_TYPE
    except DamageError:
        return False


def read_exported(folder: Path) -> ExportedConfig:
    """The config of an exported folder.

    Raises InputError when the folder is none or of a newer version, DamageError when its bytes changed.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise InputError(f"{folder} has no {CONFIG_NAME}: {_WAY_OUT}")
    document = parse_object(path)
    if document.get("model_type") != MODEL_TYPE:
        raise InputError(f"{path} is not of an fmri2img decoder: {_WAY_OUT}")
    version = document.get("format_version")
    if isinstance(version, int) and version > EXPORT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, newer than {EXPORT_VERSION}, the newest this fmri2img reads: "
            "upgrade with `pip install --upgrade fmri2img`"
        )
    if document != sealed(document):
        raise DamageError(f"{path} was changed after it was written: its seal is not the digest of the rest")
    try:
        config = ExportedConfig.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise DamageError(f"{path} breaks its schema: {first_error(error)}") from error
    if config.weights is None:
        raise DamageError(f"{path} does not record its weights: write the folder anew")
    return config


def verify_exported(folder: Path) -> list[str]:
    """All that is wrong with an exported folder, every byte that is loaded read."""
    try:
        config = read_exported(folder)
    except (InputError, DamageError) as error:
        return [str(error)]
    assert config.weights is not None
    problem = compare(folder, MODEL_NAME, config.weights, source=CONFIG_NAME)
    return [] if problem is None else [str(problem)]


def load_exported(folder: Path, config: ExportedConfig) -> dict[str, "torch.Tensor"]:
    """The tensors of an exported folder, on the CPU, after size and SHA-256 were checked."""
    assert config.weights is not None
    if not (folder / MODEL_NAME).is_file():
        raise InputError(f"{folder} has no {MODEL_NAME}: only safetensors are read. {_WAY_OUT.capitalize()}")
    problem = compare(folder, MODEL_NAME, config.weights, source=CONFIG_NAME)
    if problem is not None:
        raise DamageError(f"{folder} is damaged. {problem}. Get the folder again")
    return read_tensors(folder / MODEL_NAME)


def export_schema_text() -> str:
    """The JSON Schema of `config.json`: the text that `schema/exported.v1.json` must hold."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"fmri2img/exported.v{EXPORT_VERSION}.json",
        **ExportedConfig.model_json_schema(),
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def export_schema_path() -> Path:
    """Where that schema lies in this installation."""
    return schema_path().with_name(f"exported.v{EXPORT_VERSION}.json")


def write_schema() -> Path:
    """Write it anew; a change that old readers refuse needs a new format version."""
    path = export_schema_path()
    path.write_text(export_schema_text())
    return path


_WAY_OUT = "pass a folder made by `fmri2img checkpoint export` or save_pretrained"
