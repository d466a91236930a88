"""How a checkpoint comes to be: written aside, hashed by who wrote it, described last, renamed into place.

    token = new_token()                          rank 0, sent to every rank
    staging = stage(folder, step, token)         every rank, the same path
    records = file_records(staging, [...])       every rank, for the files it wrote
    commit(staging, step_path(folder, step), manifest)        rank 0, with every rank's records
    discard(staging)                             rank 0 instead, when any rank failed

Where one process writes everything, `with attempt(folder, step, token) as staging:` stages and discards.

A folder named `step-...` is therefore whole, or damaged after the fact. One rule protects what is committed:
**a step folder that verifies is never replaced.** Committing the same step again is refused, unless every
file (the model card aside) is the same to the byte, as an exact replay gives: then the old folder stays and
the new one is dropped. A step folder that does not verify is of no use to any reader, and the new one takes
its place.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fmri2img.checkpoints_schema.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    FileRecord,
    check_name,
    sealed,
)
from fmri2img.checkpoints_schema.read import (
    damage,
    find_latest,
    list_files,
    parse_step,
    read_manifest,
    step_name,
)
from fmri2img.errors import DamageError, InputError, StoppedError
from fmri2img.files import fsync_file, fsync_folder, sha256_file, write_json

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STAGING = re.compile(r"\.step-\d{8,}\.tmp-[A-Za-z0-9_-]{1,80}")


def new_token() -> str:
    """A fresh name for one attempt at one checkpoint. Rank 0 makes it, every rank uses it."""
    return uuid.uuid4().hex[:12]


def step_path(folder: Path, step: int) -> Path:
    """The committed folder of a step, `folder/step-00012000`."""
    return folder / step_name(step)


def staging_path(folder: Path, step: int, token: str) -> Path:
    """Where every rank writes the files of a step before they are committed."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"token {token!r} must be 1 to 64 letters, digits, - or _")
    return folder / f".{step_name(step)}.tmp-{token}"


def stage(folder: Path, step: int, token: str) -> Path:
    """Make the staging folder, or find the one another rank made, and return its path."""
    staging = staging_path(folder, step, token)
    staging.mkdir(parents=True, exist_ok=True)
    return staging


def file_records(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Size and SHA-256 of files below `folder`, each made to survive a power cut first."""
    records = {}
    for name in names:
        check_name(name)
        path = folder / name
        fsync_file(path)
        records[name] = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
    return records


def commit(staging: Path, final: Path, manifest: CheckpointManifest) -> Path:
    """Describe the staged files and rename the folder into place; returns `final`.

    Raises DamageError when the staged files are not those of the manifest, and InputError when a verified
    checkpoint of this step with other contents is there already. In both cases the staging folder stays: call
    `discard`.
    """
    if parse_step(final.name) != manifest.step:
        raise ValueError(f"{final.name} cannot hold step {manifest.step}: use step_path(folder, step)")
    if not _STAGING.fullmatch(staging.name) or staging.parent != final.parent:
        raise ValueError(f"{staging} must come from stage(), beside {final}")
    _check_staged(staging, manifest)
    write_json(staging / MANIFEST_NAME, sealed(manifest.model_dump(mode="json")))
    for folder in sorted(path for path in staging.rglob("*") if path.is_dir()):
        fsync_folder(folder)
    fsync_folder(staging)
    replaced = None
    if final.exists():
        if not damage(final):
            _check_same(final, manifest)
            discard(staging)
            return final
        replaced = staging.with_name(f"{staging.name}-damaged")
        os.rename(final, replaced)
    os.rename(staging, final)
    fsync_folder(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    return final


@contextmanager
def attempt(folder: Path, step: int, token: str) -> Iterator[Path]:
    """The staging folder, for one process that writes and commits alone; it is removed when that fails.

    Raises StoppedError when the disk takes no more: full, over its quota, or made read-only.
    """
    try:
        yield stage(folder, step, token)
    except OSError as error:
        discard(staging_path(folder, step, token))
        raise stopped(error, folder, step) from error
    except BaseException:
        discard(staging_path(folder, step, token))
        raise


def discard(staging: Path) -> None:
    """Remove a staging folder. Anything that is not one is refused."""
    if not _STAGING.fullmatch(staging.name):
        raise ValueError(f"{staging} is not a staging folder of a checkpoint")
    shutil.rmtree(staging, ignore_errors=True)


def stopped(error: OSError, folder: Path, step: int) -> StoppedError:
    """What to tell when the disk did not take the checkpoint of a step: why, what is left, and the way on.

    `folder` holds the step folders of the run. It looks for the last good one, every byte of it read.
    """
    try:
        found = find_latest(folder)
        kept = "none is committed yet, so it begins anew"
        if found is not None:
            size = sum(record.bytes for record in found.manifest.files.values())
            kept = f"it goes on from {found.path.name}, the last good one ({size / 1e6:,.2f} MB)"
    except (DamageError, OSError):
        kept = "but none of its checkpoints can be read whole now"
    why = error.strerror or str(error)
    mend = {
        errno.ENOSPC: "free space there",
        errno.EDQUOT: "free space or raise the quota there",
        errno.EROFS: "make it writable",
        errno.EACCES: "make it writable",
    }.get(error.errno or 0, "mend that")
    return StoppedError(
        f"{folder} did not take the checkpoint of step {step}: {why}. {mend.capitalize()} and run the same "
        f"command: {kept}"
    )


def clean_stale(folder: Path) -> list[Path]:
    """Remove what killed runs left half written, and return it.

    Call it from one process, before training begins: a folder that is still being written would go too.
    """
    stale = stale_folders(folder)
    for path in stale:
        discard(path)
    return stale


def stale_folders(folder: Path) -> list[Path]:
    """Staging folders in `folder`, which are litter unless a checkpoint is being written."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STAGING.fullmatch(path.name) and path.is_dir())


def _check_staged(staging: Path, manifest: CheckpointManifest) -> None:
    present = set(list_files(staging)) - {MANIFEST_NAME}
    for name in sorted(present - set(manifest.files)):
        raise DamageError(f"{staging / name} is in no rank's records: the manifest must list every file")
    for name, record in sorted(manifest.files.items()):
        if name not in present:
            raise DamageError(
                f"{staging / name} was written by another rank but cannot be seen here: "
                "all ranks must write to one shared folder"
            )
        size = (staging / name).stat().st_size
        if size != record.bytes:
            raise DamageError(f"{staging / name} has {size} bytes, its record says {record.bytes}")


def _check_same(final: Path, manifest: CheckpointManifest) -> None:
    old = {name: record for name, record in read_manifest(final).files.items() if name != CARD_NAME}
    new = {name: record for name, record in manifest.files.items() if name != CARD_NAME}
    if old != new:
        raise InputError(
            f"{final} is committed already with other contents and is never replaced: "
            "resume from it, or write to another run folder"
        )
