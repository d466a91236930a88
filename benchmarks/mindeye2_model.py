"""A decoder of MindEye2's dimensions in torch alone, with its losses, for the benchmarks.

After Scotti et al. 2024 (ICML, arXiv 2403.11207): a linear head a subject, four residual MLP blocks, one linear layer
to 256 CLIP tokens of width 1664, a projector for retrieval, a low-level branch, and a diffusion prior. Parameter counts
are the published ones. Different: the blocks take part in the result (as published, with a sequence of one, they do
not), attention in the prior has no positions beside the learned ones, negatives are of all ranks.

Legend for shapes: B rows, H hidden, T tokens, W token width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

# Voxels of "nsdgeneral" (Allen et al. 2022), by subject.
VOXELS = {
    f"subj{n + 1:02d}": v for n, v in enumerate((15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386))
}
GRID, LOW, MAPS = 7, 64, 512  # of the low-level branch: places a side, channels, channels of ConvNeXt's maps


@dataclass(frozen=True)
class Sizes:
    """Widths and depths; the defaults are the published ones."""

    voxels: Mapping[str, int] = field(default_factory=lambda: dict(list(VOXELS.items())[1:]))
    hidden: int = 4096
    tokens: int = 256
    width: int = 1664
    blocks: int = 4
    prior_depth: int = 6
    attention_heads: int = 32
    timesteps: int = 100
    prior: bool = True
    low_level: bool = True


SMALL = Sizes(
    {"subj01": 60, "subj02": 50}, hidden=48, tokens=8, width=32, blocks=2, prior_depth=2, attention_heads=4
)


class Residual(nn.Module):
    """x + MLP(LayerNorm(x)), on (B, H)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(0.15),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with group norms and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(32, inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(32, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class LowLevel(nn.Module):
    """(B, H) to VAE latents (B, 4, 28, 28) and to maps (B, 49, 512) that are compared with ConvNeXt's."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.spread = nn.Sequential(nn.Linear(hidden, LOW * GRID**2), nn.Dropout(0.3))
        self.norm = nn.GroupNorm(1, LOW)

        def larger(width: int) -> list[nn.Module]:
            return [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]

        blocks: list[nn.Module] = [nn.Conv2d(LOW, 128, 3, padding=1)]
        blocks += [ConvBlock(128, 128), ConvBlock(128, 128)]
        blocks += [ConvBlock(128, 128), ConvBlock(128, 128), *larger(128)]
        blocks += [ConvBlock(128, 64), ConvBlock(64, 64), *larger(64)]
        blocks += [ConvBlock(64, 32), ConvBlock(32, 32), nn.GroupNorm(32, 32), nn.SiLU()]
        self.latents = nn.Sequential(*blocks, nn.Conv2d(32, 4, 3, padding=1))
        maps: list[nn.Module] = []
        for inputs in (LOW, MAPS, MAPS):
            maps += [nn.Conv2d(inputs, MAPS, 1, bias=False), nn.GroupNorm(1, MAPS), nn.ReLU()]
        self.maps = nn.Sequential(*maps[:-2])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.norm(self.spread(x).unflatten(1, (LOW, GRID, GRID)))
        return self.latents(grid), self.maps(grid).flatten(2).transpose(1, 2)


class PriorLayer(nn.Module):
    """Attention with one key and value for all heads, then a gated MLP four times as wide, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, each = heads, width // heads
        self.norm, self.wide_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * each, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 8 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query = self.query(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(normed)[:, None].expand(-1, self.heads, -1, -1)
        key, value = pair.chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        content, gate = self.wide(self.wide_norm(x)).chunk(2, dim=-1)
        return x + self.narrow(content * functional.silu(gate))


class Prior(nn.Module):
    """Noisy tokens and the backbone's tokens, each (B, T, W), and timesteps (B,) to the clean tokens (B, T, W)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.timesteps, width = sizes.timesteps, sizes.width
        steps = torch.arange(sizes.timesteps, dtype=torch.float32)
        self.register_buffer("signal", torch.cos((steps + 1) / sizes.timesteps * math.pi / 2) ** 2)
        self.register_buffer("rates", torch.exp(torch.linspace(0, -math.log(1e4), width // 2)))
        wide = 2 * width
        self.time = nn.Sequential(
            nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, width)
        )
        self.places = nn.Parameter(0.02 * torch.randn(sizes.tokens, width))
        self.no_image = nn.Parameter(0.02 * torch.randn(sizes.tokens, width))
        self.no_brain = nn.Parameter(0.02 * torch.randn(sizes.tokens, width))
        self.layers = nn.Sequential(
            *(PriorLayer(width, sizes.attention_heads) for _ in range(sizes.prior_depth))
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width, bias=False)

    def forward(self, clean: Tensor, brain: Tensor) -> Tensor:
        """Mean squared error of the clean tokens at random timesteps, each condition left out for a fifth of rows."""
        rows, tokens = len(clean), clean.shape[1]
        step = torch.randint(self.timesteps, (rows,), device=clean.device)
        signal = self.signal[step][:, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * torch.randn_like(clean)
        drop = torch.rand(2, rows, 1, 1, device=clean.device) < 0.2
        noisy = torch.where(drop[0], self.no_image, noisy)
        brain = torch.where(drop[1], self.no_brain, brain)
        angle = step[:, None] * self.rates
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))[:, None]
        found = self.layers(torch.cat([brain, time, noisy + self.places], 1))[:, -tokens:]
        return functional.mse_loss(self.out(self.norm(found)).float(), clean)


class MindEye2(nn.Module):
    """Responses of several subjects to predictions of `Sizes.tokens` tokens and of what the low level needs."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, hidden, width = sizes, sizes.hidden, sizes.width
        self.heads = nn.ModuleDict({name: nn.Linear(count, hidden) for name, count in sizes.voxels.items()})
        self.backbone = nn.Sequential(*(Residual(hidden) for _ in range(sizes.blocks)))
        self.tokens = nn.Linear(hidden, sizes.tokens * width)
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)]
        self.direction = nn.Sequential(*layers)
        self.low_level = LowLevel(hidden) if sizes.low_level else None
        self.prior = Prior(sizes) if sizes.prior else None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `loss` needs: retrieval directions (B, T W), the prior's loss, latents and maps of low level."""
        latent = torch.cat([head(batch[name]) for name, head in self.heads.items()])
        shared = self.backbone(latent)
        tokens = self.tokens(shared).unflatten(1, (self.sizes.tokens, self.sizes.width))
        outputs = {"direction": self.direction(tokens).flatten(1)}
        if self.prior is not None:
            outputs["prior"] = self.prior(batch["tokens"], tokens)
        if self.low_level is not None:
            outputs["latents"], outputs["maps"] = self.low_level(shared)
        return outputs

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, so that the mean of its gradients over ranks is that of the global batch.

        In float32, outside of autocast: cosines are divided by 0.006.
        """
        outputs = {name: value.float() for name, value in outputs.items()}
        target = gather(batch["tokens"].flatten(1))
        loss = world_size() * soft_contrast(gather(outputs["direction"]), target, target, 0.006)
        if "prior" in outputs:
            loss = loss + 30 * outputs["prior"]
        if "maps" in outputs:
            loss = loss + 0.5 * functional.l1_loss(outputs["latents"], batch["latents"])
            maps, own, augmented = (
                x.flatten(0, 1) for x in (outputs["maps"], batch["maps"], batch["augmented"])
            )
            loss = loss + 0.05 * soft_contrast(maps, augmented, own, 0.2)
        return loss


def soft_contrast(predicted: Tensor, target: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """SoftCLIP (Gao et al. 2023, arXiv 2303.17561) between rows of (N, F), labelled by teacher against target."""
    predicted, target, teacher = (functional.normalize(x, dim=1) for x in (predicted, target, teacher))
    label, score = teacher @ target.T / temperature, predicted @ target.T / temperature
    rows = functional.cross_entropy(score, label.softmax(1))
    return (rows + functional.cross_entropy(score.T, label.T.softmax(1))) / 2


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(rows: Tensor) -> Tensor:
    """Rows of all ranks, with gradients for this rank's own."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows
    return torch.cat(parts)
