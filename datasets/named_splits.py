"""Further named splits of a data set that is built: the same files under a new manifest."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.manifest import DatasetManifest, seal, write_manifest
from fmri2img.datasets.remote import refuse_address
from fmri2img.datasets.source import NamedSplit
from fmri2img.errors import InputError
from fmri2img.files import staged_folder


def add_splits(source: Path, out: Path, splits: Mapping[str, NamedSplit]) -> Dataset:
    """Make a data set folder of the same files with more named splits, whole or not at all.

    Splits are part of a data set's fingerprint, so the folder that runs were made from stays as it is. Files are hard
    links where the file system allows, and copies where not.

    Raises:
        InputError: a name that is taken or no name, a picture that is not there, or `out` exists.
    """
    refuse_address(source, "adding splits")
    dataset, out = Dataset.open(source), out.absolute()
    if out.exists():
        raise InputError(f"{out} exists: give a new folder as --out")
    plain = dataset.manifest.model_dump()
    for name, split in splits.items():
        if name in plain["splits"] or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name):
            raise InputError(
                f"{name!r} cannot name a further split: use letters, digits, '-' and '_', and none of "
                f"{', '.join(plain['splits'])}."
            )
        plain["splits"][name] = {
            "partition": split.partition,
            "nsd_ids": None if split.nsd_ids is None else sorted({int(n) for n in split.nsd_ids}),
            "description": split.description,
            "last_session": dict(split.last_session),
        }
    manifest = seal(plain)
    with staged_folder(out) as staging:
        for file in files_of(dataset.manifest):
            target = staging / file
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(dataset.path / file, target)
        write_manifest(staging, manifest)
    return Dataset.open(out)


def files_of(manifest: DatasetManifest) -> Iterator[str]:
    """Every file that a manifest names, itself left out."""
    for shard in manifest.shards:
        for column in shard.columns.values():
            yield column.file
            yield column.index.file
    for subject in manifest.subjects.values():
        yield subject.table.file
    for space in manifest.feature_spaces.values():
        yield space.statistics.file


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
