"""Brain-Diffuser's arrays become a data set whose pictures have their nsd_ids again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.cli import run
from fmri2img.datasets import Dataset, build_dataset, verify
from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.prepared.braindiffuser import BrainDiffuserSource, first_seen
from fmri2img.errors import DamageError, InputError

NAMES = ["subj01", "subj02"]


def source_of(truth: Any) -> BrainDiffuserSource:
    return BrainDiffuserSource(truth.root, NAMES, design=truth.root / "nsd_expdesign.mat")


def test_rows_are_the_pictures_in_the_order_first_seen(braindiffuser: Any) -> None:
    design = Design.load(braindiffuser.root / "nsd_expdesign.mat")
    for name in NAMES:
        for part, ids in zip(("train", "test"), first_seen(design, name), strict=True):
            assert ids.tolist() == braindiffuser.more[f"{name}-{part}"][0]


def test_a_picture_is_of_the_session_in_which_it_was_first_seen(braindiffuser: Any) -> None:
    braindiffuser.check_source(source_of(braindiffuser))


def test_the_data_set_has_every_average_picture_and_caption(braindiffuser: Any, tmp_path: Path) -> None:
    dataset = build_dataset(source_of(braindiffuser), tmp_path / "set", normalise="none")
    assert verify(dataset.path) == []
    braindiffuser.check(dataset)
    samples = dataset.samples("subj02", "train")
    n = int(samples.nsd_id[3])
    assert dataset.captions(samples, 3) == [f"caption of {n}", f"again {n}"]
    assert samples.repeats.tolist() == [1] * 37


def test_scores_are_those_of_all_training_pictures(braindiffuser: Any, tmp_path: Path) -> None:
    dataset = build_dataset(source_of(braindiffuser), tmp_path / "set", normalise="pooled")
    normalised = {}
    for place, response in braindiffuser.responses.items():
        _, train = braindiffuser.more[f"{place[0]}-train"]
        normalised[place] = (response - train.mean(0)) / train.std(0)
    braindiffuser.check(dataset, normalised)


def test_without_the_design_nobody_knows_the_pictures(braindiffuser: Any) -> None:
    with pytest.raises(InputError, match="without the design nobody knows of which pictures"):
        BrainDiffuserSource(braindiffuser.root, NAMES)
    place = braindiffuser.root / "nsddata" / "experiments" / "nsd"
    place.mkdir(parents=True)
    (braindiffuser.root / "nsd_expdesign.mat").rename(place / "nsd_expdesign.mat")
    braindiffuser.check_source(BrainDiffuserSource(braindiffuser.root, NAMES))


@pytest.mark.parametrize(
    ("file", "change", "error", "said"),
    [
        ("nsd_train_stim", lambda a: a[:-1], InputError, "has 36 rows, and the design has 37 such pictures"),
        ("nsd_test_cap", lambda a: a[1:], InputError, "has 12 rows, and the design has 13 such pictures"),
        ("nsd_test_fmriavg_nsdgeneral", lambda a: a[:, 1:], DamageError, "6 voxels and test averages 5"),
        (
            "nsd_test_stim",
            lambda a: a[..., 0],
            DamageError,
            r"nsd_test_stim_sub1\.npy: it is float64 \(13, 5, 4\)",
        ),
        ("nsd_train_stim", lambda a: a + 0.5, DamageError, "row 0 has values that are not whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    braindiffuser: Any, file: str, change: Any, error: type[Exception], said: str
) -> None:
    path = braindiffuser.root / "processed_data" / "subj01" / f"{file}_sub1.npy"
    np.save(path, change(np.load(path)))
    first = braindiffuser.more["subj01-train"][0][0]
    with pytest.raises(error, match=said):
        source_of(braindiffuser).picture(first)


def test_arrays_that_are_missing_are_named(braindiffuser: Any) -> None:
    (braindiffuser.root / "processed_data" / "subj02" / "nsd_train_stim_sub2.npy").unlink()
    with pytest.raises(InputError, match=r"there is no file .*nsd_train_stim_sub2\.npy"):
        source_of(braindiffuser)


def test_the_commands_build_it_and_import_its_features(braindiffuser: Any, tmp_path: Path) -> None:
    design = str(braindiffuser.root / "nsd_expdesign.mat")
    line = ["data", "build", "braindiffuser", str(tmp_path / "set"), "--root", str(braindiffuser.root)]
    assert run([*line, "--design", design, "--subjects", ",".join(NAMES), "--normalise", "none"]) == 0
    braindiffuser.check(Dataset.open(tmp_path / "set"))
    files = []
    for name in NAMES:
        for part in ("train", "test"):
            ids, _ = braindiffuser.more[f"{name}-{part}"]
            files.append(str(tmp_path / f"{name}_nsd_clipvision_{part}.npy"))
            np.save(files[-1], np.array(ids)[:, None, None] * np.ones((1, 2, 3)))
    line = ["features", "import", str(tmp_path / "set"), "--space", "clip", "--design", design]
    assert run([*line, "--subjects", *NAMES, "--from", *files]) == 0
    dataset = Dataset.open(tmp_path / "set")
    for name in NAMES:
        for split in ("train", "test"):
            samples = dataset.samples(name, split)
            found = dataset.read_features(samples, range(len(samples)), "clip")
            assert (found == samples.nsd_id[:, None, None]).all()
    assert run([*line, "--subjects", "subj01", "--from", *files]) == 2
