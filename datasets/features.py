"""Adds a feature space to a data set: one new column in every shard, and its statistics.

Nothing committed is rewritten: columns are new files, and `dataset.json` is replaced at the end in one piece.
A job that dies leaves the data set as it was; the next one overwrites what it left.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.manifest import (
    DATA_COLUMNS,
    ColumnEntry,
    SpaceName,
    read_manifest,
    seal,
    write_manifest,
)
from fmri2img.datasets.npy import pack, pack_npz
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import Progress, silent
from fmri2img.datasets.statistics import Moments
from fmri2img.datasets.writer import write_column, write_file
from fmri2img.errors import InputError

Compute = Callable[[list[np.ndarray], list[list[str]]], np.ndarray]
"""From `n` pictures, uint8 `(height, width, 3)`, and their captions to features `(n, *shape)`."""


def add_feature_space(
    path: str | Path,
    *,
    name: str,
    shape: Sequence[int],
    dtype: str,
    extractor: dict[str, Any],
    compute: Compute,
    progress: Progress | None = None,
) -> Dataset:
    """Compute a feature of every picture, add it as a column, and open the data set with it.

    Statistics are over training pictures only, each distinct picture once, in float64.

    Args:
        path: data set folder.
        name: of the space; letters, digits, `-` and `_`.
        shape: of one picture's feature.
        dtype: stored as `float16` or `float32`.
        extractor: what computes it, as plain data (model, revision, layer); it is the identity of the space.
        compute: called once a shard.
        progress: called with (what, done, total) in samples.

    Raises:
        InputError: another extractor has the name, or `compute` returns something else than announced.
    """
    root, progress = Path(path).absolute(), progress or silent
    try:
        TypeAdapter(SpaceName).validate_python(name)
    except ValidationError:
        raise InputError(f"{name!r} cannot name a feature space: use letters, digits, '-' and '_'.") from None
    if name in DATA_COLUMNS or dtype not in ("float16", "float32"):
        raise InputError(
            f"Feature space {name!r} of {dtype}: use float16 or float32, and no name of {list(DATA_COLUMNS)}."
        )
    size = [int(n) for n in shape]
    described = {"name": name, "shape": size, "dtype": dtype, "extractor": extractor}
    with _alone(root):
        dataset = Dataset.open(root)
        known = dataset.feature_spaces.get(name)
        if known is not None:
            if known.model_dump(include=set(described)) == described:
                return dataset
            raise InputError(
                f"{root} already has a feature space {name}, {known.dtype} {known.shape}, by "
                f"{known.extractor}: choose another name."
            )
        columns: list[ColumnEntry] = []
        moments, seen, total = Moments(), set[int](), sum(shard.samples for shard in dataset.manifest.shards)
        done = 0
        for number, shard in enumerate(dataset.manifest.shards):
            progress(f"extracting {name}", done, total)
            samples = dataset.shard_samples(number)
            features = _checked(name, compute(*_inputs(dataset, samples)), (len(samples), *size), dtype)
            columns.append(_write(root, shard.name, name, samples, features))
            if shard.partition == "train":
                new = [row for row, n in enumerate(samples.nsd_id.tolist()) if n not in seen]
                seen.update(samples.nsd_id.tolist())
                moments.add(features[new])
            done += shard.samples
        progress(f"extracting {name}", done, total)
        statistics = _statistics(moments, size)
        entry = write_file(root, f"features/{name}.statistics.npz", pack_npz(statistics)).model_dump()
        plain = read_manifest(root).model_dump()
        plain["feature_spaces"][name] = described | {"statistics": entry, "digest": "0" * 64}
        for record, column in zip(plain["shards"], columns, strict=True):
            record["columns"][name] = column.model_dump()
        write_manifest(root, seal(plain))
    return Dataset.open(root)


def _inputs(dataset: Dataset, samples: Samples) -> tuple[list[np.ndarray], list[list[str]]]:
    rows = range(len(samples))
    return [dataset.picture(samples, i) for i in rows], [dataset.captions(samples, i) for i in rows]


def _checked(name: str, features: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    features = np.asarray(features)
    if features.shape != shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"The extractor of {name} returned {features.dtype} {features.shape} instead of floats {shape}: "
            "correct the shape given or the extractor."
        )
    with np.errstate(over="ignore"):
        stored = features.astype(dtype)
    if not np.isfinite(stored).all():
        raise InputError(
            f"The extractor of {name} returned values that are not finite in {dtype}: "
            "correct it, or store float32."
        )
    return stored


def _write(root: Path, shard: str, name: str, samples: Samples, features: np.ndarray) -> ColumnEntry:
    members = (
        (str(key), {"npy": pack(feature)}) for key, feature in zip(samples.keys, features, strict=True)
    )
    return write_column(root, shard, name, members)


def _statistics(moments: Moments, shape: list[int]) -> dict[str, np.ndarray]:
    if not moments.count:
        raise InputError(
            "The data set has no training pictures to take feature statistics from: change its split."
        )
    mean, std, _ = moments.mean_std()
    count = np.array(moments.count)
    return {
        "mean": mean.reshape(shape).astype(np.float32),
        "std": std.reshape(shape).astype(np.float32),
        "count": count,
    }


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep two jobs from adding features to one data set at a time."""
    if not root.is_dir():
        read_manifest(root)
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another job is adding features to {root}: wait until it is done.") from None
        except OSError:
            pass  # this file system has no locks
        yield
    finally:
        os.close(handle)
