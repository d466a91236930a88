"""Which rows of a step are mixed with which, and how much: a pure function of the step, the same at every world size.

Partners are of one subject, since voxels of two brains do not correspond, and of one lane, so that a rank needs no row
of another's. Every draw is from (seed, step, subject, lane).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmri2img.trainer.objectives.settings import BiMixCo
from fmri2img.trainer.seeds import derive_seed


@dataclass(frozen=True)
class Mixing:
    """Row i of this rank is `share[i]` of itself and the rest of row `partner[i]` of this rank; shapes (B,).

    A row that is not mixed is its own partner with share 1.
    """

    partner: Tensor
    share: Tensor

    def mix(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) mixed with their partners'."""
        share = self.share.to(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))
        return share * rows + (1 - share) * rows[self.partner]

    def mix_responses(self, responses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{subject: (B_s, V_s)} mixed; subjects stand one after another in the rank's rows."""
        mixed, start = {}, 0
        for name, rows in responses.items():
            part = slice(start, start + len(rows))
            mixed[name] = Mixing(self.partner[part] - start, self.share[part]).mix(rows)
            start = part.stop
        return mixed

    def to(self, device: torch.device) -> "Mixing":
        """The same on a device."""
        return Mixing(self.partner.to(device), self.share.to(device))


def draw_mixing(
    settings: BiMixCo, rows: Mapping[str, int], lanes: Sequence[int], *, seed: int, step: int
) -> Mixing:
    """The mixing of a rank's rows at a step.

    `rows` are the rows of each subject, equally many of each lane, in the order of `lanes`. Within a lane every row is
    the partner of exactly one other, in a random ring; a row that is alone in its lane stays as it is. Shares come from
    Beta(beta, beta), for the rows that are mixed (Kim et al. 2020, arXiv 2010.06300; the values are MindEye's).
    """
    partners, shares, start = [], [], 0
    for subject, count in rows.items():
        each = count // len(lanes)
        for lane in lanes:
            generator = np.random.default_rng(derive_seed(seed, "mixing", step, subject, lane))
            ring = generator.permutation(each)
            partner = np.empty(each, np.int64)
            partner[ring] = np.roll(ring, 1)
            share = generator.beta(settings.beta, settings.beta, each)
            chosen = (generator.random(each) < settings.mixed) & (partner != np.arange(each))
            partners.append(start + np.where(chosen, partner, np.arange(each)))
            shares.append(np.where(chosen, share, 1.0))
            start += each
    return Mixing(
        torch.from_numpy(np.concatenate(partners)),
        torch.from_numpy(np.concatenate(shares).astype(np.float32)),
    )
