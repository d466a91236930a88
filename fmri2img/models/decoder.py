"""The decoder: one linear head a subject, a latent space and a backbone that all subjects share, a branch a space.

Where a recipe asks for them: a diffusion prior behind a branch (`prior.py`), and a linear map a subject from the latent
back to its voxels, for losses on rebuilt responses (after MindBridge, Wang et al. 2024, CVPR, arXiv 2404.07850).

Legend for shapes: B rows of a batch (all subjects), B_s rows of one subject, V_s its voxels, L latent, F features.

The multi-subject layout follows Scotti et al. 2024 (MindEye2, ICML, arXiv 2403.11207, section 2.1): a linear map per
subject into a shared latent, one shared network behind it. Differences: heads are keyed by subject id, not by
position; every branch has a linear path beside its MLP, and the residual paths start at zero, so that a decoder whose
heads and linear paths come from ridge regression (see `closed_form.py`) is that ridge regression at step 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.models.adapters import Adapter
from fmri2img.models.parts import Alignment, Branch, ResidualBlock, ResidualBranch
from fmri2img.models.pretrained import Layout, Pretrained
from fmri2img.models.prior import DiffusionPrior, Noised
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


class Outputs(NamedTuple):
    """What the decoder computes for a batch, rows of subjects one after another; features are standardised.

    `latent` (B, L) of the heads; `features` and, of directed spaces, `directions` {space: (B, F)}. Only when asked
    about noisy features: `denoised` {space: (B, F)}, what each prior says of them; `rebuilt` {subject: (B_s, V_s)}, its
    responses from its latent; `returned` {subject: (B_s, L)}, its latent after a way through the next subject's voxels.
    """

    latent: Tensor
    features: dict[str, Tensor]
    directions: dict[str, Tensor]
    denoised: dict[str, Tensor]
    rebuilt: dict[str, Tensor]
    returned: dict[str, Tensor]


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
        rebuild: bool = False,
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
        # Sorted, so that the order of features does not depend on how a recipe or a manifest lists them.
        self.backbone, self.branches = self._shared_parts({name: spaces[name] for name in sorted(spaces)})
        self.priors = nn.ModuleDict(
            {
                name: DiffusionPrior(name, spaces[name].shape, prior)
                for name in self.branches
                if (prior := spaces[name].prior) is not None
            }
        )
        self.rebuild = nn.ModuleDict()
        if rebuild:
            self._sizes["rebuild"] = 1
            self.rebuild = nn.ModuleDict({name: nn.Linear(latent, voxels[name]) for name in self.heads})
        self.alignment = self._alignment(spaces)
        if adapter_rank:
            self.add_adapters(adapter_rank)

    def _shared_parts(self, spaces: Mapping[str, TargetSpace]) -> tuple[nn.Module, nn.ModuleDict]:
        """Backbone and branches, of the sizes in `self._sizes`; the branches in the order of `spaces`."""
        hidden, dropout = self._sizes["hidden"], self._sizes["dropout"]
        backbone = nn.ModuleList(
            ResidualBlock(self.latent, hidden, dropout) for _ in range(self._sizes["blocks"])
        )
        branches = {
            name: ResidualBranch(space, self.latent, hidden, dropout) for name, space in spaces.items()
        }
        return backbone, nn.ModuleDict(branches)

    def _alignment(self, spaces: Mapping[str, TargetSpace]) -> Alignment:
        return Alignment(sum(space.size for space in spaces.values()), self.latent)

    def _read(self, latent: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """What every branch makes of latents (B, L): standardised features and, of directed spaces, directions."""
        shared = latent
        for block in self._blocks():
            shared = block(shared, latent)
        return {name: branch(shared) for name, branch in self.branches.items()}

    def _blocks(self) -> list[ResidualBlock]:
        return [block for block in self.backbone.children() if isinstance(block, ResidualBlock)]

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
            {name: self.prior(name).config for name in self.priors},
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

    def prior(self, space: str) -> DiffusionPrior:
        """The prior of one feature space."""
        prior = self.priors[space]
        assert isinstance(prior, DiffusionPrior)
        return prior

    def forward(self, responses: Mapping[str, Tensor], noised: Mapping[str, Noised] | None = None) -> Outputs:
        """All that losses read; without `noised`, what predictions need.

        `responses` maps subject id to (B_s, V_s), `noised` the spaces with a prior to what it is asked; it is empty,
        not None, for a decoder without priors that shall rebuild responses. The subjects must be all of the decoder's
        when training: ZeRO needs the same graph on every rank at every step.
        """
        unknown = sorted(set(responses) - set(self.heads))
        if unknown:
            raise InputError(
                f"this decoder has heads for {self.subjects}, not for {unknown}: finetune it on them first"
            )
        latents = {name: self.heads[name](responses[name]) for name in self.heads if name in responses}
        latent = torch.cat(list(latents.values()))
        outputs = self._read(latent)
        features = {name: out[0] for name, out in outputs.items()}
        directions = {name: out[1] for name, out in outputs.items() if out[1] is not None}
        if noised is None:
            return Outputs(latent, features, directions, {}, {}, {})
        denoised = {
            name: prior(noised[name].noisy, noised[name].timestep, features[name], noised[name].dropped)
            for name, prior in self.priors.items()
        }
        return Outputs(latent, features, directions, denoised, *self._rebuilt(latents))

    def _rebuilt(self, latents: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Responses from latents, and latents after a way through the voxels of the subject that comes next.

        Published code draws a pair of subjects at every step, on each rank by itself; here every subject goes through
        the next one of the batch in order, the last through the first, so that the graph is always the same.
        """
        if not len(self.rebuild):
            return {}, {}
        names = list(latents)
        rebuilt = {name: self.rebuild[name](latent) for name, latent in latents.items()}
        returned = {
            name: self.heads[other](self.rebuild[other](latents[name]))
            for name, other in zip(names, [*names[1:], names[0]], strict=True)
        }
        return rebuilt, returned

    @torch.no_grad()
    def predict(self, responses: Mapping[str, Tensor]) -> Predictions:
        """Predictions in the units of each space. The module must be in evaluation mode."""
        latent, features, retrieval, *_ = self(responses)
        restored = {name: self.branch(name).restore(value) for name, value in features.items()}
        return Predictions(restored, retrieval, latent)

    @torch.no_grad()
    def for_pictures(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Features (B, *shape) as a prior draws them, from those predicted, where a space has one that is used.

        `features` may be averages of predictions over repeats. Row i draws from `generators[i]`, on the CPU; so it
        depends on no other row. The module must be in evaluation mode.
        """
        drawn = dict(features)
        for name in self.priors:
            prior, branch = self.prior(name), self.branch(name)
            if prior.config.use == "sample" and name in features:
                sample = prior.sample(branch.standardise(features[name]).float(), generators)
                drawn[name] = branch.restore(sample)
        return drawn

    def standardise(self, features: Mapping[str, Tensor]) -> Tensor:
        """All spaces side by side, standardised: (B, sum of F), in the order of the branches."""
        return torch.cat([self.branch(name).standardise(features[name]) for name in self.branches], dim=1)

    def with_subjects(self, voxels: Mapping[str, int], *, keep: bool = False) -> None:
        """Fresh heads for these subjects; everything shared stays, and with `keep` the other subjects' heads.

        Maps from the latent back to voxels go with the heads, where there are any.
        """
        heads: dict[str, nn.Module] = {name: nn.Linear(voxels[name], self.latent) for name in sorted(voxels)}
        back: dict[str, nn.Module] = {}
        if len(self.rebuild):
            back = {name: nn.Linear(self.latent, voxels[name]) for name in sorted(voxels)}
        if keep:
            heads |= {name: head for name, head in self.heads.items() if name not in heads}
            back |= {name: layer for name, layer in self.rebuild.items() if name not in back}
        self.heads = nn.ModuleDict({name: heads[name] for name in sorted(heads)})
        self.rebuild = nn.ModuleDict({name: back[name] for name in sorted(back)})

    def add_adapters(self, rank: int) -> None:
        """Give every block of the backbone a low-rank adapter that changes nothing yet.

        Raises InputError when there are adapters of another rank, or no block to adapt.
        """
        has = self._sizes.get("adapter_rank", 0)
        blocks = self._blocks()
        if has not in (0, rank) or not blocks:
            raise InputError(
                f"adapters of rank {rank} do not fit a decoder of {len(blocks)} blocks with adapters of rank "
                f"{has}: use its rank, or train its head or the whole"
            )
        if not has:
            for block in blocks:
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
