"""Equality with the field's own code, which is not here: what it made of twelve pictures is.

`golden/field-pictures.npz` holds made-up pictures, every pixel of which stands for 25 (seen) or 32 (made).
`golden/field-values.json` holds what the evaluations of MindEye2 (its notebook's cells), NeuroPictor
(`eval_metrics.py`) and Brain-Diffuser (both of its scripts) gave for them, run as published but for paths and the
number of pictures, with torchvision 0.16's resizing of tensors written out, scikit-image's meaning of SSIM of the
version each pins, and `stand_in` for every network: what is checked is all that surrounds the networks, not
torchvision's networks.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.evaluation.evaluate import evaluate
from fmri2img.evaluation.given import Reconstructions, Truth
from fmri2img.evaluation.looking import look_at
from fmri2img.evaluation.metrics import published_pools, retrieval
from fmri2img.evaluation.networks import Network
from fmri2img.evaluation.protocols import PROTOCOLS, protocol
from fmri2img.evaluation.results import EvaluationSettings

GOLDEN = Path(__file__).parent / "golden"
VALUES: dict[str, dict[str, float]] = json.loads((GOLDEN / "field-values.json").read_text())


def stand_in(name: str, weights: str, layers: Sequence[str], device: torch.device) -> Network:
    """A layer is one convolution with random weights of its own, drawn from its name."""

    def look(pictures: torch.Tensor) -> Mapping[str, torch.Tensor]:
        found = {}
        for layer in layers:
            legacy = np.random.RandomState(sum(map(ord, name + layer)))
            kernel = torch.from_numpy(legacy.standard_normal((4, 3, 7, 7))).float()
            found[layer] = torch.nn.functional.conv2d(pictures, kernel, stride=5).relu()
        return found

    return look


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    stored = np.load(GOLDEN / "field-pictures.npz")
    return {name: stored[name].repeat(k, 1).repeat(k, 2) for name, k in (("seen", 25), ("made", 32))}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_metric_of_a_protocol_is_that_of_its_published_code(
    pictures: dict[str, np.ndarray], name: Any
) -> None:
    seen, made = pictures["seen"], pictures["made"]
    ids = np.arange(len(seen))
    looked, missing = look_at(protocol(name), made, seen, ids, load=stand_in)
    found = evaluate(
        Reconstructions(ids.astype(str), "subj01", ids, pictures=made),
        Truth(ids, pictures=seen),
        EvaluationSettings(protocol=name, resamples=10),
        more=looked,
        missing=missing,
    )
    values = {metric: found.metrics[metric].value for metric in protocol(name).order()}
    assert values == pytest.approx(VALUES[name], abs=1e-4)
    assert [k for k in found.headlines() if k != "two_way_pixels"] == list(values)


def test_retrieval_in_the_published_pools_is_that_of_the_published_code() -> None:
    """What its code calls forward is what a picture finds among predictions: brain retrieval."""
    legacy = np.random.RandomState(5)
    seen = legacy.standard_normal((400, 16)).astype(np.float32)
    made = (seen + 1.6 * legacy.standard_normal((400, 16))).astype(np.float32)
    found = retrieval(made, seen, pools=published_pools(400))
    wanted = VALUES["mindeye2_retrieval"]
    assert np.average(found.brain, weights=found.draws) == pytest.approx(wanted["forward"], abs=1e-4)
    assert np.average(found.image, weights=found.draws) == pytest.approx(wanted["backward"], abs=1e-4)
    assert abs(wanted["forward"] - wanted["backward"]) > 1e-3  # else the two could not be told apart
