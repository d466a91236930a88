"""Devices that a job may be planned for: memory, bandwidth and peak, as published."""

from dataclasses import dataclass
from typing import Literal

import torch

from fmri2img.errors import InputError
from fmri2img.trainer.throughput import peak_flops

GB = 1e9


@dataclass(frozen=True)
class PlannedDevice:
    """One device: its name here and as CUDA gives it, memory and memory bandwidth in bytes (a second).

    Both are those of NVIDIA's data sheets (the sources stand in `trainer/throughput.py`). CUDA counts somewhat more
    than their gigabytes on the largest, and keeps some for itself on all.
    """

    name: str
    cuda: str | None
    memory: float | None
    bandwidth: float | None

    @property
    def kind(self) -> Literal["cpu", "gpu"]:
        """What decides where things lie."""
        return "cpu" if self.cuda is None else "gpu"

    def peak(self, precision: str) -> float | None:
        """Dense operations a second of matrix products, or None where it is not known; TF32 as this process has it."""
        if self.cuda is None:
            return None
        return peak_flops(self.cuda, precision, tf32=torch.get_float32_matmul_precision() != "highest")


_GPUS: dict[str, tuple[str, float, float]] = {
    "b200": ("NVIDIA B200", 180, 7700),
    "h200": ("NVIDIA H200", 141, 4800),
    "h100": ("NVIDIA H100 80GB HBM3", 80, 3350),
    "h100-pcie": ("NVIDIA H100 PCIe", 80, 2000),
    "a100-80": ("NVIDIA A100-SXM4-80GB", 80, 2039),
    "a100-40": ("NVIDIA A100-SXM4-40GB", 40, 1555),
    "l40s": ("NVIDIA L40S", 48, 864),
    "l4": ("NVIDIA L4", 24, 300),
    "a10": ("NVIDIA A10", 24, 600),
    "a6000": ("NVIDIA RTX A6000", 48, 768),
    "rtx-6000-ada": ("NVIDIA RTX 6000 Ada Generation", 48, 960),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 24, 1008),
    "rtx-3090": ("NVIDIA GeForce RTX 3090", 24, 936),
    "v100-32": ("Tesla V100-SXM2-32GB", 32, 900),
    "v100-16": ("Tesla V100-SXM2-16GB", 16, 900),
}
KNOWN = (*_GPUS, "cpu")


def planned_device(name: str, memory_gb: float | None) -> PlannedDevice:
    """The device of a name, with `memory_gb` instead of the published memory where it is given.

    Raises InputError for a name that is not known or memory that is none.
    """
    if memory_gb is not None and memory_gb <= 0:
        raise InputError(f"--gpus-memory {memory_gb:g}: give the gigabytes of one device, such as 80")
    memory = None if memory_gb is None else memory_gb * GB
    if name == "cpu":
        return PlannedDevice("cpu", None, memory, None)
    if name not in _GPUS:
        raise InputError(f"--device {name} is not known: use one of {', '.join(KNOWN)}")
    cuda, size, speed = _GPUS[name]
    return PlannedDevice(name, cuda, size * GB if memory is None else memory, speed * GB)
