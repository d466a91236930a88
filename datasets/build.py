"""Builds a data set folder from any trial source, one session and one shard in memory at a time.

Statistics come from training trials alone. The folder grows in a hidden one beside it (`journal.Workshop`),
the manifest is written last and the folder renamed into place, so a build that dies leaves nothing that looks
finished; the same build goes on from the sessions and shards that are done.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

import fmri2img
from fmri2img.datasets.checks import (
    check_subject,
    check_test_pictures,
    checked_responses,
    checked_splits,
    checked_table,
    mark_test,
    session_numbers,
)
from fmri2img.datasets.columns import Normalise, ResponsesColumn, stimuli_members
from fmri2img.datasets.croissant import write_croissant
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.journal import Workshop, finished_before, workshop_path
from fmri2img.datasets.manifest import PARTITIONS, seal, write_manifest
from fmri2img.datasets.npy import pack_npz
from fmri2img.datasets.source import Progress, SubjectSource, TrialSource, silent
from fmri2img.datasets.spill import Session, TrialSpill
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import make_durable, write_column, write_file
from fmri2img.errors import Fmri2imgError, InputError
from fmri2img.files import canonical_json, digest_json, sha256_file

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
    return {key: canonical_json(value).decode() for key, value in given.items()}


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
        people = {subject: self._subject(subject) for subject in sorted(self.source.subjects)}
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

    def _subject(self, subject: str) -> dict[str, Any]:
        """Everything of one subject: what the manifest says of it, its shards and how it was normalised."""
        source, done = self.source.subjects[subject], self.workshop.done.get(("subject", subject))
        root = self.workshop.data
        if done is not None:
            return done
        table, rois = checked_table(subject, source)
        spill = TrialSpill(self.workshop.folder, subject, source.voxels)
        try:
            self._read(spill, source)
            scaling = self._scaling(spill)
            shards = list(self._write(spill, scaling))
        finally:
            spill.close()
        entry: dict[str, Any] = {
            "voxels": source.voxels,
            "sessions": sorted(set(spill.session.tolist())),
            "rois": rois,
            "table": write_file(root, f"subjects/{subject}.npz", pack_npz(table)).model_dump(),
            "window": spill.window,
            "behaviour": sorted(spill.behaviour),
        }
        clipped = sum(shard.pop("clipped") for shard in shards)
        person = {"entry": entry, "pooled": scaling.pooled, "constant": scaling.constant, "clipped": clipped}
        person |= {"shards": shards}
        written = [file["file"] for shard in shards for file in _files(shard["columns"])]
        make_durable(root, [entry["table"]["file"], *written])
        self.workshop.record("subject", subject, **person)
        spill.remove()
        return person

    def _read(self, spill: TrialSpill, source: SubjectSource) -> None:
        """Take every session in: from the spill of an earlier build, or from the source."""
        subject, sessions, restoring = spill.subject, session_numbers(spill.subject, source), True
        for done, session in enumerate(sessions):
            self.progress(f"reading {subject}", done, len(sessions))
            record = self.workshop.done.get(("session", f"{subject} {session}"))
            restoring = restoring and record is not None and spill.restore(session, record)
            if not restoring:
                found = self._session(subject, session, source, spill)
                self.workshop.record("session", f"{subject} {session}", **found)
        self.progress(f"reading {subject}", len(sessions), len(sessions))
        spill.close_intake()
        trained, tested = (set(spill.nsd_id[spill.test == side].tolist()) for side in (False, True))
        check_test_pictures(subject, self.splits, trained, tested)

    def _session(
        self, subject: str, session: int, source: SubjectSource, spill: TrialSpill
    ) -> dict[str, Any]:
        trials = source.session(session)
        responses = checked_responses(subject, source.voxels, session, trials)
        ids = np.asarray(trials.nsd_ids).astype(np.int64)
        numbers = np.arange(1, len(ids) + 1) if trials.numbers is None else np.asarray(trials.numbers)
        test, moments = mark_test(self.source, subject, session, ids), Moments()
        steps = responses.shape[1] if responses.ndim == 3 else 1
        moments.add(responses.reshape(-1, source.voxels), np.repeat(~test, steps))
        behaviour = {name: np.asarray(v, np.float64) for name, v in trials.behaviour.items()}
        known = Session(session, ids, numbers.astype(np.int64), test, behaviour, moments)
        return spill.add(known, responses)

    def _scaling(self, spill: TrialSpill) -> _Scaling:
        """What each session is normalised with."""
        pooled = Moments()
        for session in spill.sessions:
            pooled.merge(session.moments)
        steps = spill.window or 1
        if self.normalise == "none":
            _refuse_tiny(spill.subject, pooled)
            return _Scaling(None, [], 0)
        if pooled.count < 2 * steps:
            raise InputError(
                f"{spill.subject} has {pooled.count // steps} training trials, and z-scoring needs two of them: "
                "change the split, or build with normalise 'none'."
            )
        scaling = _Scaling({}, [], 0)
        for session in spill.sessions:
            alone = self.normalise == "session" and session.moments.count >= 2 * steps
            scaling.add(session, session.moments if alone else pooled)
            if self.normalise == "session" and not alone and len(session.nsd_id):
                scaling.pooled.append(session.number)
        return scaling

    def _write(self, spill: TrialSpill, scaling: _Scaling) -> Iterator[dict[str, Any]]:
        """Write the shards that are not there yet; yields what the manifest says of each."""
        subject, ids, test = spill.subject, spill.nsd_id, spill.test
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
                head = {
                    "name": name,
                    "subject": subject,
                    "partition": partition,
                    "number": number,
                    "samples": len(chosen),
                    "trials": sum(len(s) for s in chosen),
                }
                responses = ResponsesColumn(spill, scaling.scales, keys, chosen)
                yield head | self._shard(name, responses, seen)
                done += len(chosen)
        self.progress(f"writing {subject}", done, pictures)

    def _shard(self, name: str, responses: ResponsesColumn, seen: list[int]) -> dict[str, Any]:
        """Columns of one shard and how many values were clipped in it, written unless they are there."""
        root, done = self.workshop.data, self.workshop.done.get(("shard", name))
        if done is not None and _there(root, done["columns"]):
            return dict(done)
        pictures = stimuli_members(self.source, responses.keys, seen)
        columns = {
            "responses": write_column(
                root, name, "responses", responses.members(), extra=responses.extra, durable=False
            ),
            "stimuli": write_column(root, name, "stimuli", pictures, durable=False),
        }
        found = {column: entry.model_dump() for column, entry in columns.items()}
        self.workshop.record("shard", name, columns=found, clipped=responses.clipped)
        return {"columns": found, "clipped": responses.clipped}


@dataclass
class _Scaling:
    """Means and factors by session, the sessions that took those of all, and how many voxels are constant."""

    scales: dict[int, tuple[np.ndarray, np.ndarray]] | None
    pooled: list[int]
    constant: int

    def add(self, session: Session, moments: Moments) -> None:
        """Normalise a session by these moments."""
        mean, std, unvarying = moments.mean_std()
        assert self.scales is not None
        factor = np.minimum(1 / std, np.finfo(np.float32).max)
        self.scales[session.number] = mean.astype(np.float32), factor.astype(np.float32)
        self.constant = max(self.constant, unvarying)


def _refuse_tiny(subject: str, pooled: Moments) -> None:
    spread = float(np.median(pooled.mean_std()[1])) if pooled.count else 1.0
    if spread < 1e-3:
        raise InputError(
            f"{subject}: responses vary by {spread:g} (median over voxels), too little for float16: "
            "multiply them, or build with normalise 'session'."
        )


def _files(columns: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the manifest says of each file of a shard."""
    for column in columns.values():
        yield column
        yield column["index"]


def _there(root: Path, columns: dict[str, dict[str, Any]]) -> bool:
    """Whether files that an earlier build wrote, and did not wait for, are whole."""
    return all(
        (root / entry["file"]).is_file() and sha256_file(root / entry["file"]) == entry["sha256"]
        for entry in _files(columns)
    )
