"""Look at checkpoints without using them: what a path holds, and everything that is wrong with a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmri2img.checkpoints_schema.commit import stale_folders
from fmri2img.checkpoints_schema.exported import is_exported, read_exported
from fmri2img.checkpoints_schema.manifest import MANIFEST_NAME, MODEL_NAME
from fmri2img.checkpoints_schema.read import (
    CHECKPOINTS_FOLDER,
    Problem,
    is_step,
    parse_object,
    read_manifest,
    resolve,
    step_folders,
    verify,
)
from fmri2img.checkpoints_schema.tensors import tensor_table
from fmri2img.errors import DamageError, InputError

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Checked:
    """One step folder and all that is wrong with it."""

    path: Path
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        """Whether a reader takes it: files too many keep nobody from it."""
        return all(problem.rule == "stray" for problem in self.problems)


def check(path: Path, *, progress: Progress | None = None) -> list[Checked]:
    """Every step folder of a run, or the one meant, newest first, with every byte read.

    Raises InputError when there is none.
    """
    folders = folders_of(path)
    checked = []
    for number, folder in enumerate(folders):
        if progress is not None:
            progress(number, len(folders), folder.name)
        checked.append(Checked(folder, tuple(verify(folder))))
    return checked


def folders_of(path: Path) -> list[Path]:
    """The step folders that a path means, newest first. Raises InputError when there is none."""
    if path.is_dir() and is_step(path):
        return [path]
    folders = step_folders(path)
    if not folders:
        resolve(path)  # which says what else the path is
    return folders


def left_behind(path: Path) -> list[Path]:
    """What killed runs left half written below a run; training removes it when it starts again."""
    return [stale for folder in (path, path / CHECKPOINTS_FOLDER) for stale in stale_folders(folder)]


def describe(path: Path) -> dict[str, Any]:
    """What a path holds, by manifests and headers alone, as plain data for JSON.

    Of a run, the checkpoints it has and the newest that can be read. `check` reads the bytes behind it.
    """
    if not path.is_dir():
        raise InputError(
            f"there is no folder {path}: pass a run folder, a step-... folder or an exported folder"
        )
    if is_step(path):
        return _describe_step(path)
    folders = step_folders(path)
    if not folders and is_exported(path):
        return _describe_exported(path)
    listed: list[dict[str, Any]] = []
    newest: dict[str, Any] | None = None
    for folder in folders or folders_of(path):
        try:
            manifest = read_manifest(folder)
            newest = newest or _describe_step(folder)
        except (InputError, DamageError) as error:
            listed.append({"name": folder.name, "problem": str(error)})
            continue
        size = sum(record.bytes for record in manifest.files.values())
        listed.append({"name": folder.name, "bytes": size, "metrics": dict(manifest.metrics)})
    return {"what": "run", "path": str(path), "checkpoints": listed, "newest": newest}


def _describe_step(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    told = manifest.model_dump(mode="json", exclude={"files", "seal", "schema_version"})
    return {
        "what": "checkpoint",
        "path": str(folder),
        "schema_version": parse_object(folder / MANIFEST_NAME)["schema_version"],
        **told,
        "files": {name: record.bytes for name, record in sorted(manifest.files.items())},
        "tensors": _tensors(folder, [name for name in manifest.files if name.endswith(".safetensors")]),
    }


def _describe_exported(folder: Path) -> dict[str, Any]:
    config = read_exported(folder)
    told = config.model_dump(mode="json", exclude={"weights", "seal", "model_type"})
    return {"what": "hf-folder", "path": str(folder), **told, "tensors": _tensors(folder, [MODEL_NAME])}


def _tensors(folder: Path, names: list[str]) -> dict[str, Any]:
    """Tensors of each file, or why its header cannot be read."""
    tables: dict[str, Any] = {}
    for name in sorted(names):
        try:
            table = tensor_table(folder / name)
        except DamageError as error:
            tables[name] = {"problem": str(error)}
            continue
        tables[name] = {
            tensor: {"dtype": info.dtype, "shape": list(info.shape), "bytes": info.bytes}
            for tensor, info in table.items()
        }
    return tables
