"""The commands that build data sets of time series, surfaces and flat maps, from folder to data set."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fmri2img.cli import run
from fmri2img.datasets import Dataset
from fmri2img.datasets.nsd.design import Design


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    """What makes the parts of a release that betas need too: design, pictures, ROIs, behaviour."""
    path = Path(__file__).parents[1] / "nsd" / "release.py"
    spec = importlib.util.spec_from_file_location("nsd_release_for_series", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common(generator: ModuleType, tmp_path: Path) -> Callable[[Any], Any]:
    """Adds to a release of time series or surfaces what all of them share."""

    def add(release: Any) -> Any:
        mask = np.zeros((5, 4, 3), bool)
        mask[1:4, 1:3] = True
        parts = generator.Release(release.root, mask.shape, mask, side=8)
        seen = parts.seen(["subj01"], 1)
        parts.write_design().write_table(seen).write_stimuli(seen)
        parts.write_rois("subj01").write_behaviour("subj01", [1])
        release.design = Design.load(release.layout.design)
        return release

    return add


def build(release: Any, tmp_path: Path, *flags: str) -> Dataset:
    out = tmp_path / "out"
    given = ["--release", str(release.root), "--subjects", "subj01", "--sessions", "1..1", *flags]
    assert run(["data", "build", "nsd", str(out), *given]) == 0
    return Dataset.open(out)


def test_time_series_of_an_roi_become_averages(series: Any, common: Any, tmp_path: Path) -> None:
    release = common(series).write(1)
    built = build(release, tmp_path, "--from", "timeseries", "--window", "4", "8")
    assert built.voxels("subj01") == 18
    assert "4 to 8 s after onset, average" in str(built.manifest.provenance)
    split = {part: built.samples("subj01", part) for part in ("train", "test")}
    assert set(split["test"].nsd_id.tolist()) <= set(release.design.shared1000.tolist())
    assert sum(int(samples.repeats.sum()) for samples in split.values()) == 750


def test_time_series_of_the_voxels_that_vary_most_become_windows(
    series: Any, common: Any, tmp_path: Path
) -> None:
    flags = ["--rois", "std:12", "--window", "4.6", "12.6", "--keep", "window", "--units", "zscore"]
    built = build(common(series).write(1), tmp_path, "--from", "timeseries", *flags)
    assert built.voxels("subj01") == 12
    assert built.responses(built.samples("subj01", "train"), 0).shape[1:] == (6, 12)
    table = built.voxel_table("subj01")
    assert {"x", "y", "z", "roi", "series_std"} <= set(table)


def test_surface_betas_become_a_data_set(surface: Any, common: Any, tmp_path: Path) -> None:
    release = common(surface.labels()).write(1)
    built = build(release, tmp_path, "--from", "fsaverage", "--rois", "streams")
    assert built.voxels("subj01") == 30
    assert set(built.voxel_table("subj01")["roi"]) == {"early", "ventral"}


def test_a_missing_run_is_one_line(
    series: Any, common: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = common(series).write(1)
    release.path("timeseries", 1, 9).unlink()
    given = ["--release", str(release.root), "--subjects", "subj01", "--sessions", "1..1"]
    assert run(["data", "build", "nsd", str(tmp_path / "out"), *given, "--from", "timeseries"]) == 2
    assert "timeseries_session01_run09.nii.gz is missing" in capsys.readouterr().err


def test_a_folder_without_flat_maps_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "build", "neuropictor", str(tmp_path / "out"), "--root", str(tmp_path)]
    assert run(command) == 2
    assert "holds no 01_label.npy" in capsys.readouterr().err
