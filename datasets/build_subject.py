"""Builds one subject of a data set: reads its sessions, normalises its trials and writes its shards.

Each finished session and shard is noted in the journal of the workshop, so that the next build goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri2img.datasets.checks import (
    check_test_pictures,
    checked_responses,
    checked_table,
    mark_test,
    session_numbers,
)
from fmri2img.datasets.columns import ResponsesColumn, stimuli_members
from fmri2img.datasets.journal import Workshop
from fmri2img.datasets.manifest import PARTITIONS
from fmri2img.datasets.npy import pack_npz
from fmri2img.datasets.scaling import Normalise, Pooled, own_scale, pool
from fmri2img.datasets.source import Progress, SubjectSource, TrialSource
from fmri2img.datasets.spill import Session, TrialSpill
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import make_durable, write_column, write_file
from fmri2img.files import sha256_file


@dataclass
class SubjectBuild:
    """One subject of one build.

    Attributes:
        source, workshop, per_shard, normalise, progress: of the build.
        subject: whose.
        splits: of the manifest.
    """

    source: TrialSource
    workshop: Workshop
    per_shard: int
    normalise: Normalise
    progress: Progress
    subject: str
    splits: dict[str, dict[str, Any]]

    def run(self) -> dict[str, Any]:
        """Everything of one subject: what the manifest says of it, its shards and how it was normalised."""
        subject, root = self.subject, self.workshop.data
        source, done = self.source.subjects[subject], self.workshop.done.get(("subject", subject))
        if done is not None:
            return done
        table, rois = checked_table(subject, source)
        spill = TrialSpill(self.workshop.folder, subject, source.voxels)
        try:
            self._read(spill, source)
            known = [(s.number, len(s.nsd_id), s.moments) for s in spill.sessions]
            pooled = pool(subject, self.normalise, known, spill.window or 1)
            shards = list(self._write(spill, pooled))
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
        clipped = sum(shard.pop("clipped") for shard in shards) + sum(s.clipped for s in spill.sessions)
        person = {"entry": entry, "pooled": pooled.sessions, "constant": pooled.constant, "clipped": clipped}
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
                found = self._session(session, source, spill)
                self.workshop.record("session", f"{subject} {session}", **found)
        self.progress(f"reading {subject}", len(sessions), len(sessions))
        spill.close_intake()
        trained, tested = (set(spill.nsd_id[spill.test == side].tolist()) for side in (False, True))
        check_test_pictures(subject, self.splits, trained, tested)

    def _session(self, session: int, source: SubjectSource, spill: TrialSpill) -> dict[str, Any]:
        """Read, check and spill one session, normalised if it can be already."""
        trials = source.session(session)
        responses = checked_responses(self.subject, source.voxels, session, trials)
        ids = np.asarray(trials.nsd_ids).astype(np.int64)
        numbers = np.arange(1, len(ids) + 1) if trials.numbers is None else np.asarray(trials.numbers)
        test, moments = mark_test(self.source, self.subject, session, ids), Moments()
        steps = responses.shape[1] if responses.ndim == 3 else 1
        moments.add(responses.reshape(-1, source.voxels), np.repeat(~test, steps))
        behaviour = {name: _as_written(np.asarray(v)) for name, v in trials.behaviour.items()}
        scale, clipped = own_scale(self.normalise, moments, steps), 0
        if scale is not None:
            responses, clipped = scale.apply(responses)
        known = ids, numbers.astype(np.int64), test, behaviour, moments, scale is not None, clipped
        return spill.add(Session(session, *known), responses)

    def _write(self, spill: TrialSpill, pooled: Pooled) -> Iterator[dict[str, Any]]:
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
                responses = ResponsesColumn(spill, pooled.scale, keys, chosen)
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


def _as_written(values: np.ndarray) -> np.ndarray:
    """Numbers as float64; those of fewer digits are taken as they print, 0.84 and not 0.8399999737739563."""
    short = values.dtype.kind == "f" and values.dtype.itemsize < 8
    return (values.astype(str) if short else values).astype(np.float64)


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
