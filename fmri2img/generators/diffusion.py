"""What all diffusion generators share: their settings, the components they read, and the way to a picture."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.denoising import Conditions, Schedule, Structure, denoise
from fmri2img.generators.folders import ModelFolder
from fmri2img.generators.latents import Autoencoder
from fmri2img.generators.protocol import LoadedGenerator, shape_of, shapes_of
from fmri2img.generators.samplers import Sampler, Spacing, make_scheduler
from fmri2img.generators.texts import Words, embed_words

if TYPE_CHECKING:
    from fmri2img.generators import AnyGenerator


class DiffusionGenerator(BaseModel):
    """Settings of every diffusion generator.

    `model` is a folder or hub name in diffusers' layout. Sampling begins at noise; or at predicted `latents`, or at
    the picture of a `base` generator, with `strength` of the steps still to be taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    model: str
    prompt: str = Field(default="", description="words, where no text space is read")
    negative: str = Field(default="", description="words to be guided away from")
    sampler: Sampler | None = Field(default=None, description="the model's own if not given")
    spacing: Spacing | None = Field(default=None, description="of the sampler's timesteps")
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="1 is none, and takes half the time")
    eta: float = Field(default=0.0, ge=0, le=1, description="noise of each step of ddim")
    offset: float = Field(default=0.0, ge=0, description="noise that all pixels of an item share")
    latents: str | None = Field(default=None, description="a space of scaled latents to start from")
    base: Optional["AnyGenerator"] = Field(
        default=None, description="a generator whose picture to start from"
    )
    strength: float = Field(default=1.0, ge=0, le=1, description="share of the steps taken from the start")
    size: int | None = Field(default=None, ge=8, le=2048, description="pixels; the model's own if not given")
    levels: tuple[float, float] = Field(
        default=(0.5, 0.5), description="a picture is levels[0] x + levels[1] of decoded x in [-1, 1]"
    )
    attention: Literal["sdpa", "sliced"] = "sdpa"
    compile: bool = Field(default=False, description="torch.compile of the UNet")
    decode_batch: int = Field(default=8, ge=1)

    unet_part: ClassVar[str] = "unet"

    @model_validator(mode="after")
    def _one_start(self) -> "DiffusionGenerator":
        if self.latents and self.base:
            raise ValueError(
                f"it starts from latents {self.latents} or from the base's picture, not both: leave one out"
            )
        if not (self.latents or self.base) and self.strength != 1:
            raise ValueError(
                f"strength {self.strength} needs a start: give latents or base, or leave strength at 1"
            )
        if self.strength > 0 and not self.schedule.taken:
            raise ValueError(
                f"strength {self.strength} of {self.steps} steps is no step: raise one, or set strength 0"
            )
        return self

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.guidance, self.strength, self.eta, self.offset)

    def own_spaces(self) -> list[str | None]:
        """The spaces that the kind reads itself, beside those of its start."""
        return []

    @property
    def spaces(self) -> list[str]:
        nested = self.base.spaces if self.base is not None else []
        return unique([*self.own_spaces(), self.latents, *nested])


def unique(names: Iterable[str | None]) -> list[str]:
    """The names without those that are None or came before."""
    return list(dict.fromkeys(name for name in names if name is not None))


class LoadedDiffusion:
    """A diffusion generator at work. A kind says in `conditions` what its UNet is told.

    `needs` are the parts of its folder; those of `also` may be there.
    """

    needs: tuple[str, ...] = ("unet", "vae", "scheduler")
    also: tuple[str, ...] = ()

    def __init__(self, config: DiffusionGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.folder = ModelFolder(config.model, self.needs, also=self.also)
        self.base: LoadedGenerator | None = config.base.load(device, dtype) if config.base else None
        self.stored = self.folder.json("scheduler/scheduler_config.json")
        make_scheduler(self.stored, config.sampler, config.spacing)
        self.unet = self.read_unet()
        self.autoencoder = Autoencoder.read(
            self.folder, "vae", self.device, dtype, chunk=config.decode_batch, levels=config.levels
        )
        side = config.size or int(self.unet.config.sample_size) * self.autoencoder.factor
        if side % self.autoencoder.factor:
            raise InputError(
                f"size {side} must be a multiple of {self.autoencoder.factor} for {config.model}"
            )
        self.size = side
        self.shape = (int(self.unet.config.in_channels), *[side // self.autoencoder.factor] * 2)
        if self.device.type == "cuda":
            self.unet = self.unet.to(memory_format=torch.channels_last)
        if config.attention == "sliced":
            self.unet.set_attention_slice("auto")
        if config.compile:
            self.unet = torch.compile(self.unet)

    def read_unet(self) -> Any:
        from diffusers import UNet2DConditionModel

        return self.folder.model(self.config.unet_part, UNet2DConditionModel, self.device, self.dtype)

    @property
    def spaces(self) -> list[str]:
        return self.config.spaces

    def wants(self) -> dict[str, tuple[int, ...]]:
        """{space: shape of one item} of the spaces that the kind reads itself."""
        return {self.config.latents: self.shape} if self.config.latents else {}

    def nested(self) -> list[LoadedGenerator]:
        return [self.base] if self.base is not None else []

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for space, wanted in self.wants().items():
            found = shape_of(shapes, space)
            if found != wanted:
                raise InputError(
                    f"the generator {self.config.kind} with {self.config.model} takes {wanted}, {space} is {found}: "
                    "name a space of that shape, or another model"
                )
        for part in self.nested():
            part.check(shapes)

    @abstractmethod
    def conditions(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> tuple[Conditions, Conditions]:
        """What the UNet is told of the items, and what of nothing, for guidance."""

    def structure(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> Structure | None:
        """The picture for a ControlNet to follow, where the kind has one."""
        return None

    @torch.no_grad()
    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        self.check(shapes_of(features))
        start = self.start(features, generators)
        structure = self.structure(features, generators)
        told, empty = self.conditions(features, generators)
        scheduler = make_scheduler(self.stored, self.config.sampler, self.config.spacing)
        latents = denoise(
            self.unet,
            scheduler,
            self.config.schedule,
            told,
            empty,
            generators,
            shape=self.shape,
            start=start,
            structure=structure,
        )
        return self.autoencoder.decode(latents)

    def start(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor | None:
        """Latents (B, C, h, w) to start from, or None to start from noise."""
        if self.config.latents:
            return features[self.config.latents].to(self.device, torch.float32)
        if self.base is None:
            return None
        return self.autoencoder.encode(resized(self.base.generate(features, generators), self.size))

    def feature(self, features: Mapping[str, Tensor], space: str) -> Tensor:
        return features[space].to(self.device, self.dtype)

    def words(self) -> tuple[Words, Words]:
        """Prompt and negative prompt, one row each."""
        both = embed_words(self.folder, [self.config.prompt, self.config.negative], self.device, self.dtype)
        rows = (slice(0, 1), slice(1, 2))
        prompt, negative = (
            Words(both.tokens[row], None if both.pooled is None else both.pooled[row]) for row in rows
        )
        return prompt, negative

    def provenance(self) -> dict[str, Any]:
        told = self.folder.digests()
        for part in self.nested():
            told |= part.provenance()
        return told


def resized(pictures: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] at `size` x `size`, bicubic with antialiasing."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return torch.nn.functional.interpolate(
        pictures, size=(size, size), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
