"""The parts that all subjects share: a residual block of the backbone, a branch of a feature space, the alignment.

Legend for shapes: B rows of a batch, L latent, F features of a space. Residual paths start at zero (see `decoder.py`).
"""

import torch
from torch import Tensor, nn

from fmri2img.models.adapters import Adapter
from fmri2img.models.spaces import TargetSpace


class ResidualBlock(nn.Module):
    """x + MLP(LayerNorm(x)); the last layer starts at zero, so that the block starts as the identity.

    With an `adapter`, both layers have low-rank updates, and `first`, what the first block was given, a path around.
    """

    adapter: Adapter | None

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(hidden, width)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)
        self.adapter = None

    def forward(self, x_BL: Tensor, first_BL: Tensor) -> Tensor:
        normal = self.norm(x_BL)
        if self.adapter is None:
            hidden = nn.functional.gelu(self.expand(normal))
            return x_BL + self.contract(self.dropout(hidden))
        hidden = self.dropout(nn.functional.gelu(self.expand(normal) + self.adapter.expand(normal)))
        return x_BL + self.contract(hidden) + self.adapter.contract(hidden) + self.adapter.skip(first_BL)


class Branch(nn.Module):
    """From the shared latent to one feature space: what every kind of branch has, whatever it computes."""

    mean: Tensor
    scale: Tensor
    linear: nn.Linear
    projector: nn.Module | None

    def __init__(self, space: TargetSpace) -> None:
        super().__init__()
        self.shape = space.shape
        self.register_buffer("mean", torch.tensor(space.mean).flatten())
        self.register_buffer("scale", torch.tensor(space.scale))

    def standardise(self, features: Tensor) -> Tensor:
        """Features (B, *shape) in their own units to (B, F) centred and scaled, as the losses see them."""
        return (features.flatten(1) - self.mean) / self.scale

    def restore(self, standardised_BF: Tensor) -> Tensor:
        """The inverse of `standardise`: (B, F) to (B, *shape)."""
        return (standardised_BF * self.scale + self.mean).unflatten(1, self.shape)


class ResidualBranch(Branch):
    """Latent to one feature space: a linear path, an MLP beside it, and a projector where the space is directed."""

    def __init__(self, space: TargetSpace, latent: int, hidden: int, dropout: float) -> None:
        super().__init__(space)
        self.linear = nn.Linear(latent, space.size)
        self.norm = nn.LayerNorm(latent)
        self.expand = nn.Linear(latent, hidden)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(hidden, space.size)
        self.projector = nn.Linear(hidden, space.size) if space.directed else None
        for layer in (self.contract, self.projector):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, latent_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised features and, of a directed space, retrieval directions, both (B, F)."""
        linear = self.linear(latent_BL)
        hidden = self.dropout(nn.functional.gelu(self.expand(self.norm(latent_BL))))
        direction = None if self.projector is None else linear + self.projector(hidden)
        return linear + self.contract(hidden), direction


class Alignment(nn.Module):
    """The shared latent expected for a picture, as a linear map from its standardised features.

    Fitted in closed form at the end of pretraining and stored with the decoder, it lets a new subject's head be
    fitted without the data of the subjects that came before. `mean` and `covariance` are those of the expected
    latents over the pictures of pretraining: what may be expected of a picture nobody has seen yet. `tuning` is the
    second moment of voxels' weights on the latent: what may be expected of a voxel nobody has measured yet. A decoder
    that keeps none, because its spaces are too large for closed forms, has one of no features.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    covariance: Tensor
    tuning: Tensor

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(features, latent))
        self.register_buffer("bias", torch.zeros(latent))
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("covariance", torch.zeros(latent, latent))
        self.register_buffer("tuning", torch.zeros(latent, latent))

    @property
    def kept(self) -> bool:
        """False where the decoder keeps no such map."""
        return bool(self.weight.numel())

    @property
    def fitted(self) -> bool:
        """False until the map has been estimated."""
        return bool(self.weight.abs().sum() > 0)

    def forward(self, standardised_BF: Tensor) -> Tensor:
        return standardised_BF @ self.weight + self.bias
