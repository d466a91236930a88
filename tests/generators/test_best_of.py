"""The best of several samples is the one whose feature is nearest to the predicted one, for each item by itself."""

from typing import Any

import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.features.plain import Pixels

Tiny = Any
SAMPLES = 5


def wanted(tiny: Tiny, samples: int = SAMPLES) -> dict[str, Any]:
    return {
        "base": tiny.settings("sd"),
        "space": "pixels",
        "extractor": {"kind": "pixels", "size": 4},
        "samples": samples,
    }


def test_the_nearest_of_all_samples_is_taken(tiny: Tiny) -> None:
    features = tiny.features()
    best = tiny.load("best-of", **wanted(tiny)).generate(features, tiny.seeded(1, 2, 3))
    generators, base = tiny.seeded(1, 2, 3), tiny.load("sd")
    samples = [base.generate(features, generators) for _ in range(SAMPLES)]
    chosen = set()
    for item in range(3):
        drawn = [(s[item] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for s in samples]
        small = torch.from_numpy(Pixels(size=4).load()(drawn)).flatten(1)
        near = torch.nn.functional.cosine_similarity(small, features["pixels"][item].flatten()[None])
        chosen.add(int(near.argmax()))
        assert torch.equal(best[item], samples[int(near.argmax())][item])
    assert len(chosen) > 1


def test_samples_do_not_know_the_neighbours(tiny: Tiny) -> None:
    features, others = tiny.features(), tiny.features(seed=1)
    generator = tiny.load("best-of", **wanted(tiny, samples=3))
    whole = generator.generate(features, tiny.seeded(1, 2, 3))
    mixed = {name: torch.cat([value[:1], others[name][1:]]) for name, value in features.items()}
    assert torch.equal(whole[:1], generator.generate(mixed, tiny.seeded(1, 8, 9))[:1])


def test_a_space_of_another_extractor_is_refused(tiny: Tiny) -> None:
    generator = tiny.load("best-of", **wanted(tiny))
    with pytest.raises(
        InputError, match=r"compares features \(3, 4, 4\) of its extractor with pixels, which is \(3, 8, 8\)"
    ):
        generator.check({"text": (6, 8), "pixels": (3, 8, 8)})
