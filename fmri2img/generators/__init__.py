"""Generators turn predicted features into pictures. A recipe names one by its `kind`."""

from fmri2img.generators.pixels import PixelsGenerator
from fmri2img.generators.protocol import Generator, LoadedGenerator

AnyGenerator = PixelsGenerator

__all__ = ["AnyGenerator", "Generator", "LoadedGenerator"]
