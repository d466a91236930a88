"""Generators turn predicted features into pictures. A recipe names one by its `kind`; some hold others."""

from typing import Annotated

from pydantic import Field

from fmri2img.generators.adapter import IpAdapterGenerator
from fmri2img.generators.combined import BestOfGenerator, BlendGenerator
from fmri2img.generators.control import ControlNetGenerator
from fmri2img.generators.latents import VaeGenerator
from fmri2img.generators.pixels import PixelsGenerator
from fmri2img.generators.protocol import Generator, LoadedGenerator
from fmri2img.generators.stable import RefineGenerator, SdGenerator
from fmri2img.generators.unclip import UnclipGenerator
from fmri2img.generators.versatile import VersatileGenerator

AnyGenerator = Annotated[
    PixelsGenerator
    | VaeGenerator
    | SdGenerator
    | UnclipGenerator
    | IpAdapterGenerator
    | ControlNetGenerator
    | VersatileGenerator
    | RefineGenerator
    | BlendGenerator
    | BestOfGenerator,
    Field(discriminator="kind"),
]

_HOLDERS = (
    SdGenerator,
    UnclipGenerator,
    IpAdapterGenerator,
    ControlNetGenerator,
    VersatileGenerator,
    RefineGenerator,
    BlendGenerator,
    BestOfGenerator,
)
for _holder in _HOLDERS:  # each may hold any other, so they are complete only here
    _holder.model_rebuild(_types_namespace={"AnyGenerator": AnyGenerator})

__all__ = ["AnyGenerator", "Generator", "LoadedGenerator"]
