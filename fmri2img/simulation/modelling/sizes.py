"""How large the simulation's models are and how long they train: steps, never minutes, so that the result is the same
on a slow machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

VERSION = 1
"""Of the training. Change it with anything that changes what a work folder holds."""
LANES = 2
"""Parts of a batch, each computed by one thread: two cores are used, and sums do not depend on how many there are."""


@dataclass(frozen=True)
class Schedule:
    """Of one model: steps, rows of a batch (all lanes together) and the highest learning rate."""

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Size:
    """Everything that the trained models depend on beside the seed and the scenes.

    Widths are channels from the outer level to the inner; `held_out` pictures are never trained on and judge.
    """

    pictures: int
    held_out: int
    vocabulary: int
    clip_width: int
    vision_layers: int
    text_layers: int
    vae_widths: tuple[int, ...]
    unet_widths: tuple[int, ...]
    clip: Schedule
    vae: Schedule
    unclip: Schedule
    sd: Schedule
    controlnet: Schedule
    sampled: int
    sampling_steps: int

    def record(self) -> dict[str, Any]:
        """As JSON, with the version of the training."""
        return {"version": VERSION, "lanes": LANES, **asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Size":
        """The size that `record` was made from."""
        settings = {name: value for name, value in record.items() if name not in ("version", "lanes")}
        read: dict[str, Any] = {
            name: Schedule(**value)
            if isinstance(value, dict)
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in settings.items()
        }
        return cls(**read)


FULL = Size(
    pictures=24 * 1024,
    held_out=1024,
    vocabulary=1536,
    clip_width=128,
    vision_layers=4,
    text_layers=3,
    vae_widths=(16, 32, 64),
    unet_widths=(32, 80, 96),
    clip=Schedule(steps=960, batch=128, rate=1e-3),
    vae=Schedule(steps=3200, batch=16, rate=2e-3),
    unclip=Schedule(steps=9000, batch=32, rate=1e-3),
    sd=Schedule(steps=2000, batch=32, rate=5e-4),
    controlnet=Schedule(steps=1000, batch=32, rate=1e-3),
    sampled=256,
    sampling_steps=20,
)
SHORT = replace(
    FULL,
    unclip=Schedule(steps=3000, batch=32, rate=1e-3),
    sd=Schedule(steps=0, batch=32, rate=5e-4),
    controlnet=Schedule(steps=200, batch=32, rate=1e-3),
    sampled=128,
)
TINY = Size(
    pictures=64,
    held_out=32,
    vocabulary=1024,
    clip_width=32,
    vision_layers=1,
    text_layers=1,
    vae_widths=(8, 8, 16),
    unet_widths=(16, 16, 16),
    clip=Schedule(steps=4, batch=8, rate=1e-3),
    vae=Schedule(steps=4, batch=4, rate=1e-3),
    unclip=Schedule(steps=4, batch=4, rate=1e-3),
    sd=Schedule(steps=4, batch=4, rate=1e-3),
    controlnet=Schedule(steps=4, batch=4, rate=1e-3),
    sampled=16,
    sampling_steps=2,
)
SIZES = {"full": FULL, "short": SHORT, "tiny": TINY}
