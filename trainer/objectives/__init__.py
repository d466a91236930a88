"""Losses as pure functions, what a recipe says of them, and their weighted sum over the spaces of a recipe."""

from fmri2img.trainer.objectives.caching import MicroBatches
from fmri2img.trainer.objectives.composite import LossTerms, Outputs, decoder_loss, judge
from fmri2img.trainer.objectives.contrastive import (
    bimixco_loss,
    contrastive_loss,
    soft_contrastive_loss,
    softclip_loss,
)
from fmri2img.trainer.objectives.mixing import Mixing, draw_mixing
from fmri2img.trainer.objectives.prior import add_noise, cosine_signal, prior_loss
from fmri2img.trainer.objectives.regression import (
    cosine_loss,
    cycle_loss,
    l1_loss,
    regression_loss,
    response_loss,
)
from fmri2img.trainer.objectives.settings import Losses, Place, active_mixing, check_losses

__all__ = [
    "LossTerms",
    "Losses",
    "MicroBatches",
    "Mixing",
    "Outputs",
    "Place",
    "active_mixing",
    "add_noise",
    "bimixco_loss",
    "check_losses",
    "contrastive_loss",
    "cosine_loss",
    "cosine_signal",
    "cycle_loss",
    "decoder_loss",
    "draw_mixing",
    "judge",
    "l1_loss",
    "prior_loss",
    "regression_loss",
    "response_loss",
    "soft_contrastive_loss",
    "softclip_loss",
]
