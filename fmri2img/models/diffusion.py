"""Diffusion of an embedding: how noise is added to it, and how it is drawn from noise again.

Legend for shapes: B rows, `...` the embedding's own shape, T timesteps from 0 (almost clean) to T - 1 (almost noise).
`signal[t]` is the share of the embedding's variance that is left at timestep t, often written with a bar over alpha.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["x0", "eps", "v"]


@cache
def cosine_signal(timesteps: int, *, offset: float = 0.008, limit: float = 0.999) -> Tensor:
    """(T,) float64: the cosine schedule of Nichol and Dhariwal 2021 (ICML, equation 17), betas at most `limit`."""

    def level(t: float) -> float:
        return math.cos((t / timesteps + offset) / (1 + offset) * math.pi / 2) ** 2

    kept = [max(1 - limit, level(t + 1) / level(t)) for t in range(timesteps)]
    return torch.tensor(kept, dtype=torch.float64, device="cpu").cumprod(0)


def add_noise(embedding: Tensor, noise: Tensor, timestep_B: Tensor, signal_T: Tensor) -> Tensor:
    """(B, ...): the embedding at a timestep, sqrt(signal) embedding + sqrt(1 - signal) noise.

    Ho, Jain and Abbeel 2020 (NeurIPS), equation 4.
    """
    kept, lost = levels(embedding, timestep_B, signal_T)
    return kept * embedding + lost * noise


def embedding_of(
    predicted: Tensor, noisy: Tensor, timestep_B: Tensor, signal_T: Tensor, *, predicts: Prediction
) -> Tensor:
    """(B, ...): the embedding that a prediction stands for, given what it was made from."""
    kept, lost = levels(noisy, timestep_B, signal_T)
    if predicts == "x0":
        return predicted
    if predicts == "eps":
        return (noisy - lost * predicted) / kept
    return kept * noisy - lost * predicted


def levels(like: Tensor, timestep_B: Tensor, signal_T: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of the shares of signal and noise, (B, 1, ...) to multiply `like` (B, ...) by."""
    signal = signal_T.to(like.device)[timestep_B].reshape(-1, *[1] * (like.ndim - 1))
    return signal.sqrt().to(like.dtype), (1 - signal).sqrt().to(like.dtype)


def draw_embedding(
    denoise: Callable[[Tensor, Tensor], Tensor],
    size: int,
    generators: Sequence[torch.Generator],
    *,
    timesteps: int,
    steps: int,
    eta: float,
    device: torch.device,
) -> Tensor:
    """(B, size) float32: one embedding for each of B generators, from noise to clean in `steps` steps.

    `denoise(noisy (B, size), timestep (B,))` says what the embedding is. Equation 12 of Song, Meng and Ermon 2021
    (ICLR, DDIM): `eta` 0 adds no noise on the way, 1 as much as DDPM's posterior, and with eta 1 and a step for every
    timestep it is DDPM's sampling (Ho, Jain and Abbeel 2020, algorithm 2, with the posterior's variance). Steps are
    spread evenly from the last timestep to the first. All noise of a row is drawn on the CPU from the row's own
    generator, so that it depends on no other row and no device.
    """
    signal = cosine_signal(timesteps)
    times = torch.linspace(timesteps - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    x = draw_noise(generators, (size,), device)
    for now, following in zip(times, [*times[1:], -1], strict=True):
        embedding = denoise(x, torch.full((len(x),), now, device=device))
        if following < 0:
            return embedding
        a, b = float(signal[now]), float(signal[following])
        noise = (x - math.sqrt(a) * embedding) / math.sqrt(1 - a)
        fresh = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = math.sqrt(b) * embedding + math.sqrt(max(0.0, 1 - b - fresh**2)) * noise
        if fresh:
            x = x + fresh * draw_noise(generators, (size,), device)
    raise AssertionError("unreachable: the last step returns")


def draw_as_dalle2(
    denoise: Callable[[Tensor, Tensor], Tensor],
    size: int,
    generators: Sequence[torch.Generator],
    *,
    timesteps: int,
    steps: int,
    eta: float,
    device: torch.device,
) -> Tensor:
    """(B, size) float32: as `draw_embedding`, in the steps of the DALLE2-pytorch code that published priors draw with.

    It spreads one step more from -1 on and cuts the numbers off, so that sampling begins below the last timestep and
    asks `steps` - 1 times; and of a step's two levels of noise it takes those one timestep nearer to clean, but the
    network is told, and noise is computed, at the step itself.
    """
    signal = cosine_signal(timesteps)
    cleaner = torch.cat([torch.ones(1, dtype=signal.dtype), signal[:-1]])
    times = torch.linspace(-1.0, timesteps, steps + 1)[:-1].int().tolist()[::-1]
    x = draw_noise(generators, (size,), device)
    for now, following in pairwise(times):
        embedding = denoise(x, torch.full((len(x),), now, device=device))
        if following < 0:
            x = embedding
            continue
        at, a, b = float(signal[now]), float(cleaner[now]), float(cleaner[following])
        noise = (x - math.sqrt(at) * embedding) / math.sqrt(1 - at)
        fresh = eta * math.sqrt((1 - a / b) * (1 - b) / (1 - a))
        x = math.sqrt(b) * embedding + math.sqrt(max(0.0, 1 - b - fresh**2)) * noise
        if following > 0:
            x = x + fresh * draw_noise(generators, (size,), device)
    return x


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal (len(generators), *shape) float32, row b from generator b on the CPU, whatever the device."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)
