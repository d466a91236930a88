"""Samplers by name: diffusers' schedulers, made from the schedule that a model was trained with."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from fmri2img.errors import InputError

Sampler = Literal["ddim", "ddpm", "euler", "euler-ancestral", "dpm++", "unipc", "pndm"]
Spacing = Literal["leading", "trailing", "linspace"]

CLASSES: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
}


def make_scheduler(stored: Mapping[str, Any], sampler: Sampler | None, spacing: Spacing | None) -> Any:
    """A fresh diffusers scheduler with the betas and prediction type of the `stored` scheduler_config.json.

    Without a sampler it is the class that the file names. `spacing` replaces the file's choice of timesteps. A
    scheduler counts its steps, so each batch needs a new one. Raises InputError for a class that is not listed here.
    """
    import diffusers

    name = CLASSES[sampler] if sampler else str(stored.get("_class_name"))
    if name not in CLASSES.values():
        raise InputError(f"the model's scheduler is {name}: name a sampler, one of {', '.join(CLASSES)}")
    settings = {key: value for key, value in stored.items() if key != "_class_name"}
    if spacing:
        settings["timestep_spacing"] = spacing
    return getattr(diffusers, name).from_config(settings)


def step_settings(scheduler: Any, generators: Sequence[torch.Generator], eta: float) -> dict[str, Any]:
    """What this scheduler's `step` takes beside the prediction: each item's own generator for noise, and DDIM's eta."""
    known = inspect.signature(scheduler.step).parameters
    offered = {"generator": list(generators), "eta": eta}
    return {name: value for name, value in offered.items() if name in known}
