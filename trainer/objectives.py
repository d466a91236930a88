"""Losses as pure functions, and their weighted sum over the spaces of a recipe.

Averaging. The engines average gradients over ranks. A mean over this rank's rows is then the mean over the global
batch, since ranks hold equally many rows. A contrastive loss is computed whole on every rank from gathered rows, and
each rank's backward covers its own rows only, so it is multiplied by the number of ranks before the average.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.collectives import gather_rows, world_size
from fmri2img.trainer.config import SpaceConfig


def regression_loss(predicted_BF: Tensor, target_BF: Tensor) -> Tensor:
    """Mean squared error of standardised features."""
    return functional.mse_loss(predicted_BF, target_BF)


def contrastive_loss(
    predicted_BF: Tensor, target_BF: Tensor, picture_B: Tensor, *, temperature: float
) -> Tensor:
    """Symmetric InfoNCE over cosine similarities (Radford et al. 2021, CLIP, section 2.3).

    Rows that show one picture (repeats, or a picture that several subjects saw) are not each other's negatives: their
    similarities are left out, where the published decoders count them as errors.
    """
    similarity = (
        functional.normalize(predicted_BF, dim=1) @ functional.normalize(target_BF, dim=1).T / temperature
    )
    same = picture_B[:, None] == picture_B[None, :]
    same.fill_diagonal_(False)
    similarity = similarity.masked_fill(same, float("-inf"))
    own = torch.arange(len(similarity), device=similarity.device)
    return (functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)) / 2


@dataclass(frozen=True)
class LossTerms:
    """What to run backward on, and the value of every term on this rank (`space/regression`, `space/contrastive`)."""

    backward: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]

    def total(self, values: Mapping[str, float]) -> float:
        """The weighted sum of term values, as reported."""
        return sum(self.weights[name] * value for name, value in values.items())


def decoder_loss(
    decoder: MultiSubjectDecoder,
    outputs: tuple[Tensor, dict[str, Tensor], dict[str, Tensor]],
    features: Mapping[str, Tensor],
    picture_B: Tensor,
    spaces: Mapping[str, SpaceConfig],
) -> LossTerms:
    """All losses of a recipe on one batch; collective when a contrastive loss is among them."""
    _, predicted, retrieval = outputs
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    backward: Tensor | None = None
    pictures = gather_rows(picture_B)
    for name, space in spaces.items():
        target = decoder.branch(name).standardise(features[name])
        if space.regression:
            key = f"{name}/regression"
            terms[key], weights[key] = regression_loss(predicted[name], target), space.regression
            backward = _add(backward, terms[key] * space.regression)
        if space.contrastive:
            key = f"{name}/contrastive"
            terms[key] = contrastive_loss(
                gather_rows(retrieval[name]), gather_rows(target), pictures, temperature=space.temperature
            )
            weights[key] = space.contrastive
            backward = _add(backward, terms[key] * space.contrastive * world_size())
    assert backward is not None
    # A layer without a loss would have no gradient, and ZeRO must see every parameter at every step.
    for name, space in spaces.items():
        if not space.regression:
            backward = backward + 0.0 * predicted[name].sum()
    return LossTerms(backward, terms, weights)


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term
