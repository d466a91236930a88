"""What training really takes: peaks of resident memory of each phase, for settings of ZeRO, in a group of processes.

Run as `python footprints.py FOLDER RANK WORLD NAMES`: writes `FOLDER/WORLD-RANK.json`, {setting: {phase: bytes}} above
what the process held before the decoder was made. Linux only: peaks are read and reset in /proc. Every tensor must have
pages of its own, which go back when it is freed: set MALLOC_MMAP_THRESHOLD_=65536.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.engines import DeepSpeedEngine
from fmri2img.trainer.objectives import (
    MicroBatches,
    Place,
    active_mixing,
    decoder_loss,
    draw_mixing,
    draw_noise,
    noised,
)

VOXELS = {"subj01": 1500, "subj02": 1900}
SHAPES = {"maps": (4, 24, 24), "tokens": (16, 64)}
LANES = 2
# By name: what the settings are, beside one another as unlike as they can be; rows are of a subject and rank.
SETTINGS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero1-bfloat16": {"zero_stage": 1, "precision": "bfloat16"},
    "zero2-many-rows": {"zero_stage": 2, "rows": 256},
    "zero2-average-parts": {"zero_stage": 2, "ema": 0.9, "micro_batches": 4, "rows": 256},
    "zero2-offload-bfloat16": {"zero_stage": 2, "precision": "bfloat16", "offload": "optimizer"},
    "zero3-offload": {"zero_stage": 3, "offload": "optimizer-and-parameters"},
}


def recipe(name: str, world: int) -> Recipe:
    """A recipe with every part of a decoder, a prior and mixing among them, in one setting."""
    told = dict(SETTINGS[name])
    rows = told.pop("rows", 8)
    pixels = {"kind": "pixels", "size": 1}
    prior = {"depth": 2, "heads": 2, "head_width": 16, "width": 96, "timesteps": 10, "sampling_steps": 2}
    tokens: dict[str, Any] = {"mse": {}, "bimixco": {}, "prior": {}}
    return Recipe.model_validate(
        {
            "name": name,
            "spaces": {
                "maps": {"extractor": pixels},
                "tokens": {"extractor": pixels, "losses": tokens, "prior": prior},
            },
            "losses": {"response": {}, "cycle": {}},
            "decoder": {"latent": 640, "hidden": 1024, "blocks": 2, "rebuild": True},
            "pretraining": {
                "global_batch": rows * world * len(VOXELS),
                "lanes": LANES,
                "steps": 1,
                **told,
            },
            "generator": {"kind": "pixels", "space": "maps", "size": 8},
        }
    )


def targets(made: Recipe) -> dict[str, TargetSpace]:
    """The recipe's spaces, around zero."""
    return {
        name: TargetSpace(name, shape, np.zeros(shape, np.float32), 1.0, space.directed, space.prior)
        for (name, shape), space in zip(SHAPES.items(), made.spaces.values(), strict=True)
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


class Peak:
    """The peak since it was asked for last, above what there was at first."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.first = _status("VmRSS")
        self._reset()

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def take(self) -> int:
        """The peak in bytes."""
        found = _status("VmHWM") - self.first
        self._reset()
        return found


def step(engine: DeepSpeedEngine, made: Recipe, world: int, peak: Peak) -> tuple[int, int]:
    """One update as the loop does it; peaks of forward and backward, and of the optimiser's step."""
    config, decoder = made.pretraining, engine.decoder
    each = config.global_batch // (world * len(VOXELS))
    decoder.train()
    responses = {name: torch.randn(each, width) for name, width in VOXELS.items()}
    rows = dict.fromkeys(VOXELS, each)
    features = {name: torch.randn(each * len(VOXELS), *shape) for name, shape in SHAPES.items()}
    place, lanes = Place(0, 1), range(LANES)
    prior = made.spaces["tokens"].prior
    assert prior is not None
    draws = {"tokens": draw_noise("tokens", prior, 1024, rows, lanes, seed=0, step=0)}
    settings = active_mixing([space.losses for space in made.spaces.values()], place)
    assert settings is not None
    mixing = draw_mixing(settings, rows, lanes, seed=0, step=0)
    mixed = mixing.mix_responses(responses)
    micro = MicroBatches(
        engine.forward,
        engine.backward,
        mixed,
        parts=config.micro_batches,
        seed=lambda part: None,
        noised=noised(decoder, features, draws, mixing),
    )
    loss = decoder_loss(
        decoder,
        micro.forward(),
        features,
        torch.arange(each * len(VOXELS)),
        {name: space.losses for name, space in made.spaces.items()},
        place=place,
        mixing=mixing,
        draws=draws,
        whole=made.losses,
        responses=mixed,
    )
    micro.backward(loss.backward)
    del micro, loss, responses, mixed, features, draws
    backward = peak.take()
    engine.step(1e-3)
    return backward, peak.take()


def measure(name: str, world: int) -> dict[str, int]:
    """The peaks of one setting, in bytes."""
    peak = Peak()
    made = recipe(name, world)
    decoder: MultiSubjectDecoder = made.decoder.build(VOXELS, targets(made))
    engine = DeepSpeedEngine(decoder, made.pretraining)
    del decoder
    told = {"start": peak.take()}
    for _ in range(2):  # moments are made in the first
        told["backward"], told["update"] = step(engine, made, world, peak)
    files = engine.model_tensors(), engine.ema_tensors(), engine.optimiser_tensors()
    told["checkpoint"] = peak.take()
    del files
    return told


def main(folder: Path, rank: int, world: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    for precision in (
        "float32",
        "bfloat16",
    ):  # what is taken once, by the first to compute so, is no setting's
        SETTINGS["first"] = {"zero_stage": 2, "precision": precision}
        measure("first", world)
    told = {name: measure(name, world) for name in names}
    (folder / f"{world}-{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","))
