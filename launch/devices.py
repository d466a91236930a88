"""Where and how a job computes: `--devices auto`, `cpu`, `cuda`, or some GPUs of this machine by number, `cuda:0,1`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from fmri2img.errors import InputError
from fmri2img.launch.cluster import Place

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Devices:
    """The kind, which decides bytes, and the GPUs of this machine to share out, None for all there are."""

    kind: Literal["cpu", "cuda"]
    numbers: tuple[int, ...] | None = None

    @property
    def first(self) -> str:
        """The device of a job that works in this process."""
        return self.kind if self.kind == "cpu" else f"cuda:{(self.numbers or (0,))[0]}"


def choose_devices(text: str, place: Place | None) -> Devices:
    """What `--devices` asks for, on this machine or on the cluster that is connected.

    Raises InputError for words it does not know, GPUs that are not there, or more workers than GPUs.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+(?:,\d+)*))?", text)
    if found is None:
        raise InputError(f"--devices {text}: use auto, cpu, cuda, or GPUs by number such as cuda:0,1")
    numbers = tuple(map(int, found[1].split(","))) if found[1] else None
    elsewhere = place is not None and place.address is not None
    if numbers is not None and elsewhere:
        raise InputError(f"--devices {text}: GPUs are numbered on this machine only; with --cluster use cuda")
    if numbers is not None and len(set(numbers)) < len(numbers):
        raise InputError(f"--devices {text} names a GPU more than once: name each once")
    if text == "cpu":
        return Devices("cpu")
    count = _on_cluster() if elsewhere else _here()
    if not count:
        if text == "auto":
            return Devices("cpu")
        where = "the cluster has" if elsewhere else "this machine has"
        raise InputError(f"--devices {text}: {where} no GPU that PyTorch can use: use auto or cpu")
    if numbers is not None and max(numbers) >= count:
        raise InputError(f"--devices {text}: this machine has GPUs 0 to {count - 1}")
    usable = count if numbers is None else len(numbers)
    if place is not None and place.workers > usable:
        raise InputError(
            f"--workers {place.workers} on {usable} GPUs: each has one of its own, use {usable}, or --devices cpu"
        )
    return Devices("cuda", numbers)


@contextmanager
def only(devices: Devices) -> Iterator[None]:
    """Let what is started in the block see the chosen GPUs of this machine alone."""
    if devices.numbers is None:
        yield
        return
    before = os.environ.get(VISIBLE)
    seen = before.split(",") if before else [str(number) for number in range(_here())]
    os.environ[VISIBLE] = ",".join(seen[number] for number in devices.numbers)
    try:
        yield
    finally:
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits from those of one, and workers have other numbers of them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _on_cluster() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
