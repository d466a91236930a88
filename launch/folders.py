"""What a job may take as its output."""

import os
from collections.abc import Sequence
from pathlib import Path

from fmri2img.errors import InputError


def check_folder(out: Path, marks: Sequence[str], *, what: str) -> None:
    """Raise InputError unless `out` can be made, is empty, or holds one of `marks`: an earlier `what` to go on with."""
    _check_writable(out)
    if not out.exists():
        return
    if (out / "dataset.json").exists():
        raise InputError(f"{out} is a data set: give another --out for the {what}")
    held = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if held and not set(marks) & set(held):
        raise InputError(f"{out} is not empty and holds no {what}: give another --out")


def check_file(out: Path) -> None:
    """Raise InputError unless `out` can be written as a file."""
    if out.is_dir():
        raise InputError(f"{out} is a folder, and --out is a file here: give the path of a file")
    _check_writable(out.parent)


def _check_writable(folder: Path) -> None:
    """Raise InputError unless `folder`, or the nearest one above that exists, is a folder that takes new files."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"{place} is a file, so {folder} cannot be a folder: give another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written to: give another --out, or change its permissions")
