"""Diffusion priors: what they learn that no regression can, how they sample, and what published weights fit."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.diffusion import add_noise, cosine_signal, draw_embedding
from fmri2img.models.prior import DiffusionPrior, Noised, PriorConfig
from fmri2img.models.spaces import TargetSpace

SMALL = {"depth": 2, "heads": 2, "head_width": 8, "width": 24, "timesteps": 20, "sampling_steps": 10}


def config(**changes: object) -> PriorConfig:
    return PriorConfig.model_validate({**SMALL, **changes})


def made(shape: tuple[int, ...] = (3, 4), seed: int = 0, **changes: object) -> DiffusionPrior:
    torch.manual_seed(seed)
    return DiffusionPrior("words", shape, config(**changes)).eval()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def condition(rows: int, features: int = 12, seed: int = 5) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def test_a_prior_learns_the_two_things_that_a_response_may_mean_where_a_regression_gives_neither() -> None:
    """The truth: given c, the embedding is c + 1 or c - 1 in its first channel, each as often; nothing between."""
    prior = made((2,), timesteps=30, sampling_steps=15, width=32, condition_dropout=0.1)
    signal = cosine_signal(30)
    generator = torch.Generator().manual_seed(1)
    rate, steps, rows = 3e-3, 400, 256
    optimiser = torch.optim.AdamW(prior.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        given = 0.5 * torch.randn(rows, 2, generator=generator)
        side = torch.randint(0, 2, (rows, 1), generator=generator) * 2.0 - 1
        clean = given + torch.cat([side, torch.zeros(rows, 1)], 1)
        timestep = torch.randint(0, 30, (rows,), generator=generator)
        noisy = add_noise(clean, torch.randn(rows, 2, generator=generator), timestep, signal)
        dropped = torch.rand(rows, 2, generator=generator) < 0.1
        loss = (prior(noisy, timestep, given, dropped) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.step()
    given = torch.tensor([0.4, -0.6]).expand(400, 2)
    found = prior.sample(given, generators(*range(400))) - given
    # The mean of the two is where a regression's best answer lies; a sample lies at one of them.
    near = (found[:, 0].abs() - 1).abs()
    assert float((near < 0.35).double().mean()) > 0.95
    assert 0.35 < float((found[:, 0] > 0).double().mean()) < 0.65
    assert float(found[:, 1].abs().mean()) < 0.2
    other = prior.sample(-given, generators(*range(400))) + given
    assert float(((other[:, 0].abs() - 1).abs() < 0.35).double().mean()) > 0.95


def test_a_step_for_every_timestep_with_eta_1_is_ddpm() -> None:
    """Against algorithm 2 of Ho, Jain and Abbeel 2020 with the posterior's mean and variance written out."""
    signal, size = cosine_signal(12), 5

    def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(noisy + timestep[:, None] / 7)

    found = draw_embedding(
        denoise, size, generators(3, 4), timesteps=12, steps=12, eta=1.0, device=torch.device("cpu")
    )
    for row, generator in enumerate(generators(3, 4)):
        x = torch.randn(size, generator=generator).double()
        for t in range(11, -1, -1):
            a, before = float(signal[t]), float(signal[t - 1]) if t else 1.0
            beta = 1 - a / before
            clean = torch.tanh(x + t / 7)
            x = math.sqrt(before) * beta / (1 - a) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - a) * x
            if t:
                x = x + math.sqrt((1 - before) / (1 - a) * beta) * torch.randn(size, generator=generator)
        assert torch.allclose(found[row].double(), x, atol=1e-5)


def test_without_noise_on_the_way_the_first_noise_decides_and_a_known_embedding_is_found() -> None:
    truth = torch.tensor([0.3, -1.2, 0.7])
    for steps in (1, 4, 9):
        found = draw_embedding(
            lambda noisy, timestep: truth.expand(len(noisy), -1),
            3,
            generators(0, 1),
            timesteps=9,
            steps=steps,
            eta=0.0,
            device=torch.device("cpu"),
        )
        assert torch.equal(found, truth.expand(2, -1))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_a_row_depends_on_its_condition_and_generator_alone(shape: tuple[int, ...], eta: float) -> None:
    prior = made(shape, eta=eta, guidance=1.5)
    given = condition(4)
    together = prior.sample(given, generators(1, 2, 3, 4))
    again = prior.sample(given, generators(1, 2, 3, 4))
    assert torch.equal(together, again)
    order = [2, 0, 3, 1]
    others = given[order].clone()
    others[3] += 9.0
    moved = prior.sample(others, generators(3, 1, 4, 77))
    for place, row in enumerate(order[:3]):
        torch.testing.assert_close(moved[place], together[row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved[3], together[1], atol=1e-2)
    assert not torch.allclose(prior.sample(given, generators(9, 2, 3, 4))[0], together[0], atol=1e-2)


def test_guidance_1_is_the_prior_itself_and_0_has_never_heard_of_the_condition() -> None:
    given = condition(3)
    plain = made().sample(given, generators(1, 2, 3))
    assert torch.equal(made(guidance=1.0).sample(given, generators(1, 2, 3)), plain)
    nothing = made(guidance=0.0)
    torch.testing.assert_close(
        nothing.sample(given, generators(1, 2, 3)), nothing.sample(-given, generators(1, 2, 3))
    )
    assert not torch.allclose(plain, made().sample(-given, generators(1, 2, 3)), atol=1e-3)
    # Guidance is linear in what is said at the last step from noise, where one step is all there is.
    once = [made(guidance=g, sampling_steps=1).sample(given, generators(1, 2, 3)) for g in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(once[2], once[0] + 3 * (once[1] - once[0]), rtol=1e-4, atol=1e-5)


def test_rows_that_go_without_see_neither_condition_nor_noisy_tokens() -> None:
    prior, timestep = made(), torch.tensor([3, 3])
    one, other = condition(2, seed=1), condition(2, seed=2)
    everything = torch.tensor([[True, True], [False, False]])
    found, moved = prior(one, timestep, one, everything), prior(other, timestep, other, everything)
    assert torch.allclose(found[0], moved[0], atol=1e-6) and not torch.allclose(found[1], moved[1], atol=1e-3)
    for column in (0, 1):
        half = torch.zeros(2, 2, dtype=torch.bool)
        half[:, column] = True
        kept, changed = (one, other) if column == 0 else (other, one)
        with torch.no_grad():
            same = prior(one, timestep, kept, half) if column == 0 else prior(kept, timestep, one, half)
            again = (
                prior(one, timestep, changed, half) if column == 0 else prior(changed, timestep, one, half)
            )
        torch.testing.assert_close(same, again)


def test_in_a_causal_prior_no_token_sees_a_later_one() -> None:
    for causal in (True, False):
        prior = made((3, 4), causal=causal)
        noisy, changed = condition(1), condition(1)
        changed[0, 8:] += 1.0  # the last of three tokens
        asked = torch.tensor([4]), condition(1, seed=8), torch.zeros(1, 2, dtype=torch.bool)
        difference = (prior(noisy, *asked) - prior(changed, *asked)).abs().unflatten(1, (3, 4)).amax(2)[0]
        assert bool((difference[:2] == 0).all()) == causal and float(difference[2].detach()) > 1e-4


def test_without_a_width_there_are_as_many_parameters_as_in_mindeye2s_prior() -> None:
    with torch.device("meta"):
        prior = DiffusionPrior("tokens", (256, 1664), PriorConfig(heads=32, head_width=52))
    # Its notebook prints 259.9 million (Scotti et al. 2024, code of the training notebook).
    assert sum(parameter.numel() for parameter in prior.parameters()) / 1e6 == pytest.approx(259.9, abs=0.05)


@pytest.mark.parametrize("queries", ["positions", "all-positions", "tokens"])
@pytest.mark.parametrize("width", [None, 6])
def test_every_parameter_has_a_gradient_whatever_is_learned_for_the_tokens(
    queries: str, width: int | None
) -> None:
    prior = made(queries=queries, width=width)
    dropped = torch.zeros(5, 2, dtype=torch.bool)
    prior(condition(5), torch.arange(5), condition(5, seed=6), dropped).square().sum().backward()
    assert [name for name, value in prior.named_parameters() if value.grad is None] == []


def test_settings_and_spaces_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match=r"space map has shape \(4, 2, 2\): a prior takes spaces of shape"):
        DiffusionPrior("map", (4, 2, 2), config())
    with pytest.raises(ValidationError, match="sampling_steps 30 are more than the 20 timesteps"):
        config(sampling_steps=30)


@pytest.fixture
def decoder() -> MultiSubjectDecoder:
    """A decoder with a prior on one of two spaces, and maps back to voxels."""
    torch.manual_seed(0)
    spaces = {
        "words": TargetSpace("words", (3, 4), np.full((3, 4), 0.5, np.float32), 2.0, True, config()),
        "map": TargetSpace("map", (2, 3), np.zeros((2, 3), np.float32), 1.0),
    }
    return DecoderConfig(latent=5, hidden=6, blocks=1, rebuild=True).build({"b": 4, "a": 3}, spaces).eval()


def test_what_pictures_are_made_from_is_the_sample_in_the_units_of_the_space(
    decoder: MultiSubjectDecoder,
) -> None:
    predicted = decoder.predict({"a": condition(2, 3)}).features
    drawn = decoder.for_pictures(predicted, generators(1, 2))
    assert torch.equal(drawn["map"], predicted["map"])
    standardised = decoder.branch("words").standardise(predicted["words"])
    truth = decoder.prior("words").sample(standardised, generators(1, 2)).unflatten(1, (3, 4)) * 2 + 0.5
    torch.testing.assert_close(drawn["words"], truth)
    assert not torch.allclose(drawn["words"], predicted["words"], atol=0.05)


def test_a_prior_that_is_told_to_use_the_mean_leaves_predictions_as_they_are() -> None:
    spaces = {"words": TargetSpace("words", (4,), np.zeros(4, np.float32), 1.0, prior=config(use="mean"))}
    decoder = DecoderConfig(latent=5, hidden=6).build({"a": 3}, spaces).eval()
    predicted = decoder.predict({"a": condition(2, 3)}).features
    assert torch.equal(decoder.for_pictures(predicted, generators(1, 2))["words"], predicted["words"])


def test_priors_and_maps_back_to_voxels_come_back_from_a_folder(
    decoder: MultiSubjectDecoder, tmp_path: Path
) -> None:
    loaded = MultiSubjectDecoder.from_pretrained(decoder.save_pretrained(tmp_path / "out"))
    assert loaded.layout() == decoder.layout()
    mine, its = decoder.state_dict(), loaded.state_dict()
    assert {name.split(".")[0] for name in its} >= {"priors", "rebuild"}
    assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    features = decoder.predict({"a": condition(2, 3)}).features
    one, other = (d.for_pictures(features, generators(1, 2)) for d in (decoder, loaded))
    assert torch.equal(one["words"], other["words"])


def test_maps_back_to_voxels_go_with_the_heads(decoder: MultiSubjectDecoder) -> None:
    kept = decoder.rebuild["a"]
    decoder.with_subjects({"c": 7}, keep=True)
    assert list(decoder.rebuild) == list(decoder.heads) == ["a", "b", "c"] and decoder.rebuild["a"] is kept
    decoder.with_subjects({"d": 2})
    assert list(decoder.rebuild) == list(decoder.heads) == ["d"]


def test_a_cycle_leads_through_the_subject_that_comes_next(decoder: MultiSubjectDecoder) -> None:
    asked = Noised(condition(5), torch.zeros(5, dtype=torch.int64), torch.zeros(5, 2, dtype=torch.bool))
    outputs = decoder({"a": condition(2, 3), "b": condition(3, 4)}, {"words": asked})
    latents = {"a": outputs.latent[:2], "b": outputs.latent[2:]}
    for subject, other in (("a", "b"), ("b", "a")):
        back = decoder.heads[other](decoder.rebuild[other](latents[subject]))
        torch.testing.assert_close(outputs.returned[subject], back)
        torch.testing.assert_close(outputs.rebuilt[subject], decoder.rebuild[subject](latents[subject]))
