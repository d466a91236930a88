"""Time, memory and disk of building one NSD subject at full size from a release in the exact layout, as JSON.

    python benchmarks/nsd_build.py FOLDER > nsd_build.json

Makes a release of subj01 in FOLDER (kept, and used again by the next run): volumes of 81 x 104 x 83 voxels, 40
sessions of 750 trials, 15,724 voxels on a folded sheet, 10,000 pictures of 425 pixels with the spectrum of
photographs. Chunks of voxels outside the sheet are left out, so that it takes 7 GB and not 47; `--dense` times one
session with all of them, as released, and one as .nii.gz. Files leave the page cache before they are read.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import nibabel
import numpy as np

from fmri2img.datasets.nsd.betas import read_betas

SHAPE = (81, 104, 83)
VOXELS = 15_724
SUBJECT = "subj01"
WATCH = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
times = {"wall_s": time.perf_counter() - started, "user_s": usage.ru_utime, "system_s": usage.ru_stime}
print(json.dumps({k: round(v, 1) for k, v in times.items()} | {"peak_rss_mb": round(usage.ru_maxrss / 1024)}))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command and prints what it took."""


def generator() -> ModuleType:
    """The tests' generator of releases."""
    path = Path(__file__).parents[1] / "tests/datasets/nsd/release.py"
    spec = importlib.util.spec_from_file_location("nsd_release_generator", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def folded_sheet() -> np.ndarray:
    """bool of `SHAPE`, `VOXELS` true: a wavy shell in the back half of the volume, as thin as cortex is."""
    x, y, z = (
        np.linspace(-1, 1, n).reshape(s) for n, s in zip(SHAPE, ((-1, 1, 1), (-1, 1), (-1,)), strict=True)
    )
    waves = 0.12 * (np.sin(9 * x) * np.sin(11 * y) + np.sin(10 * z) * np.sin(8 * x))
    distance = np.abs(np.sqrt(x**2 + y**2 + z**2) - 0.7 - waves) + np.where(y > 0, 9.0, 0.0)
    mask = np.zeros(SHAPE, bool)
    mask.reshape(-1)[np.argsort(distance, axis=None)[:VOXELS]] = True
    return mask


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """uint8 `(side, side, 3)` whose amplitude falls with frequency, as that of photographs does."""
    across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)[:, None]
    amplitude = 1 / np.maximum(np.hypot(across, down), 1 / side)
    waves = np.fft.rfft2(rng.standard_normal((3, side, side))) * amplitude
    values = np.fft.irfft2(waves, s=(side, side))
    values = 128 + 50 * (values - values.mean()) / values.std()
    return np.moveaxis(values, 0, 2).clip(0, 255).astype(np.uint8)


def make(folder: Path) -> Any:
    """The release in `folder`, made if it is not there."""
    module = generator()

    class Full(module.Release):  # type: ignore[name-defined]
        @cached_property
        def pool(self) -> list[np.ndarray]:
            return [texture(np.random.default_rng(n), self.side) for n in range(64)]

        def picture(self, nsd_id: int) -> np.ndarray:
            return np.roll(self.pool[nsd_id % 64], nsd_id % 425, axis=1)

    release = Full(folder, SHAPE, folded_sheet())
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ids = release.seen([SUBJECT], 40)
        release.write_design().write_table().write_captions(ids).write_stimuli(ids)
        release.write_rois(SUBJECT).write_behaviour(SUBJECT, range(1, 41)).write_ncsnr(SUBJECT)
        for session in range(1, 41):
            release.write_session(SUBJECT, session)
        done.touch()
    return release


def forget(folder: Path) -> None:
    """Put a folder's files out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size(folder: Path) -> int:
    """Bytes on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def build(release: Path, out: Path) -> dict[str, Any]:
    """Run the command in a process of its own."""
    for there in (out, out.with_name(f".{out.name}.building")):
        shutil.rmtree(there, ignore_errors=True)
    forget(release)
    script = Path(sys.executable).with_name("fmri2img")
    command = [
        str(script),
        "data",
        "build",
        "nsd",
        str(out),
        "--release",
        str(release),
        "--subjects",
        SUBJECT,
    ]
    # A process counts the memory of the one that started it as its own peak, so a small one does that.
    done = subprocess.run([sys.executable, "-c", WATCH, *command], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout) | {
        "release_mb": size(release) >> 20,
        "data_set_mb": size(out) >> 20,
        "of_these_responses_mb": sum(p.stat().st_size for p in out.rglob("*.responses.tar")) >> 20,
    }


def timed(read: Callable[[], np.ndarray], folder: Path) -> tuple[float, np.ndarray]:
    """Seconds that a reading takes when the page cache is empty, and what was read."""
    forget(folder)
    started = time.perf_counter()
    found = read()
    return round(time.perf_counter() - started, 2), found


def dense(release: Any, folder: Path) -> dict[str, Any]:
    """One session with every voxel of the volume stored, in both forms."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = np.flatnonzero(release.mask)
    volumes = np.random.default_rng(1).integers(-3000, 3000, (*SHAPE, 750), np.int16)
    with h5py.File(folder / "betas_session01.hdf5", "w") as file:
        data = file.create_dataset("betas", (750, *SHAPE[::-1]), np.int16, chunks=(750, 1, 1, 1))
        for x, y, z in np.ndindex(SHAPE):
            data.id.write_direct_chunk((0, z, y, x), volumes[x, y, z].tobytes())
    nibabel.openers.Opener.default_compresslevel = 1
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), folder / "betas_session01.nii.gz")
    del volumes
    report: dict[str, Any] = {}
    found = []
    for form in ("hdf5", "nii.gz"):
        path = folder / f"betas_session01.{form}"
        seconds, betas = timed(lambda: read_betas(path, SHAPE, positions, trials=750), folder)  # noqa: B023
        report[form] = {"seconds": seconds, "file_mb": path.stat().st_size >> 20}
        found.append(betas)
    assert np.array_equal(found[0], found[1])
    shutil.rmtree(folder)
    return report


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the release and the data set go")
    parser.add_argument(
        "--dense", action="store_true", help="also read one session as large as a released one"
    )
    parser.add_argument("--no-build", action="store_true", help="only make the release, and read one session")
    options = parser.parse_args()
    started = time.perf_counter()
    release = make(options.folder / "release")
    report: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "making_the_release_s": round(time.perf_counter() - started, 1),
    }
    if options.dense:
        report["dense_session"] = dense(release, options.folder / "dense")
    if not options.no_build:
        report["build"] = build(release.root, options.folder / "set")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
