"""Whole published decoders in and out: whose heads they are, which space is which, and whether nothing is lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.models.config import DecoderConfig
from fmri2img.models.mindeye import LatentsBranch, MapsBranch, MindEyeDecoder, TokensBranch
from fmri2img.models.mindeye_weights import (
    NSD_VOXELS,
    Generation,
    Names,
    Sizes,
    exported,
    imported,
)
from fmri2img.models.parts import Alignment
from fmri2img.models.prior import PriorConfig
from fmri2img.models.spaces import TargetSpace


def subjects_of(voxels: Sequence[int], named: Sequence[str]) -> list[str]:
    """Whose the heads of a published file are, in its order; `named` are those that the user says.

    The file does not say. Published training puts subj01 to subj08, without the one held out, in this order, and no two
    have equally many voxels, so that the counts tell. Raises InputError when they do not, or contradict the user.
    """
    by_count = {count: subject for subject, count in NSD_VOXELS.items()}
    known = [by_count.get(count) for count in voxels]
    counts = ", ".join(map(str, voxels))
    if not named:
        found = [subject for subject in known if subject is not None]
        if len(found) < len(known) or len(set(found)) < len(found):
            raise InputError(
                f"the file does not say whose heads it has, and {counts} are not the voxels of different subjects "
                f"of the "
                "published data: pass --subjects, as many, in the order that they were trained in"
            )
        return found
    if len(named) != len(voxels) or len(set(named)) < len(named):
        raise InputError(
            f"--subjects names {', '.join(named)} for heads of {counts} voxels: name each subject once, in the "
            f"order that "
            "they were trained in"
        )
    for name, subject, count in zip(named, known, voxels, strict=True):
        if subject is not None and name in NSD_VOXELS and name != subject:
            raise InputError(
                f"--subjects gives {name} the head of {count} voxels, which {subject} has in the published data: pass "
                f"{','.join(str(one) for one in known)}, or other names where these are other people"
            )
    return list(named)


def names_of(spaces: Sequence[str], directed: set[str], maps: str | None) -> Names:
    """Which space of a recipe is the published tokens, latents and maps. Raises InputError where that is not clear."""
    rest = [name for name in spaces if name not in directed and name != maps]
    tokens = [name for name in spaces if name in directed]
    if len(tokens) != 1 or len(rest) > 1:
        raise InputError(
            f"the recipe predicts {', '.join(spaces)}: a published decoder has one space that is contrasted, the "
            f"tokens, "
            "and at most one of latents beside decoder.maps"
        )
    return Names(tokens[0], rest[0] if rest else None, maps)


@dataclass(frozen=True)
class Incoming:
    """A published decoder that fits a recipe: its tensors, and the shape of each of the recipe's spaces."""

    tensors: dict[str, Tensor]
    voxels: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def incoming(
    weights: Mapping[str, Tensor],
    sizes: Sizes,
    subjects: Sequence[str],
    names: Names,
    config: DecoderConfig,
    factors: Mapping[str, float | None],
    prior: PriorConfig | None,
) -> Incoming:
    """Everything that a checkpoint of the decoder holds. `factors` are those of the recipe's spaces.

    Raises InputError, naming the first tensor that does not fit, when the weights are not of the recipe's decoder.
    """
    if bool(sizes.edge) != (names.latents is not None):
        has, lacks = ("the weights", "the recipe") if sizes.edge else ("the recipe", "the weights")
        raise InputError(
            f"{has} has a low-level branch and {lacks} not: take the recipe mindeye2 for weights with one, "
            f"mindeye2-nolow "
            "for weights without"
        )
    shapes = _shapes(weights, sizes, names)
    spaces = {}
    for name, shape in shapes.items():
        factor = factors[name]
        if factor is None:
            raise InputError(
                f"spaces.{name} has no factor: published weights are of features as they come, times a number; set "
                f"spaces.{name}.factor=1"
            )
        mine = name == names.tokens
        spaces[name] = TargetSpace(
            name,
            shape,
            np.zeros(shape, np.float32),
            1 / factor,
            mine and bool(sizes.hidden),
            prior if mine else None,
        )
    voxels = dict(zip(subjects, sizes.voxels, strict=True))
    with torch.device("meta"):
        skeleton = config.build(voxels, spaces).state_dict()
    tensors = imported(weights, sizes, subjects, names)
    for name, space in spaces.items():
        tensors[f"branches.{name}.mean"] = torch.zeros(space.size)
        tensors[f"branches.{name}.scale"] = torch.tensor(space.scale)
    tensors |= {f"alignment.{name}": value for name, value in Alignment(0, 0).state_dict().items()}
    wanted = {name: tuple(value.shape) for name, value in skeleton.items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    odd = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if odd:
        raise InputError(
            f"{odd[0]} is {got.get(odd[0], 'not there')} in the weights and {wanted.get(odd[0], 'not there')} by "
            f"the recipe: "
            "set the recipe's decoder and prior to the sizes that were trained"
        )
    return Incoming(tensors, voxels, shapes)


def _shapes(weights: Mapping[str, Tensor], sizes: Sizes, names: Names) -> dict[str, tuple[int, ...]]:
    tokens, channels = sizes.tokens
    shapes: dict[str, tuple[int, ...]] = {names.tokens: (channels,) if tokens == 1 else (tokens, channels)}
    if names.latents is not None:
        depth = weights["backbone.bupsampler.conv_out.weight"].shape[0]
        shapes[names.latents] = (depth, 4 * sizes.edge, 4 * sizes.edge)
    if names.maps is not None:
        shapes[names.maps] = (sizes.edge**2, weights["backbone.b_maps_projector.6.weight"].shape[0])
    return shapes


def outgoing(decoder: torch.nn.Module, generation: Generation) -> tuple[list[str], dict[str, Tensor]]:
    """The subjects in the order of the heads, and the tensors of a published file with this decoder's numbers.

    Raises InputError when the published code could not be this decoder.
    """
    if not isinstance(decoder, MindEyeDecoder) or decoder.layout().sizes["architecture"] != generation:
        raise InputError(
            f"this checkpoint is not of decoder.architecture {generation}: only what the published code computes "
            f"can be "
            "handed to it"
        )
    kinds = {TokensBranch: "tokens", LatentsBranch: "latents", MapsBranch: "maps"}
    found = {kinds[type(decoder.branch(name))]: name for name in decoder.branches}
    if (
        len(found) < len(decoder.branches)
        or "tokens" not in found
        or ("maps" in found and "latents" not in found)
    ):
        raise InputError(
            f"{generation} has tokens, and latents and maps or neither: this has {list(decoder.branches)}"
        )
    names, tokens = Names(**found), decoder.branch(found["tokens"])
    subjects = decoder.subjects
    if generation == "mindeye1" and len(subjects) > 1:
        raise InputError(
            f"mindeye1 has one head a file, this decoder has {', '.join(subjects)}: finetune one of them"
        )
    assert isinstance(tokens, TokensBranch)
    channels = tokens.mean.numel() // tokens.tokens
    for name in decoder.branches:
        branch = decoder.branch(name)
        scale = channels**-0.5 if generation == "mindeye1" else 1.0
        if branch.mean.any() or abs(float(branch.scale) / scale - 1) > 1e-5:
            raise InputError(
                f"space {name} is predicted centred or scaled, and the published code takes features as they "
                f"come: pretrain "
                f"with spaces.{name}.factor={1 / scale:g}"
            )
    prior: dict[str, int] = {}
    if names.tokens in decoder.priors:
        prior = _published_prior(decoder.prior(names.tokens).config)
    backbone = dict(decoder.backbone.named_modules())
    sizes = Sizes(
        generation,
        tuple(decoder.layout().voxels[name] for name in subjects),
        decoder.latent,
        decoder.layout().sizes["blocks"],
        (tokens.tokens, channels),
        decoder.layout().sizes["hidden"] if tokens.projector is not None else 0,
        backbone["grid"].edge if "grid" in backbone else 0,
        prior,
    )
    return subjects, exported(decoder.state_dict(), sizes, subjects, names)


def _published_prior(config: PriorConfig) -> dict[str, int]:
    asked = {"queries": "positions", "predicts": "x0", "width": None, "causal": False, "last_norm": "stable"}
    other = [key for key, value in asked.items() if getattr(config, key) != value]
    if other:
        raise InputError(
            f"the prior has {other[0]} {getattr(config, other[0])!r}, the published code {asked[other[0]]!r}"
        )
    return {key: getattr(config, key) for key in ("depth", "heads", "head_width", "timesteps")}
