"""How decoders are judged: metrics per item, intervals by picture, and a report to look at."""

from fmri2img.evaluation.evaluate import evaluate
from fmri2img.evaluation.given import Reconstructions, Truth
from fmri2img.evaluation.intervals import Estimate, estimate, estimate_difference
from fmri2img.evaluation.results import Evaluation, EvaluationSettings, Measure, difference

__all__ = [
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "Measure",
    "Reconstructions",
    "Truth",
    "difference",
    "estimate",
    "estimate_difference",
    "evaluate",
]
