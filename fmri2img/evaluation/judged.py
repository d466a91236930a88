"""What one metric says of every item, before it is averaged."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Judged:
    """Scores of n items by one metric.

    Attributes:
        scores: (n,) float64.
        label: what tables call it.
        description: what it is, in a sentence.
        chance: what guessing scores, where that is known.
        higher_is_better: False for distances.
        weights: (n,) how much an item counts, where not all count the same.
        headline: whether a short table shows it; None leaves that to the metric's kind.
    """

    scores: np.ndarray
    label: str
    description: str
    chance: float | None
    higher_is_better: bool = True
    weights: np.ndarray | None = None
    headline: bool | None = None
