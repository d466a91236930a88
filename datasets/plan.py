"""The sampling plan: which trials every step of a training run reads, as a pure function of the step.

A run has a fixed number of lanes. Each lane owns a contiguous share of every subject's trials and the same
number of rows of every subject in each global batch. A world size is any divisor of the number of lanes, and
a rank reads the rows of its lanes: so the rows of step `n` are the same at every world size, every batch
holds every subject in the same order, and a position in training is one integer. Nothing is communicated.

Trials come in shard order, so a lane reads a run of whole shards and, where its share begins or ends within
one, that shard too: two neighbours share at most one. Cutting at whole shards instead would spare that one but
leave lanes of unequal length, and then no epoch would visit every trial equally often.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from fmri2img.datasets.samples import Samples
from fmri2img.errors import InputError
from fmri2img.files import digest_json

Rows = dict[str, tuple[np.ndarray, np.ndarray]]
"""By subject, in sorted order: sample and repeat indices, each `(rows,)`, into that subject's table."""


class SamplingPlan:
    """`step -> rows`, for the trials of several subjects.

    The unit is the trial. Each (subject, lane) is an endless stream: position `p` lies in the stream's own
    epoch `p // trials`, and each own epoch visits every trial of the lane once, in an order drawn from
    (fingerprint, seed, subject, lane, epoch).

    Args:
        tables: training samples by subject.
        fingerprint: of the data set.
        seed: of the order.
        global_batch: rows of one step over all lanes and subjects.
        lanes: unit of data parallelism.
        sessions: only trials of these sessions, for all subjects or by subject; None for all.

    Raises:
        InputError: the batch does not divide, or a lane would have too few trials to fill its rows.
    """

    def __init__(
        self,
        tables: Mapping[str, Samples],
        *,
        fingerprint: str,
        seed: int,
        global_batch: int,
        lanes: int,
        sessions: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    ) -> None:
        self.subjects = sorted(tables)
        self.lanes, self.global_batch, self.seed, self.fingerprint = lanes, global_batch, seed, fingerprint
        if not self.subjects or lanes < 1:
            raise InputError(
                f"A plan needs a subject and a lane, not {len(self.subjects)} and {lanes}: give both."
            )
        unit = lanes * len(self.subjects)
        if global_batch < 1 or global_batch % unit:
            below, above = global_batch // unit * unit, (global_batch // unit + 1) * unit
            choice = f"{below} or {above}" if below > 0 else f"{above}"
            raise InputError(
                f"A global batch of {global_batch} cannot hold equally many rows of {len(self.subjects)} "
                f"subjects in each of {lanes} lanes: it must be a multiple of {unit}, such as {choice}."
            )
        self.rows = global_batch // unit
        self._shards = {name: tables[name].shard for name in self.subjects}
        self._trials = {name: trials_of(tables[name], _chosen(sessions, name)) for name in self.subjects}
        fewest = min(self.subjects, key=lambda name: self.trials[name])
        self._check_enough(fewest, self.trials[fewest])
        self._orders: dict[tuple[str, int], tuple[int, np.ndarray]] = {}

    @property
    def world_sizes(self) -> list[int]:
        """The world sizes at which the plan can be read: the divisors of the number of lanes."""
        return [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]

    @property
    def trials(self) -> dict[str, int]:
        """Number of trials of each subject."""
        return {name: len(samples) for name, (samples, _) in self._trials.items()}

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every lane has visited each trial of the subject that has most."""
        return max(
            -(-stop // self.rows)
            for stop in (self._size(max(self.trials.values()), lane) for lane in range(self.lanes))
        )

    def lane_trials(self, subject: str, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample and repeat indices of every trial a lane owns, in shard order."""
        samples, repeats = self._trials[subject]
        share = slice(len(samples) * lane // self.lanes, len(samples) * (lane + 1) // self.lanes)
        return samples[share], repeats[share]

    def lane_rows(self, step: int, lane: int) -> Rows:
        """The rows of one lane in the batch of one step (from 0)."""
        if not 0 <= lane < self.lanes or step < 0:
            raise InputError(
                f"Lane {lane} at step {step}: lanes are 0 to {self.lanes - 1} and steps start at 0."
            )
        return {subject: self._stream(subject, lane, step) for subject in self.subjects}

    def rank_lanes(self, rank: int, world_size: int) -> range:
        """The lanes a rank reads.

        Raises:
            InputError: the world size does not divide the number of lanes.
        """
        if world_size not in self.world_sizes:
            allowed = ", ".join(str(n) for n in self.world_sizes)
            raise InputError(
                f"{self.lanes} lanes cannot feed {world_size} workers: the number of workers must divide it. "
                f"Use one of {allowed}."
            )
        if not 0 <= rank < world_size:
            raise InputError(f"Rank {rank} is not one of {world_size} workers: use 0 to {world_size - 1}.")
        each = self.lanes // world_size
        return range(rank * each, (rank + 1) * each)

    def rank_rows(self, step: int, rank: int, world_size: int) -> Rows:
        """The rows of one rank in the batch of one step: its lanes one after the other, for each subject."""
        lanes = [self.lane_rows(step, lane) for lane in self.rank_lanes(rank, world_size)]
        return {
            subject: (
                np.concatenate([lane[subject][0] for lane in lanes]),
                np.concatenate([lane[subject][1] for lane in lanes]),
            )
            for subject in self.subjects
        }

    def lane_shards(self, subject: str, lane: int) -> list[int]:
        """The shards a lane reads of a subject, by their position in the manifest, ascending."""
        return np.unique(self._shards[subject][self.lane_trials(subject, lane)[0]]).tolist()

    def upcoming_shards(self, step: int, rank: int, world_size: int) -> list[int]:
        """Every shard a rank reads from a step on, by position in the manifest, the first needed first."""
        needed: dict[int, int] = {}
        for lane in self.rank_lanes(rank, world_size):
            for subject in self.subjects:
                samples, _ = self.lane_trials(subject, lane)
                epoch, place = divmod(step * self.rows, len(samples))
                now = self._order(subject, lane, epoch, len(samples))[place:]
                after = self._drawn(subject, lane, epoch + 1, len(samples))
                shards = self._shards[subject][samples[np.concatenate([now, after])]]
                found, places = np.unique(shards, return_index=True)
                for shard, first in zip(found.tolist(), places.tolist(), strict=True):
                    due = first // self.rows
                    needed[shard] = min(due, needed.get(shard, due))
        return sorted(needed, key=lambda shard: (needed[shard], shard))

    def _stream(self, subject: str, lane: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        samples, repeats = self.lane_trials(subject, lane)
        epoch, place = divmod(step * self.rows, len(samples))
        chosen = self._order(subject, lane, epoch, len(samples))[place : place + self.rows]
        if len(chosen) < self.rows:  # never more than one own epoch ends: a lane has at least as many trials
            rest = self._order(subject, lane, epoch + 1, len(samples))[: self.rows - len(chosen)]
            chosen = np.concatenate([chosen, rest])
        return samples[chosen], repeats[chosen]

    def _order(self, subject: str, lane: int, epoch: int, size: int) -> np.ndarray:
        known = self._orders.get((subject, lane))
        if known is None or known[0] != epoch:
            known = epoch, self._drawn(subject, lane, epoch, size)
            self._orders[subject, lane] = known
        return known[1]

    def _drawn(self, subject: str, lane: int, epoch: int, size: int) -> np.ndarray:
        digest = digest_json([self.fingerprint, self.seed, subject, lane, epoch])
        draws = np.random.Philox(int(digest[:32], 16)).random_raw(size)
        return np.argsort(draws, kind="stable")

    def _size(self, trials: int, lane: int) -> int:
        return trials * (lane + 1) // self.lanes - trials * lane // self.lanes

    def _check_enough(self, subject: str, trials: int) -> None:
        if trials // self.lanes >= self.rows:
            return
        fewest = trials // self.lanes
        way = (
            f"a global batch of at most {fewest * self.lanes * len(self.subjects)}"
            if fewest
            else "fewer lanes"
        )
        raise InputError(
            f"{subject} has {trials} training trials in the chosen sessions, too few to fill {self.rows} "
            f"rows in each of {self.lanes} lanes with different ones: use {way}, or more sessions."
        )


def trials_of(samples: Samples, sessions: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sample and repeat indices of every trial of the chosen sessions, in shard order.

    Raises:
        InputError: a session is chosen that has no trial of the subject.
    """
    present = samples.sessions >= 0
    if sessions is not None:
        found = np.unique(samples.sessions[present]).tolist()
        missing = sorted(set(sessions) - set(found))
        if missing:
            raise InputError(
                f"{samples.subject} has no training trials in sessions {missing}: choose from {found}."
            )
        present &= np.isin(samples.sessions, list(sessions))
    rows, repeats = np.nonzero(present)
    return rows.astype(np.int64), repeats.astype(np.int64)


def hold_out(
    tables: Mapping[str, Samples], *, seed: int, fraction: float | None = None, count: int | None = None
) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Split training samples by picture into training and validation.

    A picture's side depends on its id and the seed alone, so it is the same for every subject: by `fraction`
    also for subjects that are not in `tables`; by `count`, that many pictures of all seen by `tables`.

    Raises:
        InputError: not exactly one of `fraction` and `count`, or nothing left on a side.
    """
    if (fraction is None) == (count is None):
        raise InputError(
            f"fraction={fraction} and count={count}: give exactly one of them to hold pictures out."
        )
    ids = np.unique(np.concatenate([table.nsd_id for table in tables.values()]))
    draws = {int(n): _draw(int(n), seed) for n in ids}
    if fraction is not None:
        held = [n for n, draw in draws.items() if draw < fraction]
    else:
        held = sorted(draws, key=lambda n: draws[n])[:count]
    if not 0 < len(held) < len(ids):
        raise InputError(
            f"Holding out {len(held)} of {len(ids)} pictures leaves one side empty: "
            "choose a fraction or count that leaves pictures on both."
        )
    masks = {subject: np.isin(table.nsd_id, held) for subject, table in tables.items()}
    training = {subject: table.take(np.flatnonzero(~masks[subject])) for subject, table in tables.items()}
    validation = {subject: table.take(np.flatnonzero(masks[subject])) for subject, table in tables.items()}
    return training, validation


def _draw(nsd_id: int, seed: int) -> float:
    digest = hashlib.sha256(f"hold out {seed} {nsd_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _chosen(
    sessions: Mapping[str, Sequence[int]] | Sequence[int] | None, subject: str
) -> Sequence[int] | None:
    return sessions.get(subject) if isinstance(sessions, Mapping) else sessions
