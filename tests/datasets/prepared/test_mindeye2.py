"""MindEye2's published folder becomes a data set with the same trials, behaviour, pictures and splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import webdataset

from fmri2img.cli import run
from fmri2img.datasets import Dataset, build_dataset, verify
from fmri2img.datasets.prepared.mindeye2 import BEHAVIOUR, MindEye2Source
from fmri2img.errors import DamageError, InputError

NAMES = ["subj04", "subj08"]


def test_the_source_gives_every_trial_with_its_row_of_the_betas(mindeye2: Any) -> None:
    mindeye2.check_source(MindEye2Source(mindeye2.root, NAMES))


def test_the_data_set_has_every_trial_picture_and_caption(mindeye2: Any, tmp_path: Path) -> None:
    dataset = build_dataset(MindEye2Source(mindeye2.root, NAMES), tmp_path / "set", normalise="none")
    assert verify(dataset.path) == []
    mindeye2.check(dataset)
    samples = dataset.samples("subj08", "train")
    n = int(samples.nsd_id[1])
    assert dataset.captions(samples, 1) == [f"{n} of 60"] + ["another"] * (n % 2)
    assert dataset.voxel_table("subj08")["roi"].tolist() == ["V1", "V2", "V3", "V4", "higher_vis", "", ""]
    assert "test trials" in dataset.manifest.provenance["betas"]
    for trial in dataset.trials(samples, 1):
        behaviour = mindeye2.more[str(("subj08", trial["session"], trial["trial"]))]
        assert [trial[name] for name in BEHAVIOUR] == [
            None if behaviour[column] == -1 else behaviour[column] for column in BEHAVIOUR.values()
        ]


def test_the_data_set_has_the_splits(mindeye2: Any, tmp_path: Path) -> None:
    dataset = build_dataset(MindEye2Source(mindeye2.root, NAMES), tmp_path / "set", normalise="none")
    for name in NAMES:
        old = [p for p, n in mindeye2.seen.items() if p[0] == name and n in mindeye2.test and p[1] <= 27]
        samples = dataset.samples(name, "shared982")
        kept = [
            (name, t["session"], t["trial"]) for i in range(len(samples)) for t in dataset.trials(samples, i)
        ]
        assert sorted(kept) == sorted(old)
        first = dataset.samples(name, "session1")
        assert set(first.sessions[first.sessions > 0].tolist()) == {1}


def test_behaviour_is_kept_and_missing_values_are_nan(mindeye2: Any) -> None:
    subject = MindEye2Source(mindeye2.root, ["subj04"]).subjects["subj04"]
    for session in subject.sessions:
        trials = subject.session(session)
        assert trials.numbers is not None
        for row, number in enumerate(trials.numbers.tolist()):
            behaviour = mindeye2.more[str(("subj04", session, number))]
            for name, column in BEHAVIOUR.items():
                wanted = np.nan if behaviour[column] == -1 else behaviour[column]
                np.testing.assert_equal(trials.behaviour[name][row], wanted)


def test_splits_are_those_of_the_tars(mindeye2: Any) -> None:
    splits = MindEye2Source(mindeye2.root, NAMES).splits
    shown = {
        (s, session) for (s, session, _), n in mindeye2.seen.items() if n in mindeye2.test and session <= 27
    }
    last = {name: max(session for s, session in shown if s == name) for name in NAMES}
    assert splits["shared1000"].nsd_ids == sorted(mindeye2.test)
    assert (splits["shared982"].nsd_ids, splits["shared982"].last_session) == (sorted(mindeye2.test), last)
    assert splits["session1"].last_session == {"subj04": 1, "subj08": 1}


def test_without_the_old_test_tars_there_is_no_split_of_them(mindeye2: Any) -> None:
    for name in NAMES:
        (mindeye2.root / "wds" / name / "test" / "0.tar").unlink()
        (mindeye2.root / "wds" / name / "test").rmdir()
    assert "shared982" not in MindEye2Source(mindeye2.root, NAMES).splits


def test_an_old_test_set_that_no_sessions_make_is_left_out_and_said(mindeye2: Any) -> None:
    with webdataset.TarWriter(str(mindeye2.root / "wds" / "subj04" / "test" / "0.tar")) as tar:
        place = max(p for p, n in mindeye2.seen.items() if p[0] == "subj04" and n in mindeye2.test)
        tar.write({"__key__": "sample1", "behav.npy": mindeye2.more[str(place)][None]})
    source = MindEye2Source(mindeye2.root, NAMES)
    assert "shared982" not in source.splits
    assert source.provenance["shared982"].startswith(
        "left out: the 1 trials of wds/subj04/test are not those"
    )


def test_the_first_sessions_need_only_their_tars(mindeye2: Any) -> None:
    for number in range(2, 30):
        (mindeye2.root / "wds" / "subj04" / "train" / f"{number}.tar").unlink()
    with pytest.raises(
        InputError, match=r"train lacks 2\.tar, 3\.tar, 4\.tar, 5\.tar, 6\.tar and 23 more: fetch"
    ):
        MindEye2Source(mindeye2.root, ["subj04"])
    source = MindEye2Source(mindeye2.root, ["subj04"], last_session=2)
    kept = {p for p, n in mindeye2.seen.items() if p[0] == "subj04" and (p[1] <= 2 or n in mindeye2.test)}
    mindeye2.responses = {place: mindeye2.responses[place] for place in kept}
    mindeye2.check_source(source)


def test_fewer_training_sessions_are_another_data_set(mindeye2: Any, tmp_path: Path) -> None:
    build_dataset(
        MindEye2Source(mindeye2.root, ["subj04"], last_session=2), tmp_path / "set", normalise="none"
    )
    with pytest.raises(InputError, match="exists already"):
        build_dataset(MindEye2Source(mindeye2.root, ["subj04"]), tmp_path / "set", normalise="none")


def test_only_rows_of_the_session_are_read(mindeye2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = MindEye2Source(mindeye2.root, ["subj04"]), []
    original = h5py.Dataset.__getitem__

    def counting(self: Any, key: Any, **more: Any) -> Any:
        found = original(self, key, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    trials = source.subjects["subj04"].session(3)
    assert sum(read) == len(trials.nsd_ids) == 4


def edit(behaviour: np.ndarray, column: int, value: float) -> np.ndarray:
    changed = behaviour.copy()
    changed[0, column] = value
    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: {"behav.npy": edit(b, 5, 99999)}, "sample7: row 99999 is none of the 22500 of the betas"),
        (lambda b: {"behav.npy": edit(b, 5, 8000)}, r"row 8000 of the betas is not of session \d+"),
        (lambda b: {"behav.npy": edit(b, 0, 60)}, "picture 60 is none of the 60"),
        (lambda b: {"behav.npy": edit(b, 0, 1.5)}, r"picture 1\.5 is none"),
        (lambda b: {"behav.npy": edit(b, 1, np.nan)}, "it is of subject nan"),
        (lambda b: {"behav.npy": b[:, :5]}, r"behav\.npy is \(1, 5\) and must be \(1, 17\)"),
        (lambda b: {"olds_behav.npy": b}, r"sample sample7 has no behav\.npy"),
        (lambda b: {"behav.npy": b"not an array"}, "does not begin with a .npy header"),
    ],
)
def test_pointers_to_nowhere_are_named(mindeye2: Any, change: Any, said: str) -> None:
    behaviour = next(row for place, row in mindeye2.more.items() if "subj04" in place)[None]
    path = mindeye2.root / "wds" / "subj04" / "train" / "0.tar"
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        members = change(behaviour).items()
        data = {
            n: v if isinstance(v, bytes) else webdataset.writer.default_handlers["npy"](v) for n, v in members
        }
        tar.write({"__key__": "sample7", **data})
    with pytest.raises(DamageError, match=said) as told:
        MindEye2Source(mindeye2.root, ["subj04"])
    assert str(path) in str(told.value)


def test_a_picture_cannot_be_for_training_and_test(mindeye2: Any) -> None:
    row = next(v for p, v in mindeye2.more.items() if "subj04" in p and v[0] in mindeye2.test)
    with webdataset.TarWriter(str(mindeye2.root / "wds" / "subj04" / "train" / "0.tar")) as tar:
        tar.write({"__key__": "sample7", "behav.npy": row[None]})
    with pytest.raises(DamageError, match="is in train and in new_test"):
        MindEye2Source(mindeye2.root, ["subj04"])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("betas_all_subj04_fp32_renorm.hdf5", "there is no file .*betas_all_subj04_fp32_renorm"),
        ("coco_images_224_float16.hdf5", "there is no file .*coco_images"),
        ("wds/subj04/new_test/0.tar", r"new_test lacks 0\.tar: fetch"),
        ("wds/subj04/train/17.tar", r"train lacks 17\.tar: fetch"),
    ],
)
def test_files_that_are_missing_are_named(mindeye2: Any, file: str, said: str) -> None:
    (mindeye2.root / file).unlink()
    with pytest.raises(InputError, match=said):
        MindEye2Source(mindeye2.root, ["subj04"])


def test_betas_that_are_cut_are_named(mindeye2: Any) -> None:
    path = mindeye2.root / "betas_all_subj04_fp32_renorm.hdf5"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        InputError, match=r"betas_all_subj04_fp32_renorm\.hdf5:betas' cannot be read: .*truncated"
    ):
        MindEye2Source(mindeye2.root, ["subj04"])


def test_the_command_builds_it(mindeye2: Any, tmp_path: Path) -> None:
    line = [
        "data",
        "build",
        "mindeye2",
        str(tmp_path / "set"),
        "--root",
        str(mindeye2.root),
        "--subjects",
        *NAMES,
    ]
    assert run(line) == 0
    mindeye2.check(Dataset.open(tmp_path / "set"))


def test_a_wrong_subject_is_one_line(
    mindeye2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "data",
        "build",
        "mindeye2",
        str(tmp_path / "set"),
        "--root",
        str(mindeye2.root),
        "--subjects",
        "s9",
    ]
    assert run(line) == 2
    assert "s9" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
