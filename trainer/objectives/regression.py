"""Losses that compare what was predicted for a row with what is true of it, and nothing else.

Legend for shapes: B rows, F features of a space, V_s voxels of one subject, L latent. Features are standardised:
centred on the training mean and divided by one scale for the whole space.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def regression_loss(predicted_BF: Tensor, target_BF: Tensor) -> Tensor:
    """Mean squared error of standardised features."""
    return functional.mse_loss(predicted_BF, target_BF)


def cosine_loss(predicted_BF: Tensor, target_BF: Tensor) -> Tensor:
    """One minus the cosine between predicted and true features, mean over rows.

    Of centred features, so that a decoder which knows nothing of the picture scores about 1; on CLIP embeddings as they
    come, all of which lie within a narrow cone, it would score far less.
    """
    return (1 - functional.cosine_similarity(predicted_BF, target_BF, dim=1)).mean()


def l1_loss(predicted_BF: Tensor, target_BF: Tensor) -> Tensor:
    """Mean absolute error, as MindEye2's low-level branch has it on VAE latents (Scotti et al. 2024, section 2.2).

    There the latents are multiplied by 0.18215 to have about unit variance; here they are standardised like any space.
    """
    return functional.l1_loss(predicted_BF, target_BF)


def response_loss(rebuilt: Mapping[str, Tensor], responses: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of each subject's responses, rebuilt from the latent; mean over subjects.

    `rebuilt[s]` and `responses[s]` are (B_s, V_s). The reconstruction loss of MindBridge (Wang et al. 2024, CVPR, arXiv
    2404.07850), which pools every subject's voxels to one number of inputs and averages over all; here voxels stay as
    they are, and a subject counts as much as another, however many voxels it has.
    """
    if rebuilt.keys() != responses.keys():
        raise ValueError(f"rebuilt responses are of {list(rebuilt)}, the batch of {list(responses)}")
    return torch.stack([functional.mse_loss(rebuilt[name], responses[name]) for name in responses]).mean()


def cycle_loss(latent_BL: Tensor, returned_BL: Tensor) -> Tensor:
    """Mean squared error between latents and the same latents after a way through another subject's voxels.

    `returned` is what the other subject's head makes of the responses that its decoder builds from `latent`: the cycle
    loss of MindBridge (Wang et al. 2024, CVPR, arXiv 2404.07850). Published code draws one pair of subjects a step, on
    each rank by itself. That is another graph on every rank, under which ZeRO corrupts the update: send every subject's
    latents through the next subject in order, at every step.
    """
    return functional.mse_loss(returned_BL, latent_BL)
