"""Published weights of MindEye and MindEye2, to the names of `MindEyeDecoder` and back.

The published files say neither whose head is whose nor what sizes they are; shapes tell the sizes, and people come from
the order that the published training has (`fmri2img/commands/checkpoint_import.py`). What has no place here, because it
changes no output, is checked to be what it is taken for: noise levels, rotation rates, mixer blocks (see `mindeye.py`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fmri2img.errors import InputError
from fmri2img.models.diffusion import cosine_signal

Generation = Literal["mindeye1", "mindeye2"]
MIXERS = 4  # blocks that an exported file has, as the published ones do
NSD_VOXELS = dict(
    zip(
        (f"subj0{n}" for n in range(1, 9)),
        (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386),
        strict=True,
    )
)
"""Voxels of nsdgeneral a subject, by which the published data sets have them: no two have equally many."""

_TRUNK = {"mindeye1": "voxel2clip.", "mindeye2": "backbone."}
_PRIOR = {"mindeye1": "", "mindeye2": "diffusion_prior."}
_TIME = {"time.0": "0.0", "time.2": "1.0", "time.4": "2"}
_LAYER = {
    "attention.nothing": "0.null_kv",
    "attention.norm.weight": "0.norm.g",
    "attention.query.weight": "0.to_q.weight",
    "attention.key_value.weight": "0.to_kv.weight",
    "attention.out.weight": "0.to_out.0.weight",
    "attention.out_norm.weight": "0.to_out.1.g",
    "mlp.norm.weight": "1.0.g",
    "mlp.expand.weight": "1.1.weight",
    "mlp.contract.weight": "1.5.weight",
}


@dataclass(frozen=True)
class Names:
    """The spaces of a recipe by what the published network has them for; None for what it lacks."""

    tokens: str
    latents: str | None = None
    maps: str | None = None


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a published file say.

    `voxels` of its heads in its order; `latent`; `blocks` of MindEye's network; `tokens` (T, D); `hidden`, the
    projector's width, 0 without one; `edge` of the low-level grid, 0 without one; `prior`: depth, heads, head width and
    timesteps, empty without one.
    """

    generation: Generation
    voxels: tuple[int, ...]
    latent: int
    blocks: int
    tokens: tuple[int, int]
    hidden: int
    edge: int
    prior: dict[str, int]


def sizes_of(tensors: Mapping[str, Tensor], generation: Generation) -> Sizes:
    """Read the sizes off. Raises InputError, naming what is missing, when the file is of something else."""
    trunk, prior = _TRUNK[generation], _PRIOR[generation] + "net."

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise InputError(
                f"the weights have no {name}, which every {generation} has: they are of something else, or of another "
                "generation of it"
            )
        return tuple(tensors[name].shape)

    if generation == "mindeye1":
        heads, out = ["voxel2clip.lin0.0"], trunk + "lin1"
    else:
        count = len([name for name in tensors if re.fullmatch(r"ridge\.linears\.\d+\.weight", name)])
        heads, out = [f"ridge.linears.{i}" for i in range(max(1, count))], trunk + "backbone_linear"
    projector = trunk + ("projector" if generation == "mindeye1" else "clip_proj")
    features, latent = shape(f"{out}.weight")
    has_projector, has_prior = f"{projector}.0.weight" in tensors, f"{prior}learned_query" in tensors
    if not has_projector and not has_prior:
        raise InputError(
            "the weights have neither a projector nor a prior, and so do not say how wide a token is: they are of no "
            "published model"
        )
    width = shape(f"{projector}.0.weight")[0] if has_projector else shape(f"{prior}learned_query")[1]
    told: dict[str, int] = {}
    if has_prior:
        transformer = f"{prior}causal_transformer."
        told = {
            "depth": _count(tensors, rf"{re.escape(transformer)}layers\.(\d+)\..*"),
            "heads": shape(f"{transformer}rel_pos_bias.relative_attention_bias.weight")[1],
            "head_width": shape(f"{transformer}layers.0.0.null_kv")[1],
            "timesteps": shape(f"{_PRIOR[generation]}noise_scheduler.alphas_cumprod")[0],
        }
    edge = 0
    if f"{trunk}blin1.weight" in tensors:
        edge = round((shape(f"{trunk}blin1.weight")[0] / shape(f"{trunk}bnorm.weight")[0]) ** 0.5)
    return Sizes(
        generation,
        tuple(shape(f"{head}.weight")[1] for head in heads),
        latent,
        _count(tensors, r"voxel2clip\.mlp\.(\d+)\..*"),
        (features // width, width),
        shape(f"{projector}.2.weight")[0] if has_projector else 0,
        edge,
        told,
    )


def renamed(sizes: Sizes, subjects: Sequence[str], names: Names) -> dict[str, str]:
    """Our name to the published one, of every tensor that both have; `subjects` in the order of the file's heads."""
    trunk, found = _TRUNK[sizes.generation], dict[str, str]()

    def both(ours: str, theirs: str, *, bias: bool = True) -> None:
        found[f"{ours}.weight"] = f"{theirs}.weight"
        if bias:
            found[f"{ours}.bias"] = f"{theirs}.bias"

    first = sizes.generation == "mindeye1"
    for i, subject in enumerate(subjects):
        both(f"heads.{subject}", "voxel2clip.lin0.0" if first else f"ridge.linears.{i}")
    if first:
        both("backbone.norm", "voxel2clip.lin0.1")
        for i in range(sizes.blocks):
            for j in (0, 1):
                both(f"backbone.blocks.{i}.{j}", f"voxel2clip.mlp.{i}.{j}")
    branch = f"branches.{names.tokens}"
    both(f"{branch}.linear", trunk + ("lin1" if first else "backbone_linear"))
    if sizes.hidden:
        for i in (0, 2, 3, 5, 6, 8):
            both(f"{branch}.projector.{i}", f"{trunk}{'projector' if first else 'clip_proj'}.{i}")
    if sizes.edge:
        both("backbone.grid.linear", f"{trunk}blin1")
        both("backbone.grid.norm", f"{trunk}bnorm")
    if names.maps is not None:
        for i in (0, 1, 3, 4, 6):
            both(f"branches.{names.maps}.layers.{i}", f"{trunk}b_maps_projector.{i}", bias=i not in (0, 3))
    if sizes.prior:
        found |= _prior_names(
            f"priors.{names.tokens}.", f"{_PRIOR[sizes.generation]}net.", sizes.prior["depth"]
        )
    return found


def _prior_names(ours: str, theirs: str, depth: int) -> dict[str, str]:
    transformer = f"{theirs}causal_transformer."
    found = {
        f"{ours}queries": f"{theirs}learned_query",
        f"{ours}no_condition": f"{theirs}null_brain_embeds",
        f"{ours}no_noisy": f"{theirs}null_image_embed",
        f"{ours}distances.weight": f"{transformer}rel_pos_bias.relative_attention_bias.weight",
        f"{ours}norm.weight": f"{transformer}norm.g",
        f"{ours}leave.weight": f"{transformer}project_out.weight",
    }
    for mine, its in _TIME.items():
        for kind in ("weight", "bias"):
            found[f"{ours}{mine}.{kind}"] = f"{theirs}to_time_embeds.0.1.net.{its}.{kind}"
    for i in range(depth):
        for mine, its in _LAYER.items():
            found[f"{ours}layers.{i}.{mine}"] = f"{transformer}layers.{i}.{its}"
    return found


def imported(
    tensors: Mapping[str, Tensor], sizes: Sizes, subjects: Sequence[str], names: Names
) -> dict[str, Tensor]:
    """The decoder's tensors, but for the statistics of its spaces, which published files do not have.

    Raises InputError for a tensor that is missing, or that is there and has no place.
    """
    table = renamed(sizes, subjects, names)
    if names.latents is not None:
        prefix = f"{_TRUNK[sizes.generation]}bupsampler."
        table |= {
            f"branches.{names.latents}.upsampler.{name.removeprefix(prefix)}": name
            for name in tensors
            if name.startswith(prefix)
        }
    missing = sorted(theirs for theirs in table.values() if theirs not in tensors)
    if missing:
        raise InputError(f"the weights have no {missing[0]}, which {sizes.generation} of these sizes has")
    taken = {ours: tensors[theirs].clone() for ours, theirs in table.items()}
    rest = {name: value for name, value in tensors.items() if name not in set(table.values())}
    _check_rest(rest, sizes)
    if sizes.generation == "mindeye2":
        added = _what_mixers_add(tensors)
        for name in (f"branches.{names.tokens}.linear", "backbone.grid.linear"):
            if f"{name}.weight" in taken:
                taken[f"{name}.bias"] += (added * taken[f"{name}.weight"].double().sum(1)).float()
    return taken


def exported(
    tensors: Mapping[str, Tensor], sizes: Sizes, subjects: Sequence[str], names: Names
) -> dict[str, Tensor]:
    """The published tensors of a decoder's: those that both have, and those that change nothing."""
    found = {theirs: tensors[ours].clone() for ours, theirs in renamed(sizes, subjects, names).items()}
    if names.latents is not None:
        prefix = f"branches.{names.latents}.upsampler."
        found |= {
            f"backbone.bupsampler.{name.removeprefix(prefix)}": value.clone()
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
    if sizes.generation == "mindeye2":
        for i in range(MIXERS):
            for mixer, width in (("mixer_blocks1", sizes.latent), ("mixer_blocks2", 1)):
                start = f"backbone.{mixer}.{i}."
                found |= {f"{start}0.weight": torch.ones(width), f"{start}0.bias": torch.zeros(width)}
                for layer in ("1.0", "1.3"):
                    found[f"{start}{layer}.weight"] = torch.zeros(width, width)
                    found[f"{start}{layer}.bias"] = torch.zeros(width)
    if sizes.prior:
        start = _PRIOR[sizes.generation]
        found |= {
            f"{start}noise_scheduler.{name}": value
            for name, value in _noise_levels(sizes.prior["timesteps"]).items()
        }
        for i in range(sizes.prior["depth"]):
            name = f"{start}net.causal_transformer.layers.{i}.0.rotary_emb.freqs"
            found[name] = _rotations(sizes.prior["head_width"])
    return found


def _check_rest(rest: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Raise InputError unless what is not taken over is known to change nothing."""
    levels = _noise_levels(sizes.prior["timesteps"]) if sizes.prior else {}
    for name, value in sorted(rest.items()):
        end = name.removeprefix(_PRIOR[sizes.generation]).removeprefix("noise_scheduler.")
        if re.fullmatch(r"backbone\.mixer_blocks[12]\.\d+\..*", name):
            continue
        if name.endswith(".rotary_emb.freqs") and sizes.prior:
            known = _rotations(sizes.prior["head_width"])
        elif "noise_scheduler." in name and end in levels:
            known = levels[end]
        else:
            raise InputError(
                f"the weights hold {name}, for which {sizes.generation} has no place: they are of another model"
            )
        # Wide enough for a file whose buffers were float16.
        if value.shape != known.shape or not torch.allclose(value.float(), known, rtol=2e-3, atol=1e-4):
            raise InputError(
                f"{name} is not as {sizes.generation} has it: the prior was trained with other noise levels or "
                "rotations, which this decoder does not have"
            )


def _what_mixers_add(tensors: Mapping[str, Tensor]) -> float:
    """The number that MindEye2's mixer blocks add to every channel of a latent of one token.

    A norm over one token gives its own bias, whatever it is given; an MLP of one channel makes another number of it.
    """
    total = 0.0
    for i in range(_count(tensors, r"backbone\.mixer_blocks2\.(\d+)\..*")):
        start = f"backbone.mixer_blocks2.{i}."
        told = {name: tensors[f"{start}{name}"].double() for name in ("0.bias", "1.0.weight", "1.0.bias")}
        told |= {name: tensors[f"{start}{name}"].double() for name in ("1.3.weight", "1.3.bias")}
        if told["0.bias"].shape != (1,):
            raise InputError(
                f"{start}0.bias has {told['0.bias'].numel()} tokens: only MindEye2 of one token (seq_len 1), as "
                "published, is taken"
            )
        inner = functional.gelu(told["1.0.weight"][0] * told["0.bias"] + told["1.0.bias"])
        total += float(told["1.3.weight"][0] * inner + told["1.3.bias"])
    return total


def _noise_levels(timesteps: int) -> dict[str, Tensor]:
    """The buffers of the published prior: the cosine schedule in all its forms (see `diffusion.cosine_signal`)."""
    signal = cosine_signal(timesteps)
    before = torch.cat([torch.ones(1, dtype=signal.dtype), signal[:-1]])
    betas = 1 - signal / before
    variance = betas * (1 - before) / (1 - signal)
    levels = {
        "betas": betas,
        "alphas_cumprod": signal,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": signal.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - signal).log(),
        "sqrt_recip_alphas_cumprod": (1 / signal).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / signal - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - signal),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - signal),
        "p2_loss_weight": torch.ones_like(signal),
    }
    return {name: value.float() for name, value in levels.items()}


def _rotations(head_width: int) -> Tensor:
    turned = min(32, head_width)
    return 1e4 ** -(torch.arange(0, turned, 2)[: turned // 2].float() / turned)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern finds."""
    return max((int(match[1]) + 1 for name in tensors if (match := re.fullmatch(pattern, name))), default=0)
