"""Find a checkpoint and prove it whole before anything of it is used."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fmri2img.checkpoints_schema.manifest import (
    MANIFEST_NAME,
    CheckpointManifest,
    FileRecord,
    ParentRecord,
    sealed,
)
from fmri2img.checkpoints_schema.migrations import migrate
from fmri2img.errors import DamageError, InputError
from fmri2img.files import sha256_file

_STEP = re.compile(r"step-(\d{8,})")
_JSON_LIMIT = 64 << 20
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Problem:
    """One way in which a folder differs from its manifest. `file` is relative to the folder."""

    file: str
    rule: Literal["manifest", "missing", "unreadable", "size", "sha256", "stray"]
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class Found:
    """A checkpoint that verified, and the newer ones that did not, each with the reason."""

    path: Path
    manifest: CheckpointManifest
    passed_over: tuple[tuple[Path, str], ...] = ()

    @property
    def warnings(self) -> list[str]:
        """A line for each newer checkpoint that was passed over; commands print them."""
        return [f"{path.name} is passed over: {why}" for path, why in self.passed_over]


def step_name(step: int) -> str:
    """`step-00012000` for 12000; names sort as steps do up to 99 999 999."""
    if step < 0:
        raise ValueError(f"step {step} must not be negative")
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """The step of a folder name, or None when it is not one of ours."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def list_files(folder: Path) -> list[str]:
    """The relative names of all files below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a step folder, migrated to the present version.

    Raises InputError when there is none or its version is unknown, DamageError when it cannot be understood.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST_NAME}: it is not a committed checkpoint")
    document = parse_object(path)
    try:
        migrated = migrate(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if document != sealed(document):
        raise DamageError(
            f"{path} was changed after it was committed: its seal is not the digest of the rest"
        )
    try:
        return CheckpointManifest.model_validate_json(json.dumps(migrated))
    except ValidationError as error:
        raise DamageError(f"{path} breaks the checkpoint schema: {first_error(error)}") from error


def parse_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises DamageError when it cannot be read as one."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise DamageError(
                f"{path} has {path.stat().st_size} bytes: such a file has at most {_JSON_LIMIT}"
            )
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DamageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamageError(f"{path} holds a {type(document).__name__}: it must hold a JSON object")
    return document


def verify(folder: Path) -> list[Problem]:
    """Everything that is wrong with a step folder, every byte of it read. Empty when it is whole."""
    try:
        manifest = read_manifest(folder)
    except (InputError, DamageError) as error:
        return [Problem(MANIFEST_NAME, "manifest", str(error))]
    problems = []
    step = parse_step(folder.name)
    if step is not None and step != manifest.step:
        message = f"says step {manifest.step}, the folder's name says {step}"
        problems.append(Problem(MANIFEST_NAME, "manifest", message))
    for name in sorted(manifest.files):
        problem = check_file(folder, manifest, name)
        if problem is not None:
            problems.append(problem)
    for name in list_files(folder):
        if name not in manifest.files and name != MANIFEST_NAME:
            problems.append(Problem(name, "stray", "is not in the manifest"))
    return problems


def check_file(folder: Path, manifest: CheckpointManifest, name: str) -> Problem | None:
    """What is wrong with one file that the manifest lists, or None."""
    return compare(folder, name, manifest.files[name])


def compare(folder: Path, name: str, record: FileRecord, *, source: str = "the manifest") -> Problem | None:
    """How a file differs from the size and digest that `source` records, or None. Reads all of it."""
    path = folder / name
    if not path.is_file():
        return Problem(name, "missing", f"is in {source} but not in the folder")
    size = path.stat().st_size
    if size != record.bytes:
        return Problem(name, "size", f"has {size} bytes, {source} says {record.bytes}")
    try:
        digest = sha256_file(path)
    except OSError as error:
        return Problem(name, "unreadable", f"cannot be read: {error.strerror}")
    if digest != record.sha256:
        return Problem(name, "sha256", f"has SHA-256 {digest[:12]}..., {source} says {record.sha256[:12]}...")
    return None


def damage(folder: Path) -> list[Problem]:
    """What keeps a reader from a step folder: all that `verify` finds but files too many."""
    return [problem for problem in verify(folder) if problem.rule != "stray"]


def find_latest(run: Path) -> Found | None:
    """The newest checkpoint of a run that verifies; None when the run has no step folder yet.

    `run` holds step folders itself or in `checkpoints/`. A file too many is no reason to pass a checkpoint
    over; anything else is. Raises DamageError when there are step folders and none of them verifies, because
    a run that quietly began again would lose them.
    """
    passed_over: list[tuple[Path, str]] = []
    for path in step_folders(run):
        problems = damage(path)
        if not problems:
            return Found(path, read_manifest(path), tuple(passed_over))
        passed_over.append((path, "; ".join(str(problem) for problem in problems)))
    if passed_over:
        reasons = ". ".join(f"{path.name}: {why}" for path, why in passed_over)
        raise DamageError(f"no checkpoint of {run} verifies: restore one or start a new run. {reasons}")
    return None


def resolve(path: Path) -> Found:
    """The checkpoint a user means by a path: a step folder, or a run folder, whose newest whole one it is.

    Raises InputError when there is none there, DamageError when what is there does not verify.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}: pass a run folder or one of its step-... folders")
    if is_step(path):
        problems = damage(path)
        if problems:
            raise DamageError(f"checkpoint {path} does not verify. " + "; ".join(map(str, problems)))
        return Found(path, read_manifest(path))
    found = find_latest(path)
    if found is None:
        what = "is a data set folder" if (path / "dataset.json").is_file() else "holds no checkpoint"
        raise InputError(f"{path} {what}: pass a run folder that has trained, or one of its step-... folders")
    return found


def is_step(path: Path) -> bool:
    """Whether a path is one step folder, under its own name or another, rather than a run."""
    return parse_step(path.name) is not None or (path / MANIFEST_NAME).is_file()


def parent_record(found: Found) -> ParentRecord:
    """How a child's manifest names the checkpoint it started from; the path is `run/step-...`, no more."""
    folder = found.path.resolve()
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS_FOLDER else folder.parent
    return ParentRecord(
        path=f"{run.name}/{folder.name}",
        manifest_sha256=sha256_file(folder / MANIFEST_NAME),
        step=found.manifest.step,
    )


def step_folders(run: Path) -> list[Path]:
    """Step folders of a run, newest first."""
    steps = []
    for folder in (run, run / CHECKPOINTS_FOLDER):
        if folder.is_dir():
            for path in folder.iterdir():
                step = parse_step(path.name)
                if step is not None and path.is_dir():
                    steps.append((step, path))
    return [path for _, path in sorted(steps, reverse=True)]


def first_error(error: ValidationError) -> str:
    """The first thing a pydantic model found wrong, in one line."""
    detail = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in detail["loc"]) or "the document"
    return f"{place}: {detail['msg']}"
