"""The published networks of MindEye and MindEye2, as decoders like any other: heads by subject id, branches by space.

MindEye: Scotti et al. 2023 (NeurIPS, arXiv 2305.18274, section 3). MindEye2: Scotti et al. 2024 (ICML, arXiv
2403.11207, section 2). Their published weights come in through `mindeye_weights.py` and give the published numbers.
Different:

- MindEye2's four mixer blocks are not here. It runs them with one token, where each block that mixes channels is
  thrown away and each that mixes tokens adds a constant, so that what they do to the latent is adding one number. No
  loss ever moves them; an import folds the number into the biases behind.
- Where the published code has one head a position in a list, heads are keyed by subject id.

Legend for shapes: B rows of a batch, L latent, T tokens of D channels, F features of a space (F = T D), G edge of the
low-level grid.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any, Literal, Self

from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.parts import Alignment, Branch
from fmri2img.models.prior import tokens_of
from fmri2img.models.spaces import TargetSpace

Architecture = Literal["residual", "mindeye1", "mindeye2"]
GRID_CHANNELS, MAP_CHANNELS = 64, 512
UPSAMPLER = (32, 64, 128)  # channels of the upsampler's blocks, from the latents inwards


class MindEyeDecoder(MultiSubjectDecoder):
    """Responses to tokens of CLIP and, in MindEye2, to latents of an autoencoder and maps of a ConvNeXt.

    Spaces of shape (features,) or (tokens, channels) have a linear branch, and the directed ones a projector of every
    token, `hidden` wide, for retrieval. `mindeye1` has `blocks` residual blocks before it, `mindeye2` none. In
    `mindeye2`, a space of shape (channels, height, width) and the one that `maps` names share a low-level grid.
    """

    def __init__(
        self,
        voxels: Mapping[str, int],
        spaces: Mapping[str, TargetSpace],
        *,
        architecture: Architecture,
        latent: int,
        hidden: int,
        blocks: int,
        dropout: float,
        entry_dropout: float = 0.0,
        maps: str | None = None,
        rebuild: bool = False,
    ) -> None:
        self._told: dict[str, Any] = {"architecture": architecture, "entry_dropout": entry_dropout}
        if maps is not None:
            self._told["maps"] = maps
        super().__init__(
            voxels, spaces, latent=latent, hidden=hidden, blocks=blocks, dropout=dropout, rebuild=rebuild
        )
        self._sizes |= self._told

    @classmethod
    def make(
        cls, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace], sizes: Mapping[str, Any]
    ) -> Self:
        """A fresh decoder of these sizes."""
        return cls(voxels, spaces, **sizes)

    def _shared_parts(self, spaces: Mapping[str, TargetSpace]) -> tuple[nn.Module, nn.ModuleDict]:
        sizes, architecture, maps = self._sizes, self._told["architecture"], self._told.get("maps")
        low = {name: space for name, space in spaces.items() if name == maps or len(space.shape) == 3}
        edge = _grid_edge(low, maps, architecture)
        backbone: nn.Module
        if architecture == "mindeye1":
            backbone = PostNormBlocks(
                self.latent, sizes["blocks"], sizes["dropout"], self._told["entry_dropout"]
            )
        else:
            backbone = nn.ModuleDict()
            if edge is not None:
                backbone["grid"] = Grid(self.latent, edge, self._told["entry_dropout"])
        branches: dict[str, Branch] = {}
        for name, space in spaces.items():
            if name == maps:
                branches[name] = MapsBranch(space)
            elif name in low:
                branches[name] = LatentsBranch(space)
            else:
                branches[name] = TokensBranch(space, self.latent, sizes["hidden"])
        return backbone, nn.ModuleDict(branches)

    def _alignment(self, spaces: Mapping[str, TargetSpace]) -> Alignment:
        # At the published sizes a map from 425,984 features to 4096 latents would be as large as the decoder.
        return Alignment(0, 0)

    def _read(self, latent: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        shared, grid = latent, None
        if isinstance(self.backbone, PostNormBlocks):
            shared = self.backbone(latent)
        elif "grid" in self.backbone:  # type: ignore[operator]
            grid = self.backbone["grid"](latent)  # type: ignore[index]
        return {
            name: branch(shared if isinstance(branch, TokensBranch) else grid)
            for name, branch in self.branches.items()
        }


class PostNormBlocks(nn.Module):
    """MindEye's network behind its first linear layer: norm and GELU, then blocks of x + GELU(norm(linear(x)))."""

    def __init__(self, width: int, blocks: int, dropout: float, entry_dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(entry_dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout))
            for _ in range(blocks)
        )

    def forward(self, latent_BL: Tensor) -> Tensor:
        x: Tensor = self.dropout(nn.functional.gelu(self.norm(latent_BL)))
        for block in self.blocks:
            x = x + block(x)
        return x


class TokensBranch(Branch):
    """Latent to all tokens by one linear layer; a projector of each token where the space is directed."""

    def __init__(self, space: TargetSpace, latent: int, hidden: int) -> None:
        super().__init__(space)
        self.tokens, channels = tokens_of(space.name, space.shape)
        self.linear = nn.Linear(latent, space.size)
        self.projector = _projector(channels, hidden) if space.directed else None

    def forward(self, latent_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised features and, of a directed space, retrieval directions, both (B, F)."""
        features = self.linear(latent_BL)
        if self.projector is None:
            return features, None
        return features, self.projector(features.unflatten(1, (self.tokens, -1))).flatten(1)


class Grid(nn.Module):
    """MindEye2's low-level trunk: the latent as a small picture of 64 channels, (B, 64, G, G)."""

    def __init__(self, latent: int, edge: int, dropout: float) -> None:
        super().__init__()
        self.edge = edge
        self.linear = nn.Linear(latent, GRID_CHANNELS * edge * edge)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.GroupNorm(1, GRID_CHANNELS)

    def forward(self, latent_BL: Tensor) -> Tensor:
        grid: Tensor = self.norm(
            self.dropout(self.linear(latent_BL)).unflatten(1, (-1, self.edge, self.edge))
        )
        return grid


class LatentsBranch(Branch):
    """The grid to an autoencoder's latents, (channels, 4 G, 4 G), by the decoder of a small autoencoder."""

    def __init__(self, space: TargetSpace) -> None:
        from diffusers.models.autoencoders.vae import Decoder

        super().__init__(space)
        self.projector = None
        self.upsampler = Decoder(
            in_channels=GRID_CHANNELS,
            out_channels=space.shape[0],
            up_block_types=("UpDecoderBlock2D",) * len(UPSAMPLER),
            block_out_channels=UPSAMPLER,
            layers_per_block=1,
        )

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, F) and nothing to retrieve by."""
        return self.upsampler(grid).flatten(1), None


class MapsBranch(Branch):
    """The grid to one vector for each of its places, (G G, 512): three convolutions of 1 x 1."""

    def __init__(self, space: TargetSpace) -> None:
        super().__init__(space)
        self.projector = None
        self.layers = nn.Sequential(
            nn.Conv2d(GRID_CHANNELS, MAP_CHANNELS, 1, bias=False),
            nn.GroupNorm(1, MAP_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(MAP_CHANNELS, MAP_CHANNELS, 1, bias=False),
            nn.GroupNorm(1, MAP_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(MAP_CHANNELS, space.shape[1], 1),
        )

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, F), places one after another, and nothing to retrieve by."""
        return self.layers(grid).flatten(2).transpose(1, 2).flatten(1), None


def _projector(channels: int, hidden: int) -> nn.Sequential:
    """Norm, GELU, linear, three times; `hidden` is 2048 in MindEye and the tokens' channels in MindEye2."""
    parts: list[nn.Module] = []
    for before, after in ((channels, hidden), (hidden, hidden), (hidden, channels)):
        parts += [nn.LayerNorm(before), nn.GELU(), nn.Linear(before, after)]
    return nn.Sequential(*parts)


def _grid_edge(low: Mapping[str, TargetSpace], maps: str | None, architecture: str) -> int | None:
    """The edge of the grid that the low-level spaces ask for; None without any. Raises InputError where they clash."""
    if maps is not None and maps not in low:
        raise InputError(
            f"decoder.maps names {maps!r}, which is no space of the recipe: name one, or leave it out"
        )
    if architecture == "mindeye1" and low:
        raise InputError(
            f"architecture mindeye1 predicts vectors and tokens, and {sorted(low)} are neither: MindEye's low-level "
            "pipeline is another model, and mindeye2 has both in one"
        )
    edges = set()
    for name, space in low.items():
        shape = space.shape
        fits = (
            len(shape) == 2 and isqrt(shape[0]) ** 2 == shape[0]
            if name == maps
            else shape[1] == shape[2] and shape[1] % 4 == 0
        )
        if not fits:
            rule = (
                "(positions of a square, channels)"
                if name == maps
                else "(channels, edge, edge), edge in fours"
            )
            raise InputError(
                f"space {name} has shape {shape}: the low-level branch of mindeye2 predicts {rule}"
            )
        edges.add(isqrt(shape[0]) if name == maps else shape[1] // 4)
    if len(edges) > 1:
        raise InputError(
            f"{sorted(low)} ask for grids of {sorted(edges)} places an edge: latents of edge 4 n go with n x n maps"
        )
    return edges.pop() if edges else None
