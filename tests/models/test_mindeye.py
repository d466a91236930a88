"""MindEye and MindEye2 with published weights: outputs are the public code's, and weights go back as they came."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.models.config import DecoderConfig
from fmri2img.models.mindeye import MindEyeDecoder
from fmri2img.models.mindeye_weights import Generation, Names, exported, imported, sizes_of
from fmri2img.models.prior import PriorConfig
from fmri2img.models.spaces import TargetSpace

Both = tuple[Generation, MindEyeDecoder, dict[str, Tensor], dict[str, Tensor]]
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
PRIORS = {
    "mindeye2": PriorConfig(depth=2, heads=2, head_width=36, last_norm="stable", sampler="dalle2"),
    "mindeye1": PriorConfig(depth=1, heads=2, head_width=64, last_norm="stable", sampling_steps=100),
}
NAMES = {"mindeye2": Names("tokens", "latents", "maps"), "mindeye1": Names("tokens")}
SCALE = {"mindeye2": 1.0, "mindeye1": 768**-0.5}


def space(
    name: str, shape: tuple[int, ...], scale: float = 1.0, prior: PriorConfig | None = None
) -> TargetSpace:
    return TargetSpace(name, shape, np.zeros(shape, np.float32), scale, prior is not None, prior)


def built(generation: str) -> MindEyeDecoder:
    """A decoder of the golden file's sizes for subjects b and a, in that order of its heads."""
    prior, scale = PRIORS[generation], SCALE[generation]
    if generation == "mindeye1":
        spaces = {"tokens": space("tokens", (2, 768), scale, prior)}
        config = DecoderConfig(architecture="mindeye1", latent=20, hidden=2048, blocks=4, entry_dropout=0.5)
        decoder = config.build({"b": 7}, spaces)
    else:
        spaces = {
            "tokens": space("tokens", (6, 24), scale, prior),
            "latents": space("latents", (4, 28, 28)),
            "maps": space("maps", (49, 512)),
        }
        config = DecoderConfig(
            architecture="mindeye2", latent=20, hidden=24, blocks=0, entry_dropout=0.3, maps="maps"
        )
        decoder = config.build({"b": 7, "a": 9}, spaces)
    assert isinstance(decoder, MindEyeDecoder)
    return decoder.eval()


def subjects(generation: str) -> list[str]:
    return ["b", "a"] if generation == "mindeye2" else ["b"]


@pytest.fixture(scope="module", params=["mindeye1", "mindeye2"])
def both(request: pytest.FixtureRequest, mindeye_published: ModuleType) -> Both:
    """Generation, decoder with the golden file's weights, these, and the public code's outputs."""
    generation: Generation = request.param
    weights, outputs = mindeye_published.published(generation)
    decoder = built(generation)
    taken = imported(weights, sizes_of(weights, generation), subjects(generation), NAMES[generation])
    missing, unexpected = decoder.load_state_dict(taken, strict=False)
    assert not unexpected
    kept = [f"branches.{name}.{part}" for name in ("tokens", "latents", "maps") for part in ("mean", "scale")]
    assert all(name.startswith(("alignment.", *kept)) for name in missing)
    return generation, decoder, weights, outputs


@pytest.fixture
def responses(mindeye_published: ModuleType) -> dict[str, Tensor]:
    given = mindeye_published.given
    return {"b": given("subject 0", 2, 7), "a": given("subject 1", 2, 9)}


def rows_as_published(decoder: MindEyeDecoder) -> tuple[list[str], list[int]]:
    """Our rows are in the order of ids, theirs in that of the heads' list."""
    return decoder.subjects, ([2, 3, 0, 1] if len(decoder.subjects) == 2 else [0, 1])


def test_heads_tokens_directions_latents_and_maps_are_those_of_the_public_code(
    both: Both, responses: dict[str, Tensor]
) -> None:
    generation, decoder, _, theirs = both
    names, order = rows_as_published(decoder)
    with torch.no_grad():
        found = decoder({name: responses[name] for name in names})
    torch.testing.assert_close(found.latent[order], theirs["latent"], **TOLERANCE)
    tokens = theirs["tokens"]
    torch.testing.assert_close(found.features["tokens"][order].view(tokens.shape), tokens, **TOLERANCE)
    torch.testing.assert_close(
        found.directions["tokens"][order].view(tokens.shape), theirs["directions"], **TOLERANCE
    )
    if generation == "mindeye2":
        latents = found.features["latents"][order][:2].view(2, 4, 28, 28)
        torch.testing.assert_close(latents, theirs["latents"], **TOLERANCE)
        maps = found.features["maps"][order][:2].view(2, 49, 512)[:, :, ::8]
        torch.testing.assert_close(maps, theirs["maps"], **TOLERANCE)


def test_a_step_of_the_prior_is_that_of_the_public_code_with_and_without_its_condition(
    both: Both, mindeye_published: ModuleType
) -> None:
    _, decoder, _, theirs = both
    condition, prior = theirs["tokens"].flatten(1), decoder.prior("tokens")
    noisy = mindeye_published.given("noisy", *theirs["tokens"].shape).flatten(1)
    for name, expected in theirs.items():
        if name.startswith("denoised-"):
            without = name == "denoised-dropped"
            timestep = torch.full((len(noisy),), 30 if without else int(name.removeprefix("denoised-")))
            dropped = torch.full((len(noisy), 2), without)
            with torch.no_grad():
                found = prior(noisy, timestep, condition, dropped)
            torch.testing.assert_close(found, expected.flatten(1), **TOLERANCE)


def test_what_the_prior_draws_of_given_noise_is_what_the_public_code_draws(
    both: Both,
) -> None:
    generation, decoder, _, theirs = both
    seeds = {"sampled-20": 20, "sampled-100": 100 if generation == "mindeye2" else 1, "sampled-guided": 5}
    prior = decoder.prior("tokens")
    was = prior.config
    for name, seed in seeds.items():
        if name not in theirs:
            continue
        steps, guidance = (100 if name == "sampled-100" else 20), (2.0 if name == "sampled-guided" else 1.0)
        prior.config = was.model_copy(update={"sampling_steps": steps, "guidance": guidance})
        generator = torch.Generator().manual_seed(seed)
        # Predictions come and drawn features go in the space's own units, which MindEye's code scales by a factor.
        predicted = {"tokens": theirs["tokens"][:1] * SCALE[generation]}
        drawn = decoder.for_pictures(predicted, [generator])["tokens"]
        torch.testing.assert_close(drawn, theirs[name], **TOLERANCE)
    prior.config = was


def test_exported_weights_have_the_published_names_and_come_in_again_as_the_same_decoder(
    both: Both,
) -> None:
    generation, decoder, weights, _ = both
    sizes, people, names = sizes_of(weights, generation), subjects(generation), NAMES[generation]
    given_back = exported(decoder.state_dict(), sizes, people, names)
    assert {n: v.shape for n, v in given_back.items()} == {n: v.shape for n, v in weights.items()}
    assert sizes_of(given_back, generation) == sizes
    for name, value in weights.items():
        # What mixer blocks add is in the biases behind them now.
        if "mixer_blocks" not in name and name not in (
            "backbone.backbone_linear.bias",
            "backbone.blin1.bias",
        ):
            torch.testing.assert_close(given_back[name], value, rtol=1e-5, atol=1e-6)
    again = imported(given_back, sizes, people, names)
    assert all(torch.equal(again[name], decoder.state_dict()[name]) for name in again)


def test_heads_go_to_the_subjects_named_in_the_order_of_the_file(mindeye_published: ModuleType) -> None:
    weights, _ = mindeye_published.published("mindeye2")
    sizes = sizes_of(weights, "mindeye2")
    assert sizes.voxels == (7, 9)
    one = imported(weights, sizes, ["b", "a"], NAMES["mindeye2"])
    other = imported(weights, sizes, ["a", "b"], NAMES["mindeye2"])
    assert torch.equal(one["heads.b.weight"], weights["ridge.linears.0.weight"])
    assert torch.equal(other["heads.a.weight"], weights["ridge.linears.0.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone.clip_proj.5.bias": None}, "no backbone.clip_proj.5.bias"),
        ({"backbone.extra.weight": torch.zeros(2)}, "backbone.extra.weight, for which mindeye2 has no place"),
        ({"diffusion_prior.noise_scheduler.betas": torch.full((100,), 0.01)}, "other noise levels"),
        ({"backbone.mixer_blocks2.0.0.bias": torch.zeros(2)}, "one token"),
        ({"backbone.backbone_linear.weight": None}, "backbone_linear.weight, which every mindeye2 has"),
    ],
)
def test_weights_that_are_not_what_they_are_taken_for_are_refused(
    mindeye_published: ModuleType, change: dict[str, Tensor | None], said: str
) -> None:
    weights, _ = mindeye_published.published("mindeye2")
    weights = {name: value for name, value in (weights | change).items() if value is not None}
    with pytest.raises(InputError, match=said):
        imported(weights, sizes_of(weights, "mindeye2"), ["b", "a"], NAMES["mindeye2"])


def test_every_parameter_is_trained(responses: dict[str, Tensor]) -> None:
    """Published decoders carry millions that no loss moves (their mixer blocks)."""
    decoder = built("mindeye2").train()
    found = decoder(responses)
    sums = [value.square().sum() for some in (found.features, found.directions) for value in some.values()]
    torch.stack(sums).sum().backward()
    still = [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("priors.") for name in still)


@pytest.mark.parametrize(
    ("shapes", "maps", "said"),
    [
        ({"latents": (4, 28, 28), "maps": (36, 512)}, "maps", "grids of"),
        ({"latents": (4, 27, 27)}, None, "edge in fours"),
        ({"latents": (4, 28, 28)}, "maps", "no space of the recipe"),
    ],
)
def test_low_level_spaces_that_share_no_grid_are_refused(
    shapes: dict[str, tuple[int, ...]], maps: str | None, said: str
) -> None:
    config = DecoderConfig(architecture="mindeye2", latent=4, hidden=4, blocks=0, maps=maps)
    with pytest.raises(InputError, match=said):
        config.build({"a": 3}, {name: space(name, shape) for name, shape in shapes.items()})
