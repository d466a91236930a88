"""Old manifests load through pure steps, one version at a time; newer ones are refused with the way out."""

from collections.abc import Callable, Mapping
from typing import Any

from fmri2img.checkpoints_schema.manifest import SCHEMA_VERSION
from fmri2img.errors import InputError

Document = dict[str, Any]
Migration = Callable[[Document], Document]

MIGRATIONS: dict[int, Migration] = {}
"""`MIGRATIONS[n]` turns a document of version n into one of version n + 1; it must not change its argument.

There is none yet. Each new one comes with a committed golden folder of the version it reads.
"""


def migrate(
    document: Document,
    *,
    to: int = SCHEMA_VERSION,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> Document:
    """The document in schema version `to`.

    Raises InputError when its version is missing, newer than this program, or too old to be read.
    """
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(
            f"schema_version is {version!r}, not a whole number from 1: this is no checkpoint of fmri2img"
        )
    if version > to:
        raise InputError(
            f"schema_version {version} is newer than {to}, the newest this fmri2img reads: "
            "upgrade with `pip install --upgrade fmri2img`"
        )
    while version < to:
        if version not in migrations:
            raise InputError(
                f"schema_version {version} is older than this fmri2img reads: "
                "open it once with the release that wrote it or the one after"
            )
        document = {**migrations[version](document), "schema_version": version + 1}
        version += 1
    return document
