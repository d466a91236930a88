"""Learning rate as a pure function of the global step: nothing to save, nothing that counts processes."""

import math

from fmri2img.trainer.config import TrainingConfig

FLOOR = 1e-3


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of a step, counted from 0.

    `one-cycle` and `cosine` fall to a thousandth of the peak at the last step; `one-cycle` (Smith and Topin 2019) also
    rises along a cosine, from a 25th of the peak; the others rise linearly over the warm-up.
    """
    peak = config.learning_rate
    warmup = config.warmup * config.steps
    if step < warmup:
        share = (step + 1) / (warmup + 1)
        if config.schedule == "one-cycle":
            return peak * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * share)) / 2)
        return peak * share
    if config.schedule == "constant":
        return peak
    share = min(1.0, (step - warmup) / max(1.0, config.steps - 1 - warmup))
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * share)) / 2)


def part_rates(config: TrainingConfig, step: int) -> dict[str, float]:
    """The rate of each part of the decoder that `rates` gives a share of its own, at a step counted from 0."""
    return {part: share * learning_rate(config, step) for part, share in sorted(config.rates.items())}
