"""What is judged: reconstructions of items and the pictures among which they are identified, checked to fit."""

from dataclasses import dataclass, field

import numpy as np

from fmri2img.errors import InputError

NAMED = 5


@dataclass(frozen=True)
class Reconstructions:
    """What a decoder made of n items, aligned: pictures, predicted features, or both."""

    keys: np.ndarray  # (n,) str, unique
    subject: str
    nsd_ids: np.ndarray  # (n,) int
    pictures: np.ndarray | None = None  # (n, H, W, 3) uint8
    features: dict[str, np.ndarray] = field(default_factory=dict)  # space: (n, *shape) float32
    directions: dict[str, np.ndarray] = field(default_factory=dict)  # space: (n, features), for retrieval
    perceived: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # network: (n, *shape), of the pictures made
    seeds: np.ndarray | None = None  # (n,) int, which sample of its picture an item is


@dataclass(frozen=True)
class Truth:
    """The m distinct pictures among which items are identified: all of the split, judged or not."""

    nsd_ids: np.ndarray  # (m,) int, unique
    pictures: np.ndarray | None = None  # (m, H, W, 3) uint8
    features: dict[str, np.ndarray] = field(default_factory=dict)  # space: (m, *shape) float32
    centres: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # space: (*shape), the mean over training pictures
    perceived: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # network: (m, *shape), of the pictures seen


def features_of(space: str, made: Reconstructions, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Predicted (n, *shape) and true (m, *shape) features of a space, of one shape and finite."""
    if space not in truth.features:
        known = ", ".join(sorted(truth.features)) or "none"
        raise InputError(
            f"feature space {space!r} is predicted but its truth is not given: known are {known}."
        )
    predicted, candidates = made.features[space], truth.features[space]
    if predicted.shape[1:] != candidates.shape[1:]:
        raise InputError(
            f"feature space {space!r} is predicted as {predicted.shape[1:]} and stored as "
            f"{candidates.shape[1:]}: both must have one shape. Use features of the same extractor."
        )
    bad = ~np.isfinite(predicted).reshape(len(predicted), -1).all(1)
    if bad.any():
        raise InputError(
            f"{bad.sum()} of {len(bad)} predictions of {space!r} are not finite ({_some(made.keys[bad])}): "
            "reconstruct again from a checkpoint whose training did not diverge."
        )
    bad = ~np.isfinite(candidates).reshape(len(candidates), -1).all(1)
    if bad.any():
        raise InputError(
            f"true features of {space!r} are not finite for nsd_id {_some(truth.nsd_ids[bad])}: "
            "cache them again."
        )
    return predicted, candidates


def places(made: Reconstructions, truth: Truth) -> np.ndarray:
    """The place of each item's picture among the candidates, (n,), after checking both sides."""
    n, m = len(made.keys), len(truth.nsd_ids)
    lengths = {"nsd_ids": made.nsd_ids} | ({} if made.pictures is None else {"pictures": made.pictures})
    lengths |= {} if made.seeds is None else {"seeds": made.seeds}
    for name, value in (lengths | made.features | made.directions | made.perceived).items():
        if len(value) != n:
            raise InputError(f"{n} keys but {len(value)} of {name!r}: every item needs one.")
    for name, value in (
        ({} if truth.pictures is None else {"pictures": truth.pictures}) | truth.features | truth.perceived
    ).items():
        if len(value) != m:
            raise InputError(f"{m} candidate pictures but {len(value)} of {name!r}: every one needs its own.")
    if len(np.unique(made.keys)) != n or len(np.unique(truth.nsd_ids)) != m:
        raise InputError(
            "a key or a candidate's nsd_id occurs twice: each must be there once. Remove the copy."
        )
    if len(np.unique(made.nsd_ids)) < 2:
        raise InputError(f"{n} items of fewer than 2 distinct pictures: identification needs at least 2.")
    unknown = ~np.isin(made.nsd_ids, truth.nsd_ids)
    if unknown.any():
        raise InputError(
            f"nsd_id {_some(made.nsd_ids[unknown])} reconstructed but not among the split's {m} pictures: "
            "evaluate on the split that was reconstructed."
        )
    order = np.argsort(truth.nsd_ids)
    return np.asarray(order[np.searchsorted(truth.nsd_ids, made.nsd_ids, sorter=order)])


def _some(values: np.ndarray) -> str:
    """The first few values in words."""
    names = ", ".join(str(value) for value in values[:NAMED])
    return names + (f" and {len(values) - NAMED} more" if len(values) > NAMED else "")
