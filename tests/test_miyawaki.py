"""The whole path on measured fMRI, by the commands a user types: two people who saw ten pictures of 10x10 patches."""

import os
from pathlib import Path

import pytest

from fmri2img.cli import run
from fmri2img.evaluation import Evaluation

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
RECIPE = ["--recipe", str(EXAMPLES / "miyawaki2008-recipe.yaml")]


def measured() -> Path:
    """The folder of the measured data: FMRI2IMG_SHARED, or `shared/data` beside a folder above this one."""
    roots = [Path(os.environ["FMRI2IMG_SHARED"])] if "FMRI2IMG_SHARED" in os.environ else []
    roots += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for root in roots:
        if (root / "miyawaki2008" / "figures_two_subjects.npz").is_file():
            return root / "miyawaki2008"
    pytest.skip(
        "no measured data: set FMRI2IMG_SHARED to a folder with miyawaki2008/figures_two_subjects.npz"
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set without the last run of both people, pretrained on both."""
    folder = tmp_path_factory.mktemp("miyawaki")
    spec = ["--spec", str(EXAMPLES / "miyawaki2008.yaml"), "--root", str(measured())]
    assert run(["data", "build", "arrays", str(folder / "data"), *spec]) == 0
    assert run(["features", str(folder / "data"), *RECIPE]) == 0
    assert run(["pretrain", "--data", str(folder / "data"), "--out", str(folder / "both"), *RECIPE]) == 0
    return folder


def score(work: Path, run_folder: str, subject: str) -> float:
    """Two-way identification of the left-out trials among all pictures the person saw."""
    made = work / f"made-{run_folder}"
    data = ["--data", str(work / "data")]
    where = ["--from", str(work / run_folder), "--out", str(made), "--subjects", subject]
    assert run(["reconstruct", *where, *data, "--repeats", "single", "--workers", "0"]) == 0
    assert run(["evaluate", str(made), "--candidates", "subject", "--pool", "10"]) == 0
    return Evaluation.read(made / "metrics.json").metrics["two_way_patches-10"].value


@pytest.mark.slow
def test_a_finetuned_decoder_identifies_pictures_of_a_run_it_never_saw_as_well_as_ridge(work: Path) -> None:
    data = ["--data", str(work / "data"), "--subject", "S2", *RECIPE]
    assert run(["finetune", "--from", str(work / "both"), "--out", str(work / "S2"), *data]) == 0
    assert run(["finetune", "--baseline", "ridge", "--out", str(work / "ridge"), *data]) == 0
    finetuned, ridge = score(work, "S2", "S2"), score(work, "ridge", "S2")
    assert finetuned >= ridge - 0.05, f"finetuned {finetuned:.3f}, ridge {ridge:.3f}"
    assert finetuned > 0.85


@pytest.mark.slow
def test_a_checkpoint_of_other_people_is_refused_with_their_names(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--from", str(work / "both"), "--out", str(work / "none"), "--subjects", "S3"]
    assert run(["reconstruct", *where, "--data", str(work / "data")]) == 2
    assert "S3" in capsys.readouterr().err
    assert not (work / "none").exists()
