"""The design gives each trial's picture, and splits with the counts that the field reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import SESSIONS, NsdLayout
from fmri2img.errors import DamageError, InputError

REAL = os.environ.get("FMRI2IMG_NSD_RELEASE")
"""A folder with the real release; its design is tested where this names one, and otherwise one made alike."""


@pytest.fixture(scope="module")
def file(release: Any) -> Path:
    return NsdLayout(Path(REAL) if REAL else release.root).design


@pytest.fixture(scope="module")
def design(file: Path) -> Design:
    """A full-size design with the published counts."""
    return Design.load(file)


def trials_of(design: Design, subject: str, sessions: range, ids: np.ndarray) -> int:
    return sum(int(np.isin(design.nsd_ids(subject, s), ids).sum()) for s in sessions)


def test_ids_count_from_0_and_follow_the_order_of_trials(file: Path, design: Design) -> None:
    arrays = scipy.io.loadmat(file)
    for subject, session, trial in (("subj01", 1, 0), ("subj02", 40, 749), ("subj08", 30, 5)):
        number = int(arrays["masterordering"][0, (session - 1) * 750 + trial])
        expected = int(arrays["subjectim"][int(subject[-1]) - 1, number - 1]) - 1
        assert design.nsd_ids(subject, session)[trial] == expected
    for subject, sessions in SESSIONS.items():
        seen = np.concatenate([design.nsd_ids(subject, s) for s in design.sessions(subject)])
        assert len(seen) == sessions * 750
        assert seen.min() >= 0 and seen.max() < 73_000
        assert np.bincount(seen).max() <= 3


def test_splits_have_the_published_numbers_of_pictures(design: Design) -> None:
    assert len(design.shared1000) == 1000
    assert len(design.shared982) == 982
    assert len(design.special515) == 515
    assert [len(design.shared(30, repeats=n)) for n in (1, 2, 3)] == [907, 766, 515]
    assert len(design.shared(32, repeats=1)) == 930
    assert set(design.special515) <= set(design.shared982) <= set(design.shared1000)


@pytest.mark.parametrize(
    ("subject", "all_sessions", "without_last_three"),
    [
        ("subj01", 3000, 2770),
        ("subj02", 3000, 2770),
        ("subj03", 2371, 2113),
        ("subj04", 2188, 1985),
        ("subj05", 3000, 2770),
        ("subj06", 2371, 2113),
        ("subj07", 3000, 2770),
        ("subj08", 2188, 1985),
    ],
)
def test_splits_have_the_published_numbers_of_trials(
    design: Design, subject: str, all_sessions: int, without_last_three: int
) -> None:
    splits = design.splits(SESSIONS)
    for name, expected in (("shared1000", all_sessions), ("shared982", without_last_three)):
        last = splits[name].last_session.get(subject, SESSIONS[subject])
        ids = np.array(splits[name].nsd_ids)
        assert trials_of(design, subject, range(1, last + 1), ids) == expected
    assert trials_of(design, subject, range(1, 31), design.special515) == 3 * 515


def test_training_sets_have_the_published_sizes(design: Design) -> None:
    first = design.nsd_ids("subj01", 1)
    training = first[~np.isin(first, design.shared1000)]
    pictures, times = np.unique(training, return_counts=True)
    assert (len(training), len(pictures), int((times == 1).sum())) == (688, 536, 413)
    last = design.splits(SESSIONS)["train982"].last_session["subj01"]
    early = np.concatenate([design.nsd_ids("subj01", s) for s in range(1, last + 1)])
    training = early[~np.isin(early, design.shared1000)]
    assert (len(training), len(np.unique(training))) == (24_980, 8859)


def test_all_subjects_together_saw_the_published_number_of_pictures(design: Design) -> None:
    seen = [np.unique([design.nsd_ids(s, n) for n in design.sessions(s)]) for s in SESSIONS]
    assert [len(pictures) for pictures in seen] == [10_000, 10_000, 9411, 9209, 10_000, 9411, 10_000, 9209]
    assert len(np.unique(np.concatenate(seen))) == 70_566


def test_a_split_is_offered_only_where_it_is_whole(design: Design) -> None:
    assert set(design.splits({"subj01": 5})) == {"session1"}
    assert set(design.splits({"subj01": 30})) == {"session1", "special515"}
    assert set(design.splits({"subj01": 37})) == {"session1", "special515", "shared982", "train982"}
    assert set(design.splits({"subj01": 40})) == {
        "session1", "special515", "shared982", "train982", "shared1000",
    }  # fmt: skip
    assert set(design.splits({"subj01": 40, "subj03": 28})) == {"session1"}
    assert "shared982" in design.splits({"subj01": 40, "subj03": 29, "subj04": 30})


def test_sessions_and_subjects_that_are_not_there_are_refused(design: Design) -> None:
    with pytest.raises(InputError, match="subj04 has no session 31: NSD has sessions 1 to 30"):
        design.nsd_ids("subj04", 31)
    with pytest.raises(InputError, match="'subj09' is no subject of NSD: use one of subj01, subj02"):
        design.sessions("subj09")


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("sharedix", lambda a: a + 1, "sharedix must be the first 1000 pictures of every subject"),
        ("sharedix", lambda a: a[:, :999], "sharedix must be the first 1000"),
        ("masterordering", lambda a: a[:, :29_250], "masterordering"),
        ("masterordering", lambda a: a + 9999, "masterordering"),
        ("subjectim", lambda a: a[:7], "subjectim"),
    ],
)
def test_a_design_that_does_not_fit_itself_is_damage(
    file: Path, tmp_path: Path, name: str, change: Any, rule: str
) -> None:
    arrays = {k: v for k, v in scipy.io.loadmat(file).items() if k[0] != "_"}
    scipy.io.savemat(tmp_path / "nsd_expdesign.mat", arrays | {name: change(arrays[name])})
    with pytest.raises(DamageError, match=rule):
        Design.load(tmp_path / "nsd_expdesign.mat")


def test_a_design_without_an_array_says_which_it_has(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "nsd_expdesign.mat", {"basiccnt": np.ones((3, 40))})
    with pytest.raises(InputError, match=r"no array 'masterordering' in the file: .* basiccnt"):
        Design.load(tmp_path / "nsd_expdesign.mat")
