"""`data build arrays` from HDF5 beside reading the same file and writing as many bytes, as JSON.

    python benchmarks/build.py [--folder FOLDER] [--trials 30000] [--voxels 15724] [--rounds 3]

One subject, three repeats of each picture, tiny pictures, one process. Before every reading and every build the file
is put out of the page cache. `bound` is what nobody can do without: reading the responses once and writing them, in
float16, to the disk; `build` is the whole command's work, with its processor time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fmri2img.datasets import ArraysSource, ArraysSpec, build_dataset

SPEC = """
name: build
terms: free
pictures: {array: "data.h5:pictures"}
subjects:
  subj01: {responses: "data.h5:responses", pictures: "data.h5:shown", sessions: "data.h5:sessions"}
split: {test_pictures: [0, 1, 2]}
first_session: 1
normalise: session
"""


def make(folder: Path, trials: int, voxels: int) -> None:
    """The HDF5 file and the YAML that describes it: sessions of 750 trials, each picture three times."""
    generator = np.random.default_rng(0)
    count = trials // 3
    with h5py.File(folder / "data.h5", "w") as file:
        responses = file.create_dataset("responses", (trials, voxels), np.float32)
        for first in range(0, trials, 750):
            rows = min(750, trials - first)
            responses[first : first + rows] = generator.standard_normal((rows, voxels), np.float32)
        file["shown"] = generator.permutation(np.arange(trials) % count)
        file["sessions"] = np.arange(trials) // 750 + 1
        file["pictures"] = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    (folder / "spec.yaml").write_text(SPEC)


def forget(path: Path) -> None:
    """Put a file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def read(path: Path) -> None:
    """Every response once."""
    with h5py.File(path) as file:
        for first in range(0, len(file["responses"]), 750):
            file["responses"][first : first + 750]


def write(path: Path, size: int) -> None:
    """As many bytes as the responses have in float16, to the disk."""
    block = np.random.default_rng(1).bytes(1 << 24)
    with open(path, "wb") as file:
        for _ in range(size >> 24):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--trials", type=int, default=30_000)
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(measure(arguments, Path(folder)), indent=1))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate reading, writing and building."""
    make(folder, arguments.trials, arguments.voxels)
    source = folder / "data.h5"
    found: dict[str, list[tuple[float, float]]] = {"read": [], "write": [], "build": []}
    for number in range(arguments.rounds):
        forget(source)
        found["read"].append(timed(lambda: read(source)))
        found["write"].append(timed(lambda: write(folder / "plain", 2 * arguments.trials * arguments.voxels)))
        forget(source)
        spec = ArraysSpec.load(folder / "spec.yaml", root=folder, overrides=[])
        out = folder / f"built-{number}"
        found["build"].append(timed(lambda out=out, spec=spec: build_dataset(ArraysSource(spec), out)))  # type: ignore[misc]
    bound = [a[0] + b[0] for a, b in zip(found["read"], found["write"], strict=True)]
    return {
        "trials": arguments.trials,
        "voxels": arguments.voxels,
        "megabytes_read": round(source.stat().st_size / 1e6, 1),
        **{
            name: {"seconds": [round(a, 3) for a, _ in rows], "processor": [round(b, 3) for _, b in rows]}
            for name, rows in found.items()
        },
        "build_over_bound": round(
            statistics.median(a[0] / b for a, b in zip(found["build"], bound, strict=True)), 3
        ),
    }


if __name__ == "__main__":
    main()
