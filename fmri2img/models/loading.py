"""From a checkpoint folder to a decoder that predicts. Only safetensors are read; every weight must fit."""

import json
from pathlib import Path

import numpy as np

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import DamageError
from fmri2img.models.adapters import rank_of
from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.spaces import TargetSpace, is_directed, prior_of


def load_decoder(path: Path, *, weights: str = schema.MODEL_NAME) -> MultiSubjectDecoder | RidgeDecoder:
    """The decoder of a run or step folder, in evaluation mode, after its files have been verified.

    `weights` is the file to take, such as `ema.safetensors` of a run that kept averaged weights.
    Raises InputError when there is no checkpoint, DamageError when its bytes or weights are not as they should be.
    """
    found = schema.resolve(path)
    manifest = found.manifest
    voxels = {name: record.voxels for name, record in manifest.subjects.items()}
    recipe = json.loads((found.path / schema.CONFIG_NAME).read_text())["recipe"]
    directed = {name for name, space in recipe["spaces"].items() if is_directed(space)}
    priors = {name: prior_of(space) for name, space in recipe["spaces"].items()}
    spaces = {
        name: TargetSpace(
            name,
            tuple(record.shape),
            np.zeros(record.shape, np.float32),
            1.0,
            name in directed,
            priors.get(name),
        )
        for name, record in manifest.feature_spaces.items()
    }
    decoder: MultiSubjectDecoder | RidgeDecoder
    if manifest.kind == "ridge":
        decoder = RidgeDecoder(voxels, spaces)
    else:
        decoder = DecoderConfig.model_validate(recipe.get("decoder", {})).build(voxels, spaces)
    try:
        tensors = schema.load_tensors(found.path, weights, manifest=manifest)
        if isinstance(decoder, MultiSubjectDecoder) and rank_of(tensors):
            decoder.add_adapters(rank_of(tensors))
        decoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise DamageError(
            f"{found.path}: the weights do not fit the manifest: {' '.join(str(error).split())}"
        ) from error
    return decoder.eval()
