"""Builds a data set folder from any trial source, one session and one shard in memory at a time.

Statistics come from training trials alone. The folder grows in a hidden one beside it (`journal.Workshop`),
the manifest is written last and the folder renamed into place, so a build that dies leaves nothing that looks
finished; the same build goes on from the sessions and shards that are done.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

import fmri2img
from fmri2img.datasets.build_subject import SubjectBuild
from fmri2img.datasets.checks import (
    check_subject,
    checked_splits,
    session_numbers,
)
from fmri2img.datasets.croissant import write_croissant
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.journal import Workshop, finished_before, workshop_path
from fmri2img.datasets.manifest import seal, write_manifest
from fmri2img.datasets.scaling import Normalise
from fmri2img.datasets.source import Progress, TrialSource, silent
from fmri2img.errors import Fmri2imgError, InputError
from fmri2img.files import canonical_json, digest_json

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_dataset(
    source: TrialSource,
    out: str | Path,
    *,
    samples_per_shard: int = 64,
    normalise: Normalise = "session",
    progress: Progress | None = None,
) -> Dataset:
    """Write a data set folder and open it.

    The same call after one that was killed, or ran out of space, goes on from the sessions and shards that
    are done and writes the same bytes. After an `InputError` nothing is kept, since the input must change.

    Args:
        source: where trials, pictures and captions come from.
        out: the folder to make; it must not exist.
        samples_per_shard: pictures of one subject in a shard.
        normalise: `session` z-scores each voxel with mean and standard deviation of the session's training
            trials (of all the subject's training trials where a session has fewer than two); `pooled` with
            those of all training trials; `none` stores responses as they are. Where trials are windows, the
            statistics are over their time points too.
        progress: called with (what, done, total).

    Raises:
        InputError: `out` exists or is being built, another build of it was begun, or the source cannot be
            stored as it is.
    """
    out = Path(out).absolute()
    if samples_per_shard < 1 or normalise not in get_args(Normalise):
        raise InputError(
            f"samples_per_shard={samples_per_shard} must be at least 1, and normalise={normalise!r} one of "
            f"{list(get_args(Normalise))}."
        )
    identity = _identity(source, samples_per_shard, normalise)
    if out.exists():
        if finished_before(out, identity):
            return Dataset.open(out)
        raise InputError(
            f"{out} exists already, and a data set is never overwritten: remove it or name another folder."
        )
    try:
        with Workshop(out, identity) as workshop:
            build = _Build(source, workshop, samples_per_shard, normalise, progress or silent)
            manifest = seal(build.run())
            write_croissant(workshop.data, manifest)
            write_manifest(workshop.data, manifest)
            workshop.commit()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Fmri2imgError(
            f"No space is left for {out} ({error.strerror}): free some and give the same command, which goes on "
            f"from what is done, or remove {workshop_path(out)} and choose another disk."
        ) from error
    return Dataset.open(out)


def _identity(source: TrialSource, samples_per_shard: int, normalise: str) -> dict[str, str]:
    """What must be the same for a build to go on with another one's work."""
    given: dict[str, Any] = {
        "source": source.name,
        "terms": source.terms,
        "samples_per_shard": samples_per_shard,
        "normalise": normalise,
        "fmri2img": fmri2img.__version__,
        "splits": digest_json(checked_splits(source)),
    }
    given |= {f"provenance.{key}": value for key, value in source.provenance.items()}
    for subject, person in source.subjects.items():
        check_subject(subject)
        given[f"{subject}.voxels"] = person.voxels
        given[f"{subject}.sessions"] = session_numbers(subject, person)
        given[f"{subject}.voxel_table"] = _digest(person.voxel_table())
    return {key: canonical_json(value).decode() for key, value in given.items()}


def _digest(table: Mapping[str, np.ndarray]) -> str:
    """Which voxels a build has: as many others are not the same data."""
    hasher = hashlib.sha256()
    for name in sorted(table):
        array = np.ascontiguousarray(table[name])
        hasher.update(f"{name} {array.dtype} {array.shape} ".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()


@dataclass
class _Build:
    """One build: the plain data of the manifest grow in it."""

    source: TrialSource
    workshop: Workshop
    per_shard: int
    normalise: Normalise
    progress: Progress
    splits: dict[str, dict[str, Any]] = field(init=False)

    def run(self) -> dict[str, Any]:
        self.splits = checked_splits(self.source)
        common = self.source, self.workshop, self.per_shard, self.normalise, self.progress
        people = {
            subject: SubjectBuild(*common, subject, self.splits).run()
            for subject in sorted(self.source.subjects)
        }
        shards = [shard for person in people.values() for shard in person["shards"]]
        if not shards:
            raise InputError(
                f"{self.source.name} holds no trials: give a source with at least one subject and session."
            )
        return {
            "name": self.source.name,
            "terms": self.source.terms,
            "provenance": dict(self.source.provenance) | {"built_by": f"fmri2img {fmri2img.__version__}"},
            "subjects": {subject: person["entry"] for subject, person in people.items()},
            "splits": self.splits,
            "normalisation": {
                "method": self.normalise,
                "pooled_sessions": {s: person["pooled"] for s, person in people.items() if person["pooled"]},
                "constant_voxels": {s: person["constant"] for s, person in people.items()}
                if self.normalise != "none"
                else {},
                "clipped": sum(person["clipped"] for person in people.values()),
            },
            "shards": shards,
        }
