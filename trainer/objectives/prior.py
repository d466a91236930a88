"""The loss of a diffusion prior, and the noise that a step of training asks it about.

Legend for shapes: B rows, F features of a space, `...` an embedding's own shape. Noise, timesteps and which rows go
without a condition belong to samples, so they are drawn from (seed, step, subject, lane) like all that does: the same
at every world size and after every resume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.diffusion import Prediction, add_noise, cosine_signal, levels
from fmri2img.models.prior import Noised, PriorConfig
from fmri2img.trainer.objectives.mixing import Mixing
from fmri2img.trainer.seeds import derive_seed


@dataclass(frozen=True)
class Draws:
    """For each row of a rank: noise (B, F) float32, a timestep (B,) int64, and what it goes without (B, 2) bool."""

    noise: Tensor
    timestep: Tensor
    dropped: Tensor

    def to(self, device: torch.device) -> "Draws":
        """The same on a device."""
        return Draws(self.noise.to(device), self.timestep.to(device), self.dropped.to(device))


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
    kept, lost = levels(embedding, timestep_B, signal_T)
    if predicts == "x0":
        target = embedding
    elif predicts == "eps":
        target = noise
    else:
        target = kept * noise - lost * embedding
    return functional.mse_loss(predicted, target)


def draw_noise(
    space: str,
    prior: PriorConfig,
    features: int,
    rows: Mapping[str, int],
    lanes: Sequence[int],
    *,
    seed: int,
    step: int,
) -> Draws:
    """What a step asks the prior of one space about, for a rank's rows.

    `rows` are the rows of each subject, equally many of each lane, in the order of `lanes`. The condition and the noisy
    tokens are left out independently of each other, as published (see `PriorConfig.condition_dropout`).
    """
    noise, timestep, dropped = [], [], []
    for subject, count in rows.items():
        each = count // len(lanes)
        for lane in lanes:
            generator = np.random.default_rng(derive_seed(seed, "prior", space, step, subject, lane))
            timestep.append(generator.integers(prior.timesteps, size=each))
            dropped.append(generator.random((each, 2)) < prior.condition_dropout)
            noise.append(generator.standard_normal((each, features), dtype=np.float32))
    return _draws(noise, timestep, dropped)


def fixed_noise(
    space: str, prior: PriorConfig, features: int, subject: str, nsd_ids: np.ndarray, *, seed: int
) -> Draws:
    """What validation asks about: noise from each picture's name, timesteps spread evenly, nothing left out."""
    noise = [
        np.random.default_rng(derive_seed(seed, "prior", space, "validation", subject, int(nsd_id)))
        .standard_normal((1, features), dtype=np.float32)
        for nsd_id in nsd_ids
    ]  # fmt: skip
    count = len(nsd_ids)
    timestep = np.arange(count) * prior.timesteps // max(1, count)
    return _draws(noise, [timestep], [np.zeros((count, 2), bool)])


def _draws(noise: list[np.ndarray], timestep: list[np.ndarray], dropped: list[np.ndarray]) -> Draws:
    return Draws(
        torch.from_numpy(np.concatenate(noise)),
        torch.from_numpy(np.concatenate(timestep).astype(np.int64)),
        torch.from_numpy(np.concatenate(dropped)),
    )


def noised(
    decoder: MultiSubjectDecoder,
    features: Mapping[str, Tensor],
    draws: Mapping[str, Draws],
    mixing: Mixing | None = None,
) -> dict[str, Noised]:
    """What every prior is asked: true features, mixed as the responses were, with the noise that was drawn."""
    asked = {}
    for name, drawn in draws.items():
        embedding = decoder.branch(name).standardise(features[name])
        if mixing is not None:
            embedding = mixing.mix(embedding)
        signal = cosine_signal(decoder.prior(name).config.timesteps)
        noisy = add_noise(embedding, drawn.noise.to(embedding.dtype), drawn.timestep, signal)
        asked[name] = Noised(noisy, drawn.timestep, drawn.dropped)
    return asked
