"""The losses of what is yet to come: a diffusion prior's by its three parametrisations, MindBridge's by hand."""

import math

import pytest
import torch
from torch import Tensor

from fmri2img.models.diffusion import Prediction, add_noise, cosine_signal, embedding_of
from fmri2img.trainer.objectives import cycle_loss, prior_loss, response_loss

STEPS = 100
KINDS: list[Prediction] = ["x0", "eps", "v"]


def material() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedding, noise = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator)
    return embedding, noise, torch.tensor([0, 17, 50, 80, 99]), cosine_signal(STEPS)


def test_the_cosine_schedule_is_its_closed_form_and_ends_in_noise() -> None:
    signal = cosine_signal(STEPS)
    level = [math.cos((t / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(STEPS + 1)]
    truth = [level[t + 1] / level[0] for t in range(STEPS - 1)]  # the last beta is limited
    assert signal[:-1].tolist() == pytest.approx(truth, rel=1e-9)
    assert 0 < float(signal[-1]) == pytest.approx(0.001 * float(signal[-2]), rel=1e-9)
    assert signal.tolist() == sorted(signal.tolist(), reverse=True)


def test_noise_and_embedding_keep_the_variance_at_every_timestep() -> None:
    embedding, noise, timestep, signal = material()
    noisy = add_noise(embedding, noise, timestep, signal)
    for i, t in enumerate(timestep.tolist()):
        a = float(signal[t])
        assert torch.allclose(noisy[i], math.sqrt(a) * embedding[i] + math.sqrt(1 - a) * noise[i])


@pytest.mark.parametrize("predicts", KINDS)
def test_the_loss_is_zero_for_the_prediction_that_gives_the_embedding_back(predicts: Prediction) -> None:
    embedding, noise, timestep, signal = material()
    kept = signal[timestep].sqrt().reshape(-1, 1, 1)
    lost = (1 - signal[timestep]).sqrt().reshape(-1, 1, 1)
    right = {"x0": embedding, "eps": noise, "v": kept * noise - lost * embedding}[predicts]
    assert float(prior_loss(right, embedding, noise, timestep, signal, predicts=predicts)) == 0
    noisy = add_noise(embedding, noise, timestep, signal)
    assert torch.allclose(embedding_of(right, noisy, timestep, signal, predicts=predicts), embedding)


@pytest.mark.parametrize(("predicts", "weight"), [("eps", "lost"), ("v", "both")])
def test_the_parametrisations_are_weightings_of_the_error_of_the_embedding(
    predicts: Prediction, weight: str
) -> None:
    # Salimans and Ho 2022, section 4: eps weighs it by signal / (1 - signal), v by 1 / (1 - signal).
    embedding, noise, timestep, signal = material()
    said = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noisy = add_noise(embedding, noise, timestep, signal)
    error = (embedding_of(said, noisy, timestep, signal, predicts=predicts) - embedding).square().mean((1, 2))
    a = signal[timestep]
    truth = (error * (a / (1 - a) if weight == "lost" else 1 / (1 - a))).mean()
    assert float(prior_loss(said, embedding, noise, timestep, signal, predicts=predicts)) == pytest.approx(
        float(truth), rel=1e-9
    )


def test_rebuilt_responses_count_alike_for_every_subject_however_many_voxels() -> None:
    responses = {"subj01": torch.zeros(2, 3), "subj02": torch.zeros(2, 50)}
    rebuilt = {"subj01": torch.full((2, 3), 2.0), "subj02": torch.full((2, 50), 1.0)}
    assert float(response_loss(rebuilt, responses)) == pytest.approx((4 + 1) / 2)
    with pytest.raises(ValueError, match="subj01"):
        response_loss({"subj01": rebuilt["subj01"]}, responses)


def test_a_cycle_that_comes_back_costs_nothing() -> None:
    latent = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert float(cycle_loss(latent, latent)) == 0
    assert float(cycle_loss(latent, latent + 2)) == pytest.approx(4)
