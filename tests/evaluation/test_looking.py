"""Scores by networks: stand-ins, against the published expressions written out, and what happens without them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import correlation

from fmri2img.errors import InputError
from fmri2img.evaluation.looking import look_at
from fmri2img.evaluation.networks import Network
from fmri2img.evaluation.protocols import protocol

Smooth = Callable[..., np.ndarray]
LABELS = {
    "alexnet2": "AlexNet(2)",
    "alexnet5": "AlexNet(5)",
    "inception": "Inception",
    "clip": "CLIP",
    "effnet": "EffNet-B",
    "swav": "SwAV",
}


def stand_in(name: str, weights: str, layers: Sequence[str], device: torch.device) -> Network:
    """A network whose layers are fixed random projections of the picture, shrunk."""
    seeds = {layer: sum(map(ord, name + layer)) for layer in layers}

    def look(pictures: torch.Tensor) -> Mapping[str, torch.Tensor]:
        small = torch.nn.functional.adaptive_avg_pool2d(pictures, 8).flatten(1)
        return {
            layer: (small @ torch.randn(192, 50, generator=torch.Generator().manual_seed(seed)))
            .relu()
            .view(-1, 5, 10)
            for layer, seed in seeds.items()
        }

    return look


@pytest.fixture
def pair(smooth: Smooth) -> tuple[np.ndarray, np.ndarray]:
    """Pictures seen and made, (7, 40, 40, 3) uint8."""
    seen, other = (smooth(7, size=40, seed=seed) for seed in (1, 2))
    made = 0.5 * seen + 0.5 * other
    return tuple((v * 255).round().astype(np.uint8).transpose(0, 2, 3, 1) for v in (seen, made))  # type: ignore[return-value]


def published_scores(how: Any, seen: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """The field's expressions on arrays, one look at a time."""
    found = {}
    for look in how.looks:
        network = stand_in(look.network, look.weights, [look.layer], torch.device("cpu"))
        a, b = (
            network(how.prepare(look)(v.transpose(0, 3, 1, 2)))[look.layer].flatten(1).double().numpy()
            for v in (made, seen)
        )
        if look.score == "two-way":
            r = np.corrcoef(b, a)[: len(b), len(b) :]
            found[look.metric] = float(np.mean(np.sum(r < np.diag(r), 0)) / (len(b) - 1))
        else:
            found[look.metric] = float(np.mean([correlation(x, y) for x, y in zip(b, a, strict=True)]))
    return found


@pytest.mark.parametrize("name", ["mindeye2", "brain-diffuser", "neuropictor"])
def test_scores_are_those_of_the_published_expressions(
    pair: tuple[np.ndarray, np.ndarray], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmri2img.evaluation.looking.BATCH", 4)
    monkeypatch.setattr("fmri2img.evaluation.looking.BLOCK", 3)
    seen, made = pair
    how = protocol(name)
    order = np.random.default_rng(0).permutation(7)
    judged, missing = look_at(how, made[order], seen, order, load=stand_in)
    assert missing == {} and {k: v.label for k, v in judged.items()} == LABELS
    wanted = published_scores(how, seen, made)
    assert {k: float(v.scores.mean()) for k, v in judged.items()} == pytest.approx(wanted, abs=1e-6)
    assert {k for k, v in judged.items() if not v.higher_is_better} == {"effnet", "swav"}
    assert judged["clip"].chance == 0.5 and judged["swav"].chance is None


def test_the_protocols_give_different_scores(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Else the test above would hold for a protocol that does nothing."""
    seen, made = pair
    scores = [published_scores(protocol(name), seen, made) for name in ("mindeye2", "brain-diffuser")]
    assert scores[0]["swav"] != scores[1]["swav"]


def test_a_network_runs_once_for_its_layers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    calls: list[tuple[str, int]] = []

    def counting(name: str, weights: str, layers: Sequence[str], device: torch.device) -> Network:
        calls.append((name, len(layers)))
        return stand_in(name, weights, layers, device)

    look_at(protocol("mindeye2"), pair[1], pair[0], np.arange(7), load=counting)
    assert calls == [("alexnet", 2), ("inception_v3", 1), ("clip", 1), ("efficientnet_b1", 1), ("swav", 1)]


def test_what_is_not_here_is_named_and_the_rest_is_scored(pair: tuple[np.ndarray, np.ndarray]) -> None:
    def only_clip(name: str, weights: str, layers: Sequence[str], device: torch.device) -> Network:
        if name != "clip":
            raise InputError(f"{name} is not here")
        return stand_in(name, weights, layers, device)

    judged, missing = look_at(protocol("mindeye2"), pair[1], pair[0], np.arange(7), load=only_clip)
    assert list(judged) == ["clip"]
    assert missing["AlexNet(2)"] == missing["AlexNet(5)"] == "alexnet is not here"
    assert sorted(missing) == sorted(set(LABELS.values()) - {"CLIP"})
