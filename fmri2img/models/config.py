"""The shape of a decoder as a user writes it in a recipe, and the module it builds."""

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.mindeye import Architecture, MindEyeDecoder
from fmri2img.models.spaces import TargetSpace


class DecoderConfig(BaseModel):
    """Sizes of a `MultiSubjectDecoder`. `build` makes the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture = Field(
        default="residual",
        description="residual: closed-form starts; mindeye1, mindeye2: the published networks (`mindeye.py`)",
    )
    latent: int = Field(default=256, ge=1, description="width of the latent space shared by all subjects")
    hidden: int = Field(
        default=512,
        ge=1,
        description="width inside the residual blocks and branches; in MindEye of the projector",
    )
    blocks: int = Field(default=2, ge=0, description="residual MLP blocks of the backbone")
    dropout: float = Field(default=0.15, ge=0, lt=1)
    entry_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="mindeye1: of the shared latent; mindeye2: of the low-level grid"
    )
    maps: str | None = Field(
        default=None, description="mindeye2: the space that is read from every place of the low-level grid"
    )
    rebuild: bool = Field(
        default=False,
        description="a linear map a subject from the latent back to its voxels, for the losses response and cycle",
    )

    @model_validator(mode="after")
    def _of_its_architecture(self) -> "DecoderConfig":
        if self.architecture == "residual" and (self.maps is not None or self.entry_dropout):
            raise ValueError(
                "maps and entry_dropout are of the architectures mindeye1 and mindeye2: leave them out, or set "
                "architecture"
            )
        if self.architecture == "mindeye2" and self.blocks:
            raise ValueError(
                f"blocks {self.blocks}: architecture mindeye2 has none, because the published ones change nothing; "
                "set blocks to 0"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_its_own(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = handler(self)
        if self.architecture != "residual":
            return told
        return {
            key: value for key, value in told.items() if key not in ("architecture", "entry_dropout", "maps")
        }

    def build(self, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace]) -> MultiSubjectDecoder:
        """The decoder for these subjects (id to voxel count) and feature spaces, freshly initialised."""
        if self.architecture != "residual":
            return MindEyeDecoder(voxels, spaces, **self.model_dump())
        return MultiSubjectDecoder(voxels, spaces, **self.model_dump())
