"""Builds a data set folder from any trial source, one session and one shard in memory at a time.

Statistics come from training trials alone. The folder is made in a hidden sibling, the manifest is written
last and the folder renamed into place, so a build that dies leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

import fmri2img
from fmri2img.datasets.columns import Normalise, ResponsesColumn, stimuli_members
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.manifest import PARTITIONS, RESERVED_FOLDERS, seal, write_manifest
from fmri2img.datasets.npy import pack_npz
from fmri2img.datasets.source import Progress, SubjectSource, TrialSource, silent
from fmri2img.datasets.spill import TrialSpill, check_session, mark_test, session_numbers
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import write_column, write_file
from fmri2img.errors import Fmri2imgError, InputError
from fmri2img.files import staged_folder


def build_dataset(
    source: TrialSource,
    out: str | Path,
    *,
    samples_per_shard: int = 64,
    normalise: Normalise = "session",
    progress: Progress | None = None,
) -> Dataset:
    """Write a data set folder and open it.

    Args:
        source: where trials, pictures and captions come from.
        out: the folder to make; it must not exist.
        samples_per_shard: pictures of one subject in a shard.
        normalise: `session` z-scores each voxel with mean and standard deviation of the session's training
            trials (of all the subject's training trials where a session has fewer than two); `pooled` with
            those of all training trials; `none` stores responses as they are.
        progress: called with (what, done, total).

    Raises:
        InputError: `out` exists, or the source cannot be stored as it is.
    """
    out = Path(out).absolute()
    if out.exists():
        raise InputError(
            f"{out} exists already, and a data set is never overwritten: remove it or name another folder."
        )
    if samples_per_shard < 1 or normalise not in get_args(Normalise):
        raise InputError(
            f"samples_per_shard={samples_per_shard} must be at least 1, and normalise={normalise!r} one of "
            f"{list(get_args(Normalise))}."
        )
    try:
        with staged_folder(out) as staging:
            write_manifest(
                staging, seal(_Build(source, staging, samples_per_shard, normalise, progress or silent).run())
            )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Fmri2imgError(
            f"No space is left for {out} ({error.strerror}), so nothing was built: "
            "free some or choose another disk."
        ) from error
    return Dataset.open(out)


@dataclass
class _Build:
    """One build: the plain data of the manifest grow in it."""

    source: TrialSource
    root: Path
    per_shard: int
    normalise: Normalise
    progress: Progress
    shards: list[dict[str, Any]] = field(default_factory=list)
    pooled: dict[str, list[int]] = field(default_factory=dict)
    constant: dict[str, int] = field(default_factory=dict)
    clipped: int = 0

    def run(self) -> dict[str, Any]:
        subjects: dict[str, Any] = {}
        for subject in sorted(self.source.subjects):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}", subject) or subject in RESERVED_FOLDERS:
                raise InputError(
                    f"{subject!r} cannot be a subject id: use up to 40 letters, digits and hyphens, "
                    f"other than {' and '.join(RESERVED_FOLDERS)}."
                )
            subjects[subject] = self._subject(subject, self.source.subjects[subject])
        if not self.shards:
            raise InputError(
                f"{self.source.name} holds no trials: give a source with at least one subject and session."
            )
        return {
            "name": self.source.name,
            "terms": self.source.terms,
            "provenance": dict(self.source.provenance) | {"built_by": f"fmri2img {fmri2img.__version__}"},
            "subjects": subjects,
            "splits": {
                "train": {"partition": "train", "description": "every training trial"},
                "test": {"partition": "test", "description": "every test trial"},
            },
            "normalisation": {
                "method": self.normalise,
                "pooled_sessions": self.pooled,
                "constant_voxels": self.constant,
                "clipped": self.clipped,
            },
            "shards": self.shards,
        }

    def _subject(self, subject: str, source: SubjectSource) -> dict[str, Any]:
        table, rois = _voxel_table(subject, source)
        spill = TrialSpill(self.root / f".{subject}.spill", source.voxels)
        try:
            sessions = session_numbers(subject, source)
            for done, session in enumerate(sessions):
                self.progress(f"reading {subject}", done, len(sessions))
                trials = source.session(session)
                check_session(subject, source.voxels, session, trials)
                spill.add(session, trials, mark_test(self.source, subject, session, trials.nsd_ids))
            self.progress(f"reading {subject}", len(sessions), len(sessions))
            scales = self._scales(subject, spill)
            self._write(subject, spill, scales)
        finally:
            spill.close()
        return {
            "voxels": source.voxels,
            "sessions": sorted(set(spill.session)),
            "rois": rois,
            "table": write_file(self.root, f"subjects/{subject}.npz", pack_npz(table)).model_dump(),
        }

    def _scales(self, subject: str, spill: TrialSpill) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation `(voxels,)` to normalise each session with."""
        pooled = Moments()
        for moments in spill.moments.values():
            pooled.merge(moments)
        if self.normalise == "none":
            self._refuse_tiny(subject, pooled)
            return {session: (np.zeros(()), np.ones(())) for session in spill.moments}
        if pooled.count < 2:
            raise InputError(
                f"{subject} has {pooled.count} training trials, and z-scoring needs two of them: "
                "change the split, or build with normalise 'none'."
            )
        scales, constant = {}, 0
        for session, moments in spill.moments.items():
            alone = self.normalise == "session" and moments.count >= 2
            mean, std, unvarying = (moments if alone else pooled).mean_std()
            scales[session], constant = (mean, std), max(constant, unvarying)
            if self.normalise == "session" and not alone and session in spill.session:
                self.pooled.setdefault(subject, []).append(session)
        self.constant[subject] = constant
        return scales

    def _refuse_tiny(self, subject: str, pooled: Moments) -> None:
        spread = float(np.median(pooled.mean_std()[1])) if pooled.count else 1.0
        if spread < 1e-3:
            raise InputError(
                f"{subject}: responses vary by {spread:g} (median over voxels), too little for float16: "
                "multiply them, or build with normalise 'session'."
            )

    def _write(
        self, subject: str, spill: TrialSpill, scales: dict[int, tuple[np.ndarray, np.ndarray]]
    ) -> None:
        ids, test = np.array(spill.nsd_id, np.int64), np.array(spill.test, bool)
        both = set(ids[test].tolist()) & set(ids[~test].tolist())
        pictures, done = len(set(ids.tolist())) + len(both), 0
        width = max(5, len(str(ids.max(initial=0))))
        for partition in PARTITIONS:
            positions = np.flatnonzero(test == (partition == "test"))
            positions = positions[np.argsort(ids[positions], kind="stable")]
            cuts = np.flatnonzero(np.diff(ids[positions])) + 1
            samples = [group for group in np.split(positions, cuts) if len(group)]
            for number, first in enumerate(range(0, len(samples), self.per_shard)):
                self.progress(f"writing {subject}", done, pictures)
                chosen = samples[first : first + self.per_shard]
                seen = [int(ids[positions[0]]) for positions in chosen]
                keys = [f"{subject}_nsd{n:0{width}d}" + (f"_{partition}" if n in both else "") for n in seen]
                name = f"{subject}/{partition}-{number:05d}"
                responses = ResponsesColumn(subject, spill, scales, keys, chosen, self.normalise)
                columns = {
                    "responses": write_column(
                        self.root, name, "responses", responses.members(), extra=responses.extra
                    ),
                    "stimuli": write_column(
                        self.root, name, "stimuli", stimuli_members(self.source, keys, seen)
                    ),
                }
                self.clipped += responses.clipped
                self.shards.append(
                    {
                        "name": name,
                        "subject": subject,
                        "partition": partition,
                        "number": number,
                        "samples": len(chosen),
                        "trials": sum(len(s) for s in chosen),
                        "columns": {column: entry.model_dump() for column, entry in columns.items()},
                    }
                )
                done += len(chosen)
        self.progress(f"writing {subject}", done, pictures)


def _voxel_table(subject: str, source: SubjectSource) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The voxel table, checked, and the number of voxels of each ROI."""
    table = {name: np.asarray(array) for name, array in source.voxel_table().items()}
    for name, array in table.items():
        if array.ndim < 1 or len(array) != source.voxels or array.dtype.kind not in "biufU":
            raise InputError(
                f"{subject}: {name} of the voxel table is {array.dtype} {array.shape}, and must be numbers "
                f"or strings with {source.voxels} entries, one a voxel."
            )
    ceiling = table.get("noise_ceiling")
    if ceiling is not None:
        if not (ceiling.ndim == 1 and ceiling.dtype.kind == "f" and ((ceiling >= 0) & (ceiling <= 1)).all()):
            raise InputError(
                f"{subject}: noise_ceiling must be one number in [0, 1] for each voxel, and is not."
            )
        table["noise_ceiling"] = ceiling.astype(np.float32)
    if "roi" not in table:
        return table, {}
    if table["roi"].dtype.kind != "U" or table["roi"].ndim != 1:
        raise InputError(f"{subject}: roi must be one string for each voxel, not {table['roi'].dtype}.")
    names, counts = np.unique(table["roi"], return_counts=True)
    return table, {str(name): int(count) for name, count in zip(names, counts, strict=True) if name}
