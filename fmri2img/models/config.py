"""The shape of a decoder as a user writes it in a recipe, and the module it builds."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.spaces import TargetSpace


class DecoderConfig(BaseModel):
    """Sizes of a `MultiSubjectDecoder`. `build` makes the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent: int = Field(default=256, ge=1, description="width of the latent space shared by all subjects")
    hidden: int = Field(default=512, ge=1, description="width inside the residual blocks and branches")
    blocks: int = Field(default=2, ge=0, description="residual MLP blocks of the backbone")
    dropout: float = Field(default=0.15, ge=0, lt=1)
    rebuild: bool = Field(
        default=False,
        description="a linear map a subject from the latent back to its voxels, for the losses response and cycle",
    )

    def build(self, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace]) -> MultiSubjectDecoder:
        """The decoder for these subjects (id to voxel count) and feature spaces, freshly initialised."""
        return MultiSubjectDecoder(
            voxels,
            spaces,
            latent=self.latent,
            hidden=self.hidden,
            blocks=self.blocks,
            dropout=self.dropout,
            rebuild=self.rebuild,
        )
