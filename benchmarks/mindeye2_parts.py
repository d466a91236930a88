"""What the benchmarks of MindEye2's step need beside the decoder: batches, the image tower, and counts."""

from collections.abc import Callable

import torch
from mindeye2_model import GRID, MAPS, MindEye2, Sizes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode


def synthetic_batch(sizes: Sizes, rows: int, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Random responses, `rows` of all subjects together, and targets of the published shapes."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    each, left = divmod(rows, len(sizes.voxels))
    counts = [each + (n < left) for n in range(len(sizes.voxels))]
    batch = {name: draw(n, v) for n, (name, v) in zip(counts, sizes.voxels.items(), strict=True)}
    batch["tokens"] = draw(rows, sizes.tokens, sizes.width)
    batch["latents"] = draw(rows, 4, 4 * GRID, 4 * GRID)
    batch["maps"], batch["augmented"] = (draw(rows, GRID**2, MAPS) for _ in range(2))
    return batch


def step_flops(sizes: Sizes, rows: int) -> int:
    """Operations of one forward and backward pass of one process, counted on the meta device.

    Matrix products, attention and convolutions; a multiplication and an addition are two.
    """
    with torch.device("meta"):
        model = MindEye2(sizes)
    batch = synthetic_batch(sizes, rows, torch.device("meta"), 0)
    with FlopCounterMode(display=False) as counter:
        model.loss(model(batch), batch).backward()
    return counter.get_total_flops()


def parameters(model: MindEye2) -> dict[str, int]:
    """Parameters as the published code prints them: heads, backbone with its branches, prior."""
    parts = {"heads": 0, "backbone": 0, "prior": 0}
    for name, value in model.named_parameters():
        part = name.split(".")[0]
        parts[part if part in ("heads", "prior") else "backbone"] += value.numel()
    return parts


def image_tower(device: torch.device, kind: torch.dtype, *, small: bool) -> Callable[[int], Tensor]:
    """Runs a vision transformer of the size of OpenCLIP ViT-bigG/14 on so many random pictures, without gradients.

    Forty-eight layers of width 1664 on 256 patches of 14 pixels and a class token; random weights.
    """
    layers, width, heads, inner, side = (2, 32, 2, 64, 56) if small else (48, 1664, 16, 8192, 224)
    with device:
        patches = nn.Conv2d(3, width, 14, stride=14).to(kind)
        start = nn.Parameter(torch.zeros(1, 1, width, dtype=kind))
        layer = nn.TransformerEncoderLayer(
            width, heads, inner, 0.0, functional.gelu, batch_first=True, norm_first=True
        )
        tower = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(kind).eval()

    @torch.no_grad()
    def run(rows: int) -> Tensor:
        pictures = torch.rand(rows, 3, side, side, device=device, dtype=kind)
        tokens = patches(pictures).flatten(2).transpose(1, 2)
        return tower(torch.cat([start.expand(rows, -1, -1), tokens], 1))

    return run
