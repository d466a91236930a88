"""A data set built of the release holds its trials, pictures, captions, behaviour and splits."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.cli import run
from fmri2img.datasets import Dataset, TrialSource, build_dataset, verify
from fmri2img.datasets.nsd.release import NsdRelease
from fmri2img.datasets.nsd.sources import betas_source
from fmri2img.errors import DamageError, InputError


@pytest.fixture(scope="module")
def built(release: Any, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    source = betas_source(NsdRelease(release.root, ["subj01", "subj04"], last_session=2))
    return build_dataset(source, tmp_path_factory.mktemp("built") / "nsd", normalise="none")


def build(release: Any, *flags: str) -> int:
    command = ["data", "build", "nsd", str(release.root.parent / "out"), "--release", str(release.root)]
    return run([*command, "--subjects", "subj01", "--sessions", "1..1", *flags])


def test_every_trial_is_where_the_design_says(release: Any, built: Dataset) -> None:
    for subject in ("subj01", "subj04"):
        found: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        for partition in ("train", "test"):
            samples = built.samples(subject, partition)
            for i in range(len(samples)):
                for trial, response in zip(
                    built.trials(samples, i), built.responses(samples, i), strict=True
                ):
                    found[trial["session"], trial["trial"]] = (int(samples.nsd_id[i]), response)
        assert len(found) == 1500
        for session in (1, 2):
            ids, betas = release.nsd_ids(subject, session), release.betas(subject, session)
            for place in range(750):
                nsd_id, response = found[session, place + 1]
                assert nsd_id == ids[place]
                np.testing.assert_allclose(response, betas[place] / 300, rtol=1e-3, atol=1e-6)


def test_test_pictures_are_the_shared_ones(release: Any, built: Dataset) -> None:
    shared = set((release.pictures[0, :1000] - 1).tolist())
    assert set(built.samples("subj01", "test").nsd_id) <= shared
    assert not set(built.samples("subj01", "train").nsd_id) & shared


def test_the_first_session_is_a_split_of_its_own(built: Dataset) -> None:
    assert set(built.splits) == {"train", "test", "session1"}
    samples = built.samples("subj01", "session1")
    assert (len(samples), int(samples.repeats.sum())) == (536, 688)


def test_pictures_captions_and_behaviour_are_kept(release: Any, built: Dataset) -> None:
    samples = built.samples("subj04", "train")
    for i in (0, 100, len(samples) - 1):
        nsd_id = int(samples.nsd_id[i])
        np.testing.assert_array_equal(built.picture(samples, i), release.picture(nsd_id))
        assert built.captions(samples, i) == [f"Picture {nsd_id}, é {k}" for k in (0, 1)]
        for trial in built.trials(samples, i):
            number = trial["trial"] - 1
            assert trial["run"] == np.searchsorted(np.cumsum((63, 62) * 6), number, side="right") + 1
            rt = trial["rt"]
            assert (rt is None or math.isnan(rt)) if number % 10 == 0 else rt == 600 + number
            assert trial["iscorrect"] == 1


def test_the_manifest_says_what_the_responses_are(built: Dataset) -> None:
    provenance = built.manifest.provenance
    assert provenance["betas"] == "b3 (betas_fithrf_GLMdenoise_RR)"
    assert provenance["captions"] == "COCO 2017" and provenance["rois"] == "nsdgeneral"
    assert "Terms-and-Conditions" in built.manifest.terms
    assert verify(built.path) == []


def test_both_forms_of_betas_build_the_same_shards(copied: Any, built: Dataset, tmp_path: Path) -> None:
    for path in copied.root.rglob("betas_session*.hdf5"):
        path.unlink()
    for subject in ("subj01", "subj04"):
        for session in (1, 2):
            copied.write_session(subject, session, form="nii.gz")
    source = betas_source(NsdRelease(copied.root, ["subj01", "subj04"], last_session=2))
    again = build_dataset(source, tmp_path / "again", normalise="none")
    assert again.fingerprint == built.fingerprint


def test_a_source_is_a_trial_source(release: Any) -> None:
    assert isinstance(betas_source(NsdRelease(release.root, ["subj01"], last_session=1)), TrialSource)


def test_a_release_of_subjects_that_stopped_early_has_their_sessions(release: Any) -> None:
    known = NsdRelease(release.root, ["subj01", "subj03", "subj04"])
    assert [len(known.sessions(name)) for name in known.names] == [40, 32, 30]
    assert [len(NsdRelease(release.root, [n], last_session=31).sessions(n)) for n in ("subj03",)] == [31]


def test_the_command_builds_and_says_what_it_lacks(copied: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied.root / "nsddata_stimuli/stimuli/nsd/annotations")
    assert build(copied, "--picture-size", "8", "--rois", "prf-visualrois:V1v", "streams") == 0
    assert "No COCO captions" in capsys.readouterr().out
    dataset = Dataset.open(copied.root.parent / "out")
    samples = dataset.samples("subj01", "train")
    assert dataset.picture(samples, 0).shape == (8, 8, 3) and dataset.captions(samples, 0) == []
    assert dataset.manifest.provenance["rois"] == "prf-visualrois:V1v, streams"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--subjects", "subj09"), "'subj09' is no subject of NSD: use one of subj01"),
        (("--subjects", "subj01,subj01"), "name at least one, and none twice"),
        (("--rois", "V1"), "'V1' is no ROI of subj01 in func1pt8mm"),
        (
            ("--betas", "b2"),
            "--parts betas --subjects subj01 --betas b2 --space func1pt8mm",
        ),
        (("--betas", "b4"), "--betas"),
        (("--space", "func1mm"), "func1mm/betas_fithrf_GLMdenoise_RR/betas_session01.hdf5 is missing"),
        (("--sessions", "1..3"), "betas_session03.hdf5 is missing"),
        (("--sessions", "2..3"), "--sessions 2..3: sessions start with the first: give 1..K"),
        (("--sessions", "1..41"), "Sessions 1 to 41 cannot be built: these subjects have at most 40"),
        (("--picture-size", "500"), "A picture size of 500 is not possible: use 1 to 12"),
        (("--window", "4", "8"), "--window is of time series: drop it, or add --from timeseries"),
        (("--from", "timeseries"), "timeseries_session01_run01.nii.gz is missing"),
        (("--from", "timeseries", "--rois", "std:9", "streams"), "std: chooses among all voxels"),
        (("--from", "fsaverage"), "nsddata/freesurfer/fsaverage/label"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    release: Any, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert build(release, *flags) == 2
    assert said in capsys.readouterr().err
    assert not (release.root.parent / "out").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no folder: give the one that holds nsddata"):
        betas_source(NsdRelease(tmp_path / "nowhere", ["subj01"]))


def test_behaviour_of_other_trials_is_damage(copied: Any) -> None:
    path = copied.root / "nsddata/ppdata/subj01/behav/responses.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:700]) + "\n")
    source = betas_source(NsdRelease(copied.root, ["subj01"], last_session=1))
    with pytest.raises(DamageError, match="session 1: its 699 trials are not those of the design"):
        source.subjects["subj01"].session(1)
    path.write_text("\n".join(lines).replace("73KID", "KID"))
    with pytest.raises(DamageError, match="has no column '73KID', only SUBJECT, SESSION"):
        betas_source(NsdRelease(copied.root, ["subj01"], last_session=1))
    path.write_text("\n".join([*lines, "1\t2\t3"]))
    with pytest.raises(DamageError, match=r"responses.tsv is damaged"):
        betas_source(NsdRelease(copied.root, ["subj01"], last_session=1))
    path.unlink()
    trials = betas_source(NsdRelease(copied.root, ["subj01"], last_session=1)).subjects["subj01"].session(1)
    assert trials.behaviour == {}


@pytest.mark.slow
def test_a_subject_of_forty_sessions_has_the_fields_counts(generator: Any, tmp_path: Path) -> None:
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = True
    release = generator.Release(tmp_path / "nsd", mask.shape, mask, side=2)
    release.write_design().write_stimuli([]).write_rois("subj01")
    for session in range(1, 41):
        release.write_session("subj01", session)
    source = betas_source(NsdRelease(release.root, ["subj01"]))
    dataset = build_dataset(source, tmp_path / "set", samples_per_shard=1000)
    counts = {}
    for split in dataset.splits:
        samples = dataset.samples("subj01", split)
        counts[split] = (len(samples), int(samples.repeats.sum()))
    assert counts == {
        "train": (9000, 27_000),
        "test": (1000, 3000),
        "shared1000": (1000, 3000),
        "shared982": (982, 2770),
        "train982": (8859, 24_980),
        "special515": (515, 1545),
        "session1": (536, 688),
    }
