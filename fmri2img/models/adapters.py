"""Low-rank adapters for one person, on a backbone that stays as it is."""

from torch import Tensor, nn


class Adapter(nn.Module):
    """Low-rank updates of both layers of a residual block, and a low-rank path from the head's output around them.

    The updates are LoRA (Hu et al. 2022, ICLR); that finetuning one person profits from paths around the backbone
    beside them is MindTuner's finding (Gong et al. 2025, AAAI). Our path is linear, from the head to every block.

    Every path ends in a layer that starts at zero, so that an adapted decoder starts as the one it adapts.
    """

    def __init__(self, width: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.expand = _low_rank(width, rank, hidden)
        self.contract = _low_rank(hidden, rank, width)
        self.skip = _low_rank(width, rank, width)


def _low_rank(inputs: int, rank: int, outputs: int) -> nn.Sequential:
    up = nn.Linear(rank, outputs, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), up)


def rank_of(tensors: dict[str, Tensor]) -> int:
    """The rank of the adapters among a decoder's tensors; 0 without any."""
    found = [value.shape[0] for name, value in tensors.items() if name.endswith(".adapter.skip.0.weight")]
    return int(found[0]) if found else 0
