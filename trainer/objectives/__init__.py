"""Losses as pure functions, what a recipe says of them, and their weighted sum over the spaces of a recipe."""

from fmri2img.trainer.objectives.caching import MicroBatches, joined_outputs, split_rows
from fmri2img.trainer.objectives.composite import LossTerms, decoder_loss, judge, judge_whole
from fmri2img.trainer.objectives.contrastive import (
    bimixco_loss,
    contrastive_loss,
    soft_contrastive_loss,
    softclip_loss,
)
from fmri2img.trainer.objectives.mixing import Mixing, draw_mixing
from fmri2img.trainer.objectives.prior import Draws, draw_noise, fixed_noise, noised, prior_loss
from fmri2img.trainer.objectives.regression import (
    cosine_loss,
    cycle_loss,
    l1_loss,
    regression_loss,
    response_loss,
)
from fmri2img.trainer.objectives.settings import Losses, Place, ResponseLosses, active_mixing, check_losses

__all__ = [
    "Draws",
    "LossTerms",
    "Losses",
    "MicroBatches",
    "Mixing",
    "Place",
    "ResponseLosses",
    "active_mixing",
    "bimixco_loss",
    "check_losses",
    "contrastive_loss",
    "cosine_loss",
    "cycle_loss",
    "decoder_loss",
    "draw_mixing",
    "draw_noise",
    "fixed_noise",
    "joined_outputs",
    "judge",
    "judge_whole",
    "l1_loss",
    "noised",
    "prior_loss",
    "regression_loss",
    "response_loss",
    "soft_contrastive_loss",
    "softclip_loss",
    "split_rows",
]
