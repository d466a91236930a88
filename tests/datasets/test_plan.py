"""The rows of a step are the same at every world size, and every trial comes once in an own epoch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmri2img.datasets import Samples, SamplingPlan, hold_out
from fmri2img.datasets.plan import trials_of
from fmri2img.errors import InputError


def table(subject: str, samples: int, seed: int = 0) -> Samples:
    """Samples with one to three repeats in sessions 1 to 4."""
    generator = np.random.default_rng([seed, samples])
    repeats = generator.integers(1, 4, samples)
    sessions = generator.integers(1, 5, (samples, 3)).astype(np.int16)
    sessions[np.arange(3) >= repeats[:, None]] = -1
    number = np.arange(samples)
    keys = np.array([f"{subject}_nsd{n:05d}" for n in number])
    return Samples(subject, keys, number, repeats, sessions, number // 64, number % 64)


def plan(tables: dict[str, Samples], **options: Any) -> SamplingPlan:
    usual: dict[str, Any] = {"fingerprint": "f", "seed": 0, "global_batch": 36, "lanes": 6}
    return SamplingPlan(tables, **usual | options)


THREE = {name: table(name, n) for name, n in (("subj02", 61), ("subj01", 80), ("subj07", 47))}
TWO = {name: THREE[name] for name in ("subj01", "subj02")}


@settings(deadline=None, max_examples=40)
@given(
    lanes=st.sampled_from([1, 2, 6, 8, 12, 24]),
    rows=st.integers(1, 2),
    step=st.integers(0, 200),
    seed=st.integers(0, 5),
    sizes=st.lists(st.integers(50, 90), min_size=1, max_size=3),
    sessions=st.sampled_from([None, [1, 2, 3], [2, 3, 4]]),
)
def test_the_union_over_ranks_is_the_same_at_every_world_size(
    lanes: int, rows: int, step: int, seed: int, sizes: list[int], sessions: Any
) -> None:
    tables = {f"subj{i:02d}": table(f"subj{i:02d}", n) for i, n in enumerate(sizes)}
    rows = max(1, min(rows, 48 // lanes))
    made = plan(tables, lanes=lanes, global_batch=lanes * rows * len(sizes), seed=seed, sessions=sessions)
    alone = made.rank_rows(step, 0, 1)
    assert list(alone) == sorted(tables)
    for world_size in made.world_sizes:
        ranks = [made.rank_rows(step, rank, world_size) for rank in range(world_size)]
        for subject in alone:
            assert [len(rank[subject][0]) for rank in ranks] == [rows * lanes // world_size] * world_size
            for part in (0, 1):
                joined = np.concatenate([rank[subject][part] for rank in ranks])
                assert (joined == alone[subject][part]).all()


@pytest.mark.parametrize("sessions", [None, [1, 3], {"subj01": [2], "subj02": [1, 2]}])
def test_every_trial_comes_exactly_once_in_an_own_epoch(sessions: Any) -> None:
    made = plan(TWO, lanes=2, global_batch=12, sessions=sessions)
    for subject in made.subjects:
        allowed = sessions[subject] if isinstance(sessions, dict) else sessions
        samples = TWO[subject]
        truth = {
            (i, r)
            for i in range(len(samples))
            for r in range(int(samples.repeats[i]))
            if allowed is None or samples.sessions[i, r] in allowed
        }
        owned = [
            set(zip(*map(np.ndarray.tolist, made.lane_trials(subject, lane)), strict=True)) for lane in (0, 1)
        ]
        assert owned[0] | owned[1] == truth
        assert not owned[0] & owned[1]
        for lane in (0, 1):
            size = len(owned[lane])
            steps = -(-3 * size // made.rows)
            rows = [made.lane_rows(step, lane)[subject] for step in range(steps)]
            stream = [pair for i, r in rows for pair in zip(i.tolist(), r.tolist(), strict=True)]
            for epoch in range(3):
                assert Counter(stream[epoch * size : (epoch + 1) * size]) == Counter(owned[lane])
            assert stream[:size] != stream[size : 2 * size]


def test_an_epoch_visits_every_trial_of_the_largest_subject() -> None:
    made = plan(THREE)
    largest = max(made.trials, key=lambda name: made.trials[name])
    seen = set()
    for step in range(made.steps_per_epoch):
        samples, repeats = made.rank_rows(step, 0, 1)[largest]
        seen |= set(zip(samples.tolist(), repeats.tolist(), strict=True))
    assert len(seen) == made.trials[largest] == int(THREE[largest].repeats.sum())
    slowest = max(len(made.lane_trials(largest, lane)[0]) for lane in range(made.lanes))
    assert made.steps_per_epoch == -(-slowest // made.rows)


def test_lanes_own_contiguous_shares_of_nearly_equal_size() -> None:
    made = plan(THREE)
    for subject in made.subjects:
        shares = [made.lane_trials(subject, lane)[0] for lane in range(made.lanes)]
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert (np.diff(np.concatenate(shares)) >= 0).all()


@settings(deadline=None, max_examples=30)
@given(
    lanes=st.sampled_from([1, 2, 3, 8]),
    rows=st.integers(1, 3),
    sizes=st.lists(st.integers(20, 60), min_size=1, max_size=3),
    seed=st.integers(0, 3),
)
def test_every_micro_batch_holds_every_subject_equally(
    lanes: int, rows: int, sizes: list[int], seed: int
) -> None:
    tables = {f"subj{i:02d}": table(f"subj{i:02d}", n) for i, n in enumerate(sizes)}
    made = plan(tables, lanes=lanes, global_batch=lanes * rows * len(sizes), seed=seed)
    for step in (0, 7):
        for lane in range(lanes):
            held = made.lane_rows(step, lane)
            assert list(held) == sorted(tables)
            assert [len(samples) for samples, _ in held.values()] == [rows] * len(tables)
            for subject, (samples, repeats) in held.items():
                pairs = set(zip(samples.tolist(), repeats.tolist(), strict=True))
                own = len(made.lane_trials(subject, lane)[0])  # a trial may come twice where its epoch ends
                assert len(pairs) == rows or step * rows // own < ((step + 1) * rows - 1) // own
                assert (repeats < tables[subject].repeats[samples]).all()


@settings(deadline=None, max_examples=30)
@given(each=st.integers(1, 12), lanes=st.sampled_from([1, 2, 3, 4, 6, 8]), rows=st.integers(1, 4))
def test_each_epoch_visits_every_trial_of_the_largest_subject_exactly_once(
    each: int, lanes: int, rows: int
) -> None:
    count = each * lanes * rows
    number = np.arange(count)
    keys = np.array([f"subj01_nsd{n:05d}" for n in number])
    ones = np.ones((count, 1), np.int16)
    largest = Samples("subj01", keys, number, number * 0 + 1, ones, number // 8, number % 8)
    made = plan({"subj01": largest}, lanes=lanes, global_batch=lanes * rows)
    assert made.steps_per_epoch == each
    for epoch in range(3):
        steps = range(epoch * each, (epoch + 1) * each)
        seen = np.concatenate([made.rank_rows(step, 0, 1)["subj01"][0] for step in steps])
        assert sorted(seen.tolist()) == number.tolist()


def test_the_shards_of_a_lane_are_those_of_its_trials_and_neighbours_share_at_most_one() -> None:
    big = {name: table(name, n) for name, n in (("subj01", 640), ("subj02", 500))}
    made = plan(big, lanes=4, global_batch=8)
    for subject in made.subjects:
        owned = [made.lane_shards(subject, lane) for lane in range(4)]
        for lane, shards in enumerate(owned):
            samples, _ = made.lane_trials(subject, lane)
            assert shards == sorted({int(big[subject].shard[i]) for i in samples})
            assert shards == list(range(shards[0], shards[-1] + 1))
        for one, other in pairwise(owned):
            assert len(set(one) & set(other)) <= 1
        assert set().union(*owned) == set(big[subject].shard.tolist())


@pytest.mark.parametrize("step", [0, 3, 18, 40])
def test_upcoming_shards_come_in_the_order_in_which_they_are_needed(step: int) -> None:
    big = {"subj01": table("subj01", 640)}
    made = plan(big, lanes=4, global_batch=8)
    for rank in (0, 1):
        truth: list[int] = []
        for later in range(step, step + 3 * made.steps_per_epoch):
            needed = {int(big["subj01"].shard[i]) for i in made.rank_rows(later, rank, 2)["subj01"][0]}
            truth += sorted(needed - set(truth))
        assert made.upcoming_shards(step, rank, 2) == truth


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    walked = plan(THREE)
    rows = [walked.rank_rows(step, 1, 2) for step in range(40)]
    for step in (39, 3, 17):
        fresh = plan(THREE).rank_rows(step, 1, 2)
        assert all(
            (fresh[s][0] == rows[step][s][0]).all() and (fresh[s][1] == rows[step][s][1]).all() for s in fresh
        )


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "g"}])
def test_seed_and_fingerprint_change_the_order(change: dict[str, Any]) -> None:
    one, two = plan(THREE).rank_rows(0, 0, 1), plan(THREE, **change).rank_rows(0, 0, 1)
    assert any((one[subject][0] != two[subject][0]).any() for subject in one)


def test_the_order_is_the_one_of_the_first_release() -> None:
    number = np.arange(8)
    keys = np.array([f"subj01_nsd{n:05d}" for n in number])
    single = Samples("subj01", keys, number, number * 0 + 1, np.ones((8, 1), np.int16), number * 0, number)
    rows = [
        plan({"subj01": single}, lanes=2, global_batch=4).rank_rows(step, 0, 1)["subj01"][0]
        for step in (0, 1, 2)
    ]
    assert [row.tolist() for row in rows] == [[1, 3, 7, 5], [2, 0, 4, 6], [0, 1, 5, 6]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 50}, "global batch of 50 .* it must be a multiple of 18, such as 36 or 54"),
        ({"global_batch": 5}, "multiple of 18, such as 18"),
        ({"global_batch": 1800}, "subj07 has .* use a global batch of at most 288, or more sessions"),
        ({"lanes": 200, "global_batch": 600}, "use fewer lanes"),
        ({"sessions": [1, 9]}, r"no training trials in sessions \[9\]: choose from \[1, 2, 3, 4\]"),
        ({"lanes": 0}, "needs a subject and a lane"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_way_out(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(THREE, **{"global_batch": 36} | change)


def test_a_world_size_that_does_not_divide_the_lanes_is_refused() -> None:
    made = plan(TWO)
    assert made.world_sizes == [1, 2, 3, 6]
    with pytest.raises(InputError, match=r"6 lanes cannot feed 4 workers: .* Use one of 1, 2, 3, 6\."):
        made.rank_rows(0, 0, 4)
    with pytest.raises(InputError, match="Rank 2 is not one of 2 workers"):
        made.rank_rows(0, 2, 2)


def test_pictures_are_held_out_on_the_same_side_for_every_subject() -> None:
    training, validation = hold_out(THREE, seed=3, fraction=0.25)
    held = {n for samples in validation.values() for n in samples.nsd_id.tolist()}
    kept = {n for samples in training.values() for n in samples.nsd_id.tolist()}
    assert not held & kept
    assert held | kept == set(range(80))
    assert 8 <= len(held) <= 32
    alone, _ = hold_out({"subj01": THREE["subj01"]}, seed=3, fraction=0.25)
    assert (alone["subj01"].nsd_id == training["subj01"].nsd_id).all()
    _, counted = hold_out(THREE, seed=3, count=10)
    assert len({n for samples in counted.values() for n in samples.nsd_id.tolist()}) == 10


@pytest.mark.parametrize("how", [{}, {"fraction": 0.5, "count": 3}, {"fraction": 0.0}, {"count": 80}])
def test_holding_out_everything_or_nothing_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        hold_out(THREE, seed=0, **how)


def test_trials_of_a_taken_table_index_that_table() -> None:
    part = THREE["subj01"].take([5, 2, 40])
    samples, repeats = trials_of(part)
    assert len(samples) == int(part.repeats.sum())
    assert (part.sessions[samples, repeats] > 0).all()
