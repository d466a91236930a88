"""Write the checkpoints of an old run anew in the present schema version, beside it, never in their place.

Readers take old versions as they are, so nobody has to; it is for those who hand checkpoints to other programs.
"""

import shutil
from pathlib import Path

from fmri2img.checkpoints_schema.commit import commit, discard, file_records, new_token, stage, step_path
from fmri2img.checkpoints_schema.manifest import MANIFEST_NAME, SCHEMA_VERSION
from fmri2img.checkpoints_schema.read import CHECKPOINTS_FOLDER, damage, is_step, parse_object, read_manifest
from fmri2img.checkpoints_schema.report import Progress, folders_of
from fmri2img.errors import DamageError, InputError


def upgrade(path: Path, out: Path, *, progress: Progress | None = None) -> list[Path]:
    """Migrate a run or one step folder into the run folder `out`; returns the new step folders, oldest first.

    Every checkpoint passes through the pure migrations of its version and is committed like a new one; all other
    files keep their bytes. Returns nothing, and writes nothing, when all are of the present version. Raises InputError
    when `out` is not an empty place apart from `path`, DamageError when a checkpoint does not verify.
    """
    folders = folders_of(path)[::-1]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is there already: give an empty or new folder, migrating never writes over anything"
        )
    if out.resolve().is_relative_to(path.resolve()):
        raise InputError(f"{out} lies in {path}: give a folder outside, migrating changes nothing in place")
    for folder in folders:
        problems = damage(folder)
        if problems:
            raise DamageError(
                f"{folder} does not verify, so nothing was migrated: remove it, or migrate one whole step folder. "
                + "; ".join(map(str, problems))
            )
    if all(parse_object(folder / MANIFEST_NAME)["schema_version"] == SCHEMA_VERSION for folder in folders):
        return []
    written = []
    for number, folder in enumerate(folders):
        if progress is not None:
            progress(number, len(folders), folder.name)
        written.append(_upgrade_step(folder, out / CHECKPOINTS_FOLDER))
    if not is_step(path):  # the run's own records, so that it can go on there
        for file in sorted(path.iterdir()):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    return written


def _upgrade_step(folder: Path, out: Path) -> Path:
    manifest = read_manifest(folder)
    staging = stage(out, manifest.step, new_token())
    try:
        for name in manifest.files:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staging / name)
        if file_records(staging, manifest.files) != manifest.files:
            raise DamageError(f"{folder} changed while it was copied: run the same command again")
        return commit(staging, step_path(out, manifest.step), manifest)
    except BaseException:
        discard(staging)
        raise
