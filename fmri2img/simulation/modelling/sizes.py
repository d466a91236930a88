"""How large the simulation's models are and how long they train: steps, never minutes, so that the result is the same
on a slow machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

VERSION = 2
"""Of the training. Change it with anything that changes what a work folder holds."""
LANES = 2
"""Parts of a batch, each computed by one thread: two cores are used, and sums do not depend on how many there are."""


PROJECTION = 64
"""Length of CLIP's embeddings."""


@dataclass(frozen=True)
class Schedule:
    """Of one model: steps, rows of a batch (all lanes together) and the highest learning rate.

    Matrices between layers have a rate of their own, that of Muon; AdamW has them too where it is 0. Rates fall as
    over `horizon` steps (0: all), and to nothing over the last `fall`.
    """

    steps: int
    batch: int
    rate: float
    matrix_rate: float = 0.0
    horizon: int = 0
    fall: int = 0


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
    teacher: Schedule
    shapes: Schedule
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
    teacher=Schedule(steps=900, batch=192, rate=1e-3, matrix_rate=0.02),
    shapes=Schedule(steps=350, batch=192, rate=1e-3, matrix_rate=0.02),
    clip=Schedule(steps=1300, batch=128, rate=1e-3, matrix_rate=0.02),
    vae=Schedule(steps=3200, batch=16, rate=2e-3),
    unclip=Schedule(steps=9000, batch=64, rate=1e-3, matrix_rate=0.01),
    sd=Schedule(steps=2000, batch=32, rate=5e-4),
    controlnet=Schedule(steps=1000, batch=32, rate=1e-3),
    sampled=256,
    sampling_steps=20,
)
SHORT = replace(
    FULL,
    unclip=Schedule(steps=3000, batch=64, rate=1e-3, matrix_rate=0.01, horizon=4200, fall=500),
    sd=Schedule(steps=0, batch=32, rate=5e-4),
    controlnet=Schedule(steps=700, batch=32, rate=1e-3),
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
    teacher=Schedule(steps=4, batch=8, rate=1e-3, matrix_rate=0.02),
    shapes=Schedule(steps=4, batch=8, rate=1e-3, matrix_rate=0.02),
    clip=Schedule(steps=4, batch=8, rate=1e-3, matrix_rate=0.02),
    vae=Schedule(steps=4, batch=4, rate=1e-3),
    unclip=Schedule(steps=4, batch=4, rate=1e-3, matrix_rate=0.01),
    sd=Schedule(steps=4, batch=4, rate=1e-3),
    controlnet=Schedule(steps=4, batch=4, rate=1e-3),
    sampled=16,
    sampling_steps=2,
)
SIZES = {"full": FULL, "short": SHORT, "tiny": TINY}
