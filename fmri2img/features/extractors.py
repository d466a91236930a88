"""Frozen extractors: pictures and their captions to the feature spaces that decoders predict.

Each is a pydantic model that a recipe writes as `{kind: ...}`. It stays light: `shape` reads a configuration,
`load(device, dtype)` the weights, and gives what computes. `record()` is what a data set says of a cached column: the
settings, and the SHA-256 of the weights that the model's name stood for.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from fmri2img.errors import InputError
from fmri2img.features.clip_image import ClipImage, ClipLayers, OpenClip
from fmri2img.features.clip_text import ClipText
from fmri2img.features.loading import ModelExtractor
from fmri2img.features.maps import ConvNext, Vae
from fmri2img.features.plain import CaptionWords, Imported, Pixels

__all__ = [
    "AnyExtractor",
    "CaptionWords",
    "ClipImage",
    "ClipLayers",
    "ClipText",
    "ConvNext",
    "Imported",
    "OpenClip",
    "Pixels",
    "Vae",
    "made_by",
    "made_with",
]

Computing = Pixels | CaptionWords | ClipImage | ClipText | ClipLayers | OpenClip | Vae | ConvNext
AnyExtractor = Annotated[Computing | Imported, Field(discriminator="kind")]

RECORDED = ("weights", "prepared", "precision")
"""What a data set records beyond the settings."""


def made_by(extractor: Computing | Imported, recorded: Mapping[str, Any]) -> bool:
    """Whether a column whose data set records `recorded` is what the extractor makes.

    By its settings; where only the model is under another name, by its weights, if they are here. That the weights of
    a name are still those that made the column is asked where they are at hand: `made_with`.
    """
    if isinstance(extractor, Imported):
        return recorded.get("kind") == "imported"
    asked = extractor.model_dump(mode="json")
    told = {key: value for key, value in recorded.items() if key not in RECORDED}
    if told == asked:
        return True
    named = ("model", "subfolder")
    if not isinstance(extractor, ModelExtractor) or any(
        asked.get(key) != told.get(key) for key in (asked.keys() | told.keys()) - set(named)
    ):
        return False
    try:
        return made_with(extractor, recorded)
    except InputError:
        return False  # the weights of the other name are not here


def made_with(extractor: Computing | Imported, recorded: Mapping[str, Any]) -> bool:
    """Whether the weights that a column was made with are those that the extractor would load now, file by file.

    Raises InputError when they are not to be had.
    """
    if not isinstance(extractor, ModelExtractor):
        return True
    now = extractor.record()
    digests = [sorted(dict(told.get("weights", {})).values()) for told in (now, recorded)]
    return digests[0] == digests[1] and now.get("prepared") == recorded.get("prepared")
