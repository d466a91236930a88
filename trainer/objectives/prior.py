"""The loss of a diffusion prior: a network that turns noise into an embedding, given what was decoded from responses.

Legend for shapes: B rows, `...` the embedding's own shape, T timesteps from 0 (almost clean) to T - 1 (almost noise).
`signal[t]` is the share of the embedding's variance that is left at timestep t, often written with a bar over alpha.
Noise and timesteps are handed in, since randomness that belongs to a sample is drawn from its name.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Prediction = Literal["x0", "eps", "v"]


def cosine_signal(timesteps: int, *, offset: float = 0.008, limit: float = 0.999) -> Tensor:
    """(T,) float64: the cosine schedule of Nichol and Dhariwal 2021 (ICML, equation 17), betas at most `limit`."""

    def level(t: float) -> float:
        return math.cos((t / timesteps + offset) / (1 + offset) * math.pi / 2) ** 2

    kept = [max(1 - limit, level(t + 1) / level(t)) for t in range(timesteps)]
    return torch.tensor(kept, dtype=torch.float64).cumprod(0)


def add_noise(embedding: Tensor, noise: Tensor, timestep_B: Tensor, signal_T: Tensor) -> Tensor:
    """(B, ...): the embedding at a timestep, sqrt(signal) embedding + sqrt(1 - signal) noise.

    Ho, Jain and Abbeel 2020 (NeurIPS), equation 4.
    """
    kept, lost = _levels(embedding, timestep_B, signal_T)
    return kept * embedding + lost * noise


def prior_loss(
    predicted: Tensor,
    embedding: Tensor,
    noise: Tensor,
    timestep_B: Tensor,
    signal_T: Tensor,
    *,
    predicts: Prediction = "x0",
) -> Tensor:
    """Mean squared error between what the prior said and what it should have said at each row's timestep.

    `predicts` is what it was asked for: `x0` the embedding, as DALL-E 2's prior and MindEye's (Ramesh et al. 2022,
    section 2.2); `eps` the noise (Ho, Jain and Abbeel 2020, equation 14); `v` sqrt(signal) noise - sqrt(1 - signal)
    embedding (Salimans and Ho 2022, ICLR, section 4). Published decoders keep the target of the unmixed picture while
    responses are mixed; `embedding` should be mixed as they were.
    """
    kept, lost = _levels(embedding, timestep_B, signal_T)
    if predicts == "x0":
        target = embedding
    elif predicts == "eps":
        target = noise
    else:
        target = kept * noise - lost * embedding
    return functional.mse_loss(predicted, target)


def embedding_of(
    predicted: Tensor, noisy: Tensor, timestep_B: Tensor, signal_T: Tensor, *, predicts: Prediction
) -> Tensor:
    """(B, ...): the embedding that a prediction stands for, given what it was made from."""
    kept, lost = _levels(noisy, timestep_B, signal_T)
    if predicts == "x0":
        return predicted
    if predicts == "eps":
        return (noisy - lost * predicted) / kept
    return kept * noisy - lost * predicted


def _levels(like: Tensor, timestep_B: Tensor, signal_T: Tensor) -> tuple[Tensor, Tensor]:
    signal = signal_T.to(like.device)[timestep_B].reshape(-1, *[1] * (like.ndim - 1))
    return signal.sqrt().to(like.dtype), (1 - signal).sqrt().to(like.dtype)
