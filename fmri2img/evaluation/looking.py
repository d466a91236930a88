"""Scores by what networks make of the pictures made and seen, a block of pictures at a time."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from fmri2img.errors import InputError
from fmri2img.evaluation.judged import Judged
from fmri2img.evaluation.metrics import correlation_distance, two_way_identification
from fmri2img.evaluation.networks import Load, Network, load_network
from fmri2img.evaluation.protocols import Look, Protocol

BATCH = 32
BLOCK = 512


def look_at(
    protocol: Protocol,
    made: np.ndarray,
    seen: np.ndarray,
    index: np.ndarray,
    *,
    load: Load = load_network,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Judged], dict[str, str]]:
    """Every metric of a protocol for which its network is here, and why the others are not.

    One network is loaded at a time. Features of all pictures seen are kept while those made pass in blocks, so memory
    is that of one network's features of `seen`: 1 GB for AlexNet's two layers and 1000 pictures.

    Args:
        made: (n, H, W, 3) uint8.
        seen: (m, H', W', 3) uint8, the candidates.
        index: (n,) place of each item's picture among the candidates.
        load: gives a network; raises InputError where it is not to be had.

    Returns:
        Scores by metric, and by the label of each metric that is missing how to get its network.
    """
    judged: dict[str, Judged] = {}
    missing: dict[str, str] = {}
    for looks in _by_network(protocol.looks):
        try:
            first = looks[0]
            network = load(first.network, first.weights, [k.layer for k in looks], torch.device(device))
        except InputError as error:
            missing |= {look.label: str(error) for look in looks}
            continue
        judged |= _scores(protocol, looks, network, made, seen, index)
    return judged, missing


def _by_network(looks: Sequence[Look]) -> list[list[Look]]:
    """Looks that one forward pass serves."""
    groups: dict[tuple[object, ...], list[Look]] = {}
    for look in looks:
        groups.setdefault((look.network, look.weights, look.size, look.filter), []).append(look)
    return list(groups.values())


def _scores(
    protocol: Protocol,
    looks: Sequence[Look],
    network: Network,
    made: np.ndarray,
    seen: np.ndarray,
    index: np.ndarray,
) -> dict[str, Judged]:
    prepare = protocol.prepare(looks[0])
    known = _features(looks, network, prepare, seen)
    scores: dict[str, list[np.ndarray]] = {look.metric: [] for look in looks}
    for start in range(0, len(made), BLOCK):
        part = slice(start, start + BLOCK)
        found = _features(looks, network, prepare, made[part])
        for look in looks:
            a, b = found[look.layer], known[look.layer]
            if look.score == "two-way":
                scores[look.metric].append(two_way_identification(a, b, index[part]))
            else:
                scores[look.metric].append(correlation_distance(a, b[index[part]]))
    return {look.metric: _judged(look, np.concatenate(scores[look.metric]), len(seen)) for look in looks}


def _features(
    looks: Sequence[Look],
    network: Network,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    pictures: np.ndarray,
) -> dict[str, torch.Tensor]:
    """Features (k, d) float32 of k pictures by layer."""
    found: dict[str, torch.Tensor] = {}
    for part, batch in _batches(prepare, pictures):
        made = network(batch)
        for look in looks:
            rows = made[look.layer].flatten(1)
            if look.layer not in found:
                found[look.layer] = torch.empty(len(pictures), rows.shape[1])
            found[look.layer][part] = rows
    return found


def _batches(
    prepare: Callable[[torch.Tensor], torch.Tensor], pictures: np.ndarray
) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, len(pictures), BATCH):
        part = slice(start, start + BATCH)
        chosen = torch.from_numpy(pictures[part]).permute(0, 3, 1, 2)
        yield part, torch.cat([prepare(picture[None]) for picture in chosen])


def _judged(look: Look, scores: np.ndarray, candidates: int) -> Judged:
    where = f"{look.layer} of {look.network} ({look.weights}), shown {look.size} pixels"
    if look.score == "two-way":
        return Judged(
            scores,
            look.label,
            f"Share of the {candidates - 1} other pictures whose {where}, correlates less with that of the "
            "reconstruction than that of the picture seen.",
            0.5,
        )
    return Judged(
        scores,
        look.label,
        f"One minus the correlation of {where}, between reconstruction and picture seen.",
        None,
        higher_is_better=False,
    )
