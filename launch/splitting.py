"""Splits that hold whole clusters of similar pictures out of training, and a control that holds out as many others."""

from pathlib import Path

import numpy as np

from fmri2img.datasets import Dataset, NamedSplit
from fmri2img.datasets.named_splits import add_splits
from fmri2img.errors import InputError
from fmri2img.evaluation.clusters import cluster, how_many, nearest_centre

FITTED = 5000  # pictures that k-means sees; the others are put to the nearest centre


def hold_out_clusters(
    data: Path, out: Path, *, hold_out: int, clusters: int | None, space: str, name: str, seed: int
) -> dict[str, int]:
    """Make a data set folder with three more splits; returns the number of pictures of each.

    `NAME-train` is all of training but the pictures of `hold_out` clusters, `NAME-control` all but as many drawn at
    random, and `NAME-test` the test pictures of these clusters. Decoders trained on the first two and judged on the
    third say what scores owe to training pictures like those of the test.

    Raises:
        InputError: a space that is not cached, more clusters than there are, or a subject with too few test pictures.
    """
    dataset = Dataset.open(data)
    train, test = (_pictures(dataset, partition, space) for partition in ("train", "test"))
    count = clusters or how_many(len(test[0]))
    if not 1 <= hold_out < count:
        raise InputError(
            f"--hold-out-clusters {hold_out} of {count}: use 1 to {count - 1}, or more --clusters"
        )
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(train[0]))[:FITTED]
    centre = cluster(train[1][some], count, seed=seed).centre
    label = {
        part: nearest_centre(features, centre) for part, (_, features) in (("train", train), ("test", test))
    }
    chosen = rng.permutation(np.unique(label["test"]))[:hold_out]
    held = {part: np.isin(label[part], chosen) for part in label}
    control = np.zeros(len(train[0]), bool)
    control[rng.permutation(len(control))[: held["train"].sum()]] = True
    told = f"{hold_out} of {count} clusters by {space}, seed {seed}"
    splits = {
        f"{name}-train": _split("train", train[0][~held["train"]], f"training pictures but those of {told}"),
        f"{name}-control": _split(
            "train", train[0][~control], f"training pictures but as many at random as {told} have"
        ),
        f"{name}-test": _split("test", test[0][held["test"]], f"test pictures of {told}"),
    }
    _check_enough(dataset, splits)
    add_splits(data, out, splits)
    return {key: len(split.nsd_ids or ()) for key, split in splits.items()}


def _split(partition: str, ids: np.ndarray, description: str) -> NamedSplit:
    return NamedSplit(
        "train" if partition == "train" else "test", tuple(ids.tolist()), description=description
    )


def _pictures(dataset: Dataset, partition: str, space: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) of the distinct pictures of a partition over all subjects, and features (n, d)."""
    ids: list[np.ndarray] = []
    features: list[np.ndarray] = []
    known: set[int] = set()
    for subject in dataset.subjects:
        table = dataset.samples(subject, partition)
        rows = np.array([i for i, n in enumerate(table.nsd_id.tolist()) if n not in known], np.int64)
        known.update(table.nsd_id.tolist())
        if len(rows):
            ids.append(table.nsd_id[rows])
            features.append(dataset.read_features(table, rows, space).reshape(len(rows), -1))
    if not ids:
        raise InputError(f"{dataset.path} has no {partition} pictures: there is nothing to hold out")
    return np.concatenate(ids), np.concatenate(features)


def _check_enough(dataset: Dataset, splits: dict[str, NamedSplit]) -> None:
    for name, split in splits.items():
        for subject in dataset.subjects:
            seen = int(np.isin(dataset.samples(subject, split.partition).nsd_id, split.nsd_ids or ()).sum())
            if seen < 2:
                raise InputError(
                    f"{name} would hold {seen} pictures of {subject}, and 2 are the least: hold out other clusters "
                    "with --seed, or another number of them"
                )
