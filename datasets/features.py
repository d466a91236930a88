"""Adds a feature space to a data set: one new column in every shard, and its statistics.

Nothing committed is rewritten: columns are new files, and `dataset.json` is replaced at the end in one piece.
A job that dies leaves the data set as it was, and the same job goes on with the shards that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fmri2img.datasets.croissant import write_croissant
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.feature_columns import FeatureColumns, Space, in_this_process
from fmri2img.datasets.feature_journal import FeatureJournal
from fmri2img.datasets.files import damage
from fmri2img.datasets.manifest import (
    DATA_COLUMNS,
    SpaceName,
    read_manifest,
    seal,
    write_manifest,
)
from fmri2img.datasets.npy import pack_npz
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import Progress
from fmri2img.datasets.writer import write_file
from fmri2img.errors import InputError
from fmri2img.files import alone

Compute = Callable[[list[np.ndarray], list[list[str]]], np.ndarray]
"""From `n` pictures, uint8 `(height, width, 3)`, and their captions to features `(n, *shape)`."""

Runner = Callable[[Dataset, Space, FeatureColumns], None]
"""Writes the new rows of the shards that are to do, and adds each to the columns as it is done."""

DTYPES = ("float16", "float32", "bfloat16")


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

    A picture that several subjects saw is computed once. Statistics are over training pictures only, each
    distinct picture once, in float64, of the values as they are stored. Killed and called again with the same
    name, shape, dtype and extractor, it goes on with the shards that are left; with another, it starts afresh.

    Args:
        path: data set folder.
        name: of the space; letters, digits, `-` and `_`.
        shape: of one picture's feature.
        dtype: stored as `float16`, `float32` or `bfloat16` (uint16 members with its bits).
        extractor: what computes it, as plain data (model, revision, layer); it is the identity of the space.
        compute: called once for each shard that has pictures which none before it has.
        progress: called with (what, done, total) in distinct pictures.

    Raises:
        InputError: another extractor has the name, or `compute` returns something else than announced.
    """

    def features(dataset: Dataset, samples: Samples) -> np.ndarray:
        return compute(*read_inputs(dataset, samples))

    space = Space(name, tuple(int(n) for n in shape), dtype, extractor)
    return add_columns(path, space, partial(in_this_process, features=features), progress)


def add_columns(path: str | Path, space: Space, runner: Runner, progress: Progress | None = None) -> Dataset:
    """`add_feature_space` by whatever computes it: `runner` is asked for the shards that are to do."""
    root = Path(path).absolute()
    _check_name(space.name, space.dtype)
    described = space.told()
    if not root.is_dir():
        read_manifest(root)  # which says what is wrong
    with alone(root, f"Another job is adding features to {root}: wait until it is done."):
        dataset = Dataset.open(root)
        known = dataset.feature_spaces.get(space.name)
        if known is not None:
            if known.model_dump(include=set(described)) == described:
                return dataset
            raise InputError(
                f"{root} already has a feature space {space.name}, {known.dtype} {known.shape}, by "
                f"{known.extractor}: choose another name."
            )
        journal = FeatureJournal(root, space.name, described | {"data": dataset.fingerprint})
        columns = FeatureColumns(dataset, journal, space, progress)
        runner(dataset, space, columns)
        _commit(root, space, columns)
        columns.clear()
        journal.close()
    return Dataset.open(root)


def _commit(root: Path, space: Space, columns: FeatureColumns) -> None:
    """Statistics, then the manifest that names the new files."""
    entries, statistics = columns.finished()
    entry = write_file(root, f"features/{space.name}.statistics.npz", pack_npz(statistics)).model_dump()
    plain = read_manifest(root).model_dump()
    plain["feature_spaces"][space.name] = space.told() | {"statistics": entry, "digest": "0" * 64}
    for record, column in zip(plain["shards"], entries, strict=True):
        record["columns"][space.name] = column.model_dump()
    manifest = seal(plain)
    write_manifest(root, manifest)
    write_croissant(root, manifest)


def _check_name(name: str, dtype: str) -> None:
    try:
        TypeAdapter(SpaceName).validate_python(name)
    except ValidationError:
        raise InputError(f"{name!r} cannot name a feature space: use letters, digits, '-' and '_'.") from None
    if name in DATA_COLUMNS or dtype not in DTYPES:
        raise InputError(
            f"Feature space {name!r} of {dtype}: use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, and no name of "
            f"{list(DATA_COLUMNS)}."
        )


def read_inputs(dataset: Dataset, samples: Samples) -> tuple[list[np.ndarray], list[list[str]]]:
    """Pictures and captions of samples. Raises DamageError that names file and key of one that cannot be read."""
    rows = range(len(samples))
    return [_picture(dataset, samples, i) for i in rows], [dataset.captions(samples, i) for i in rows]


def _picture(dataset: Dataset, samples: Samples, i: int) -> np.ndarray:
    try:
        return dataset.picture(samples, i)
    except (
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # whole bytes, and no picture: what Pillow says of them
        file = dataset.manifest.shards[int(samples.shard[i])].columns["stimuli"].file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise damage(dataset.path, file, f"it is no picture ({reason})", str(samples.keys[i])) from error
