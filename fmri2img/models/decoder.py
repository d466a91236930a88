"""The decoder: one linear head a subject, a latent space and a backbone that all subjects share, a branch a space.

Legend for shapes: B rows of a batch (all subjects), B_s rows of one subject, V_s its voxels, L latent, F features.

The multi-subject layout follows Scotti et al. 2024 (MindEye2, ICML, arXiv 2403.11207, section 2.1): a linear map per
subject into a shared latent, one shared network behind it. Differences: heads are keyed by subject id, not by
position; every branch has a linear path beside its MLP, and the residual paths start at zero, so that a decoder whose
heads and linear paths come from ridge regression (see `closed_form.py`) is that ridge regression at step 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.models.adapters import Adapter
from fmri2img.models.pretrained import Layout, Pretrained
from fmri2img.models.spaces import TargetSpace


@dataclass(frozen=True)
class Predictions:
    """Predictions for the rows of a batch, subjects one after another in the decoder's order.

    `features[space]` is (B, *shape) in the space's own units; `retrieval[space]`, of directed spaces only, is (B, F), a
    direction to compare with centred features by cosine; `latent` is (B, L), the output of the heads.
    """

    features: dict[str, Tensor]
    retrieval: dict[str, Tensor]
    latent: Tensor


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
    """Latent to one feature space: a linear path, an MLP beside it, and a projector where the space is directed."""

    mean: Tensor
    scale: Tensor

    def __init__(self, space: TargetSpace, latent: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.shape = space.shape
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
        self.register_buffer("mean", torch.tensor(space.mean).flatten())
        self.register_buffer("scale", torch.tensor(space.scale))

    def forward(self, latent_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised features and, of a directed space, retrieval directions, both (B, F)."""
        linear = self.linear(latent_BL)
        hidden = self.dropout(nn.functional.gelu(self.expand(self.norm(latent_BL))))
        direction = None if self.projector is None else linear + self.projector(hidden)
        return linear + self.contract(hidden), direction

    def standardise(self, features: Tensor) -> Tensor:
        """Features (B, *shape) in their own units to (B, F) centred and scaled, as the losses see them."""
        return (features.flatten(1) - self.mean) / self.scale

    def restore(self, standardised_BF: Tensor) -> Tensor:
        """The inverse of `standardise`: (B, F) to (B, *shape)."""
        return (standardised_BF * self.scale + self.mean).unflatten(1, self.shape)


class Alignment(nn.Module):
    """The shared latent expected for a picture, as a linear map from its standardised features.

    Fitted in closed form at the end of pretraining and stored with the decoder, it lets a new subject's head be
    fitted without the data of the subjects that came before. `mean` and `covariance` are those of the expected
    latents over the pictures of pretraining: what may be expected of a picture nobody has seen yet. `tuning` is the
    second moment of voxels' weights on the latent: what may be expected of a voxel nobody has measured yet.
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
    def fitted(self) -> bool:
        """False until the map has been estimated."""
        return bool(self.weight.abs().sum() > 0)

    def forward(self, standardised_BF: Tensor) -> Tensor:
        return standardised_BF @ self.weight + self.bias


class MultiSubjectDecoder(Pretrained):
    """Responses of several subjects to predicted features of the pictures that they saw."""

    kind = "decoder"

    def __init__(
        self,
        voxels: Mapping[str, int],
        spaces: Mapping[str, TargetSpace],
        *,
        latent: int,
        hidden: int,
        blocks: int,
        dropout: float,
        adapter_rank: int = 0,
    ) -> None:
        super().__init__()
        if not voxels or not spaces:
            raise InputError(
                f"a decoder needs a subject and a feature space: got {list(voxels)} and {list(spaces)}"
            )
        self.latent = latent
        self._sizes: dict[str, Any] = {
            "latent": latent,
            "hidden": hidden,
            "blocks": blocks,
            "dropout": dropout,
        }
        self.heads = nn.ModuleDict({name: nn.Linear(voxels[name], latent) for name in sorted(voxels)})
        self.backbone = nn.ModuleList(ResidualBlock(latent, hidden, dropout) for _ in range(blocks))
        # Sorted, so that the order of features does not depend on how a recipe or a manifest lists them.
        self.branches = nn.ModuleDict(
            {name: Branch(spaces[name], latent, hidden, dropout) for name in sorted(spaces)}
        )
        self.alignment = Alignment(sum(space.size for space in spaces.values()), latent)
        if adapter_rank:
            self.add_adapters(adapter_rank)

    @property
    def subjects(self) -> list[str]:
        """Subject ids in the order of a batch's rows."""
        return list(self.heads)

    def layout(self) -> Layout:
        """Subjects, spaces and the sizes that `DecoderConfig` names."""
        voxels = {name: int(head.in_features) for name, head in self.heads.items()}  # type: ignore[arg-type]
        branches = {name: self.branch(name) for name in self.branches}
        return Layout(
            voxels,
            {name: branch.shape for name, branch in branches.items()},
            {name for name, branch in branches.items() if branch.projector is not None},
            dict(self._sizes),
        )

    @classmethod
    def make(
        cls, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace], sizes: Mapping[str, Any]
    ) -> Self:
        """A fresh decoder of these sizes."""
        return cls(voxels, spaces, **sizes)

    def branch(self, space: str) -> Branch:
        """The branch of one feature space."""
        branch = self.branches[space]
        assert isinstance(branch, Branch)
        return branch

    def forward(self, responses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Head latents (B, L), standardised features and retrieval directions, {space: (B, F)} each.

        `responses` maps subject id to (B_s, V_s). The subjects must be all of the decoder's when training: ZeRO needs
        the same graph on every rank at every step.
        """
        unknown = sorted(set(responses) - set(self.heads))
        if unknown:
            raise InputError(
                f"this decoder has heads for {self.subjects}, not for {unknown}: finetune it on them first"
            )
        latent = torch.cat([self.heads[name](responses[name]) for name in self.heads if name in responses])
        shared = latent
        for block in self.backbone:
            shared = block(shared, latent)
        outputs = {name: branch(shared) for name, branch in self.branches.items()}
        directions = {name: out[1] for name, out in outputs.items() if out[1] is not None}
        return latent, {name: out[0] for name, out in outputs.items()}, directions

    @torch.no_grad()
    def predict(self, responses: Mapping[str, Tensor]) -> Predictions:
        """Predictions in the units of each space. The module must be in evaluation mode."""
        latent, features, retrieval = self(responses)
        restored = {name: self.branch(name).restore(value) for name, value in features.items()}
        return Predictions(restored, retrieval, latent)

    def standardise(self, features: Mapping[str, Tensor]) -> Tensor:
        """All spaces side by side, standardised: (B, sum of F), in the order of the branches."""
        return torch.cat([self.branch(name).standardise(features[name]) for name in self.branches], dim=1)

    def with_subjects(self, voxels: Mapping[str, int], *, keep: bool = False) -> None:
        """Fresh heads for these subjects; everything shared stays, and with `keep` the other subjects' heads."""
        heads: dict[str, nn.Module] = {name: nn.Linear(voxels[name], self.latent) for name in sorted(voxels)}
        if keep:
            heads |= {name: head for name, head in self.heads.items() if name not in heads}
        self.heads = nn.ModuleDict({name: heads[name] for name in sorted(heads)})

    def add_adapters(self, rank: int) -> None:
        """Give every block of the backbone a low-rank adapter that changes nothing yet.

        Raises InputError when there are adapters of another rank, or no block to adapt.
        """
        has = self._sizes.get("adapter_rank", 0)
        if has not in (0, rank) or not len(self.backbone):
            raise InputError(
                f"adapters of rank {rank} do not fit a decoder of {len(self.backbone)} blocks with adapters of rank "
                f"{has}: use its rank, or train its head or the whole"
            )
        if not has:
            for block in self.backbone:
                assert isinstance(block, ResidualBlock)
                block.adapter = Adapter(self.latent, block.expand.out_features, rank)
            self._sizes["adapter_rank"] = rank


def decay_groups(
    module: nn.Module, weight_decay: float, *, rates: Mapping[Any, float] | None = None
) -> list[dict[str, object]]:
    """Optimiser groups: weight matrices decay; biases and norms (one-dimensional parameters) do not.

    `rates` gives some parts (the first word of their parameters' names) another `share` of the learning rate.
    """
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    groups: list[dict[str, object]] = []
    shares = {name: (rates or {}).get(name.split(".")[0], 1.0) for name, _ in named}
    for share in sorted(set(shares.values())):
        for decay, members in (
            (weight_decay, [p for name, p in named if shares[name] == share and p.ndim > 1]),
            (0.0, [p for name, p in named if shares[name] == share and p.ndim <= 1]),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "share": share})
    return groups
