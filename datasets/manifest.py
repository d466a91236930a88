"""What `dataset.json` says: the typed manifest of a data set folder, version 1.

The manifest is written last; a folder without it is not a data set. Its `fingerprint` covers what the data
are (subjects, splits, normalisation, responses and stimuli), so adding a feature space leaves it as it was;
each feature space has its own digest, and `digest` covers the whole manifest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from fmri2img.errors import DamageError, InputError
from fmri2img.files import digest_json, write_json

MANIFEST = "dataset.json"
SCHEMA_VERSION = 1
BETAS = "betas.npy"
DATA_COLUMNS = ("responses", "stimuli")
PARTITIONS = ("train", "test")
RESERVED_FOLDERS = ("subjects", "features")

Partition = Literal["train", "test"]


def _inside(file: str) -> str:
    path = PurePosixPath(file)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in file
        or "\0" in file
        or str(path) != file
        or file == "."
    ):
        raise ValueError(f"{file!r} leaves the data set folder: a file is named by a plain relative path")
    return file


RelativeFile = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SubjectId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=40)]
SpaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
BehaviourName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)]


class Model(BaseModel):
    """Frozen, and no key that this version does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Model):
    """A file of the folder with its exact size and digest."""

    file: RelativeFile
    bytes: NonNegativeInt
    sha256: Sha256


class ColumnEntry(FileEntry):
    """One column of a shard: a tar and the index of its members."""

    index: FileEntry


class ShardEntry(Model):
    """Samples of one subject and partition, as aligned columns with the same keys in the same order."""

    name: RelativeFile
    subject: SubjectId
    partition: Partition
    number: NonNegativeInt
    samples: PositiveInt
    trials: PositiveInt
    columns: dict[str, ColumnEntry]


class Extended(Model):
    """A model that got more keys after its version was frozen: one at its default is not written.

    So an entry that uses none of them has the JSON and the digest that it had before they existed.
    """

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if key not in ADDED or value not in (None, [], {})}


ADDED = ("window", "behaviour", "last_session")


class SubjectEntry(Extended):
    """One subject: voxel count, sessions with trials, voxels per ROI, and the voxel table's file.

    `window` is the number of time points of a trial's response, `(window, voxels)`; without it a response is
    `(voxels,)`. `behaviour` names the values that trials carry beside session and trial number.
    """

    voxels: PositiveInt
    sessions: list[PositiveInt]
    rois: dict[str, PositiveInt]
    table: FileEntry
    window: PositiveInt | None = None
    behaviour: list[BehaviourName] = []

    @property
    def trial_shape(self) -> tuple[int, ...]:
        """Shape of one trial's response: `(voxels,)`, or `(time, voxels)` for a window."""
        return (self.voxels,) if self.window is None else (self.window, self.voxels)


class SplitEntry(Extended):
    """A named split: a partition, those of its pictures that are listed, and of these the trials of sessions
    1 to `last_session` where a subject has one.
    """

    partition: Partition
    nsd_ids: list[NonNegativeInt] | None = None
    description: str = ""
    last_session: dict[SubjectId, PositiveInt] = {}


class FeatureSpaceEntry(Model):
    """A cached feature space: what it is, the frozen extractor that made it, and its statistics' file.

    The statistics are mean and standard deviation over the training pictures, each distinct picture once.
    """

    name: SpaceName
    shape: list[PositiveInt]
    dtype: Literal["float16", "float32", "bfloat16"]
    extractor: dict[str, Any]
    statistics: FileEntry
    digest: Sha256


class NormalisationEntry(Model):
    """How responses were normalised, always from training trials alone.

    `pooled_sessions` names the sessions that had fewer than two training trials and took the statistics of
    all training trials of their subject; `constant_voxels` counts voxels that were only centred;
    `clipped` counts values beyond the largest float16.
    """

    method: Literal["session", "pooled", "none"]
    pooled_sessions: dict[SubjectId, list[PositiveInt]] = {}
    constant_voxels: dict[SubjectId, NonNegativeInt] = {}
    clipped: NonNegativeInt = 0


class DatasetManifest(Model):
    """The whole of `dataset.json`."""

    schema_version: Literal[1] = 1
    name: str
    terms: str
    provenance: dict[str, str]
    subjects: dict[SubjectId, SubjectEntry]
    splits: dict[str, SplitEntry]
    feature_spaces: dict[SpaceName, FeatureSpaceEntry] = {}
    normalisation: NormalisationEntry
    shards: list[ShardEntry]
    fingerprint: Sha256
    digest: Sha256


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Digest of what the data are; feature spaces, name, terms and provenance stay out."""
    kept = {key: manifest[key] for key in ("schema_version", "subjects", "splits", "normalisation")}
    kept["shards"] = [
        {**shard, "columns": {column: shard["columns"].get(column) for column in DATA_COLUMNS}}
        for shard in manifest["shards"]
    ]
    return digest_json(kept)


def space_digest(manifest: dict[str, Any], space: dict[str, Any]) -> str:
    """Digest of one feature space: its description, its statistics and its column in every shard."""
    described = {key: value for key, value in space.items() if key != "digest"}
    columns = [[shard["name"], shard["columns"].get(space["name"])] for shard in manifest["shards"]]
    return digest_json([described, columns])


def seal(manifest: dict[str, Any]) -> DatasetManifest:
    """Fill in fingerprint, feature-space digests and manifest digest of plain data, and validate it."""
    plain: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "feature_spaces": {}} | manifest
    plain = DatasetManifest.model_validate(plain | {"fingerprint": "0" * 64, "digest": "0" * 64}).model_dump()
    for space in plain["feature_spaces"].values():
        space["digest"] = space_digest(plain, space)
    plain["fingerprint"] = fingerprint_of(plain)
    plain["digest"] = _manifest_digest(plain)
    return DatasetManifest.model_validate(plain)


def write_manifest(path: Path, manifest: DatasetManifest) -> None:
    """Write `dataset.json` in one piece: its presence is what makes the folder a data set."""
    write_json(path / MANIFEST, manifest.model_dump())


def read_manifest(path: Path) -> DatasetManifest:
    """Read and check `dataset.json` of a data set folder.

    Raises:
        InputError: there is no such folder or manifest, or its schema version is unknown.
        DamageError: the manifest's bytes are not what was written.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is not a folder: give the data set folder that `fmri2img data build` wrote."
        )
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path} holds no {MANIFEST}, so it is no finished data set: build it with `fmri2img data build`."
        ) from None
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from None
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise InputError(
            f"{path / MANIFEST} has schema version {version}, and this fmri2img reads {SCHEMA_VERSION}: "
            "use the version of fmri2img that wrote it, or a newer one."
        )
    try:
        manifest = DatasetManifest.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(
            path, f"{where or 'the whole'}: {re.sub(r'^Value error, ', '', first['msg'])}"
        ) from None
    for rule in _broken_seals(plain):
        raise _damaged(path, rule)
    return manifest


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `dataset.json`, committed as `schema/dataset.v1.json`."""
    schema = DatasetManifest.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fmri2img data set, version 1",
    } | {key: value for key, value in schema.items() if key != "title"}


def schema_path() -> Path:
    """The committed JSON Schema."""
    return Path(__file__).parent / "schema" / f"dataset.v{SCHEMA_VERSION}.json"


def schema_text() -> str:
    """`json_schema` as the text of that file."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def write_schema() -> Path:
    """Write the exported schema anew; a change that old readers refuse needs a new schema version."""
    schema_path().write_text(schema_text())
    return schema_path()


def _manifest_digest(plain: dict[str, Any]) -> str:
    return digest_json({key: value for key, value in plain.items() if key != "digest"})


def _broken_seals(plain: dict[str, Any]) -> list[str]:
    """What a valid manifest's digests do not agree with; they are of the JSON as it is stored."""
    rules = []
    if plain["digest"] != _manifest_digest(plain):
        rules.append("its digest is not that of its contents, so it was edited or damaged")
    if plain["fingerprint"] != fingerprint_of(plain):
        rules.append("its fingerprint is not that of the data it describes")
    for name, space in plain["feature_spaces"].items():
        if space["name"] != name or space["digest"] != space_digest(plain, space):
            rules.append(f"the digest of feature space {name} is not that of its columns")
    for shard in plain["shards"]:
        if {*DATA_COLUMNS, *plain["feature_spaces"]} != set(shard["columns"]):
            rules.append(f"shard {shard['name']} has columns {sorted(shard['columns'])}")
        if shard["subject"] not in plain["subjects"]:
            rules.append(f"shard {shard['name']} is of {shard['subject']}, which is not among the subjects")
    return rules


def _damaged(path: Path, rule: str) -> DamageError:
    return DamageError(
        f"{path / MANIFEST} is damaged: {rule}. Bring back the file as it was built, or build again."
    )
