"""How fast training is: where the time of a step goes, samples a second, the share of the device's peak.

A GPU works behind the back of Python, so its time is known only once it is waited for. That is done at the parts of
logged steps alone; figures over all steps since the last record come from the clock between steps.
"""

import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.prior import Noised
from fmri2img.trainer.collectives import gather_objects, world_size
from fmri2img.trainer.config import TrainingConfig

# Parts of a step in their order. With micro-batches, `backward` holds the second pass forward.
PARTS = ("to_device", "forward", "backward", "update")

# Peak dense TFLOP/s of matrix products in float32, in TF32, and in bfloat16 or float16 summed in float32, by NVIDIA's
# data sheets, half of what they print "with sparsity"; None where the device has no such product.
#   A100, H100 SXM and NVL, H200, L4, L40, L40S, A10: nvidia.com/en-us/data-center, the page of each
#   H100 PCIe: H100 Tensor Core GPU Architecture, table 2; B200: nvidia.com/en-us/data-center/hgx, an eighth of eight
#   RTX 4090 and 6000 Ada: Ada GPU Architecture, appendix A; RTX 3090 and A6000: GA102 GPU Architecture, appendix A
#   V100: nvidia.com/en-us/data-center/v100 (float16 alone)
_PEAKS: tuple[tuple[str, tuple[float, float | None, float]], ...] = (
    (r"\bB200\b", (75.0, 1125.0, 2250.0)),
    (r"\bH[12]00 NVL\b", (60.0, 417.5, 835.5)),
    (r"\bH100 PCIe\b", (51.2, 378.0, 756.0)),
    (r"\bH100 (80GB HBM3|SXM)", (66.9, 494.7, 989.4)),
    (r"\bH200\b", (66.9, 494.7, 989.4)),
    (r"\bA100(-SXM4-|-PCIE-| )(40|80)GB", (19.5, 156.0, 312.0)),
    (r"\bL40S\b", (91.6, 183.0, 362.05)),
    (r"\bL40\b", (90.5, 90.5, 181.05)),
    (r"\bL4\b", (30.3, 60.0, 121.0)),
    (r"\bA10\b", (31.2, 62.5, 125.0)),
    (r"\bRTX 4090$", (82.6, 82.6, 165.2)),
    (r"\bRTX 6000 Ada\b", (91.1, 182.1, 364.2)),
    (r"\bRTX 3090$", (35.6, 35.6, 71.0)),
    (r"\bRTX A6000$", (38.7, 77.4, 154.8)),
    (r"\bV100-SXM[23]", (15.7, None, 125.0)),
    (r"\bV100-PCIE", (14.0, None, 112.0)),
)


def peak_flops(device: str, precision: str, *, tf32: bool = False) -> float | None:
    """Peak dense FLOP/s of a device by the name CUDA gives it, or None where it is not known.

    `precision` as in TrainingConfig; `tf32` says that float32 products may be rounded to TF32. A part of a device
    (MIG) and a laptop's have no figure, since their names do not tell how much of the peak they have.
    """
    if re.search(r"\bMIG\b|\bLaptop\b|Max-Q", device):
        return None
    for pattern, (single, rounded, half) in _PEAKS:
        if re.search(pattern, device):
            if precision == "bfloat16" and "V100" in device:
                return None
            peak = half if precision != "float32" else rounded if tf32 and rounded else single
            return peak * 1e12
    return None


def decoder_flops(decoder: MultiSubjectDecoder, rows: Mapping[str, int]) -> int:
    """Floating-point operations of one pass forward and backward over `rows` of each subject.

    Counted by PyTorch's own counter on a twin without memory, so that neither ZeRO's parts nor micro-batches change
    the figure: matrix products alone, two operations a multiplication, gradients only where parameters ask for them.
    Losses, recomputation and the optimiser are not work of the model and are left out.
    """
    layout = decoder.layout()
    asks = {name: parameter.requires_grad for name, parameter in decoder.named_parameters()}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        twin = type(decoder).make(layout.voxels, layout.targets(), layout.sizes)
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(asks.get(name, True))
        responses = {subject: torch.empty(count, layout.voxels[subject]) for subject, count in rows.items()}
        every = sum(rows.values())
        noised = {
            name: Noised(
                torch.empty(every, prod(layout.shapes[name])),
                torch.zeros(every, dtype=torch.int64),
                torch.zeros(every, 2, dtype=torch.bool),
            )
            for name in layout.priors
        }
        with FlopCounterMode(display=False) as counter:
            latent, *others = twin(responses, noised)
            total = sum((value.sum() for some in others for value in some.values()), latent.sum())
            total.backward()
    return int(counter.get_total_flops())


def host_peak_mb() -> float:
    """The peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Throughput:
    """Times the steps of one rank and tells, at logged steps, what all ranks' times come to."""

    def __init__(
        self,
        decoder: MultiSubjectDecoder,
        config: TrainingConfig,
        device: torch.device,
        subjects: Sequence[str],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.decoder, self.config, self.device, self.subjects = decoder, config, device, list(subjects)
        self.clock = clock
        self._flops: dict[tuple[bool, ...], int] = {}
        self._exact = False
        self._begun = self._last = self._waited = 0.0
        self._parts: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        self._steps, self._seconds, self._waits, self._stall = 0, 0.0, 0.0, 0.0

    def _now(self) -> float:
        if self._exact and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def begin(self, waited: float, *, logged: bool) -> None:
        """A step begins whose batch was waited for; its parts are told apart exactly where it is `logged`."""
        self._exact, self._waited, self._parts = logged, waited, {}
        # The clock of the whole step starts before the wait for what a GPU has left to do, which this step pays too.
        self._begun = self.clock()
        self._last = self._now()

    def lap(self, part: str) -> None:
        """One of PARTS has ended."""
        now = self._now()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def end(self) -> None:
        """The step has ended."""
        self._steps += 1
        self._seconds += self._now() - self._begun + self._waited
        self._waits += self._waited

    def stalled(self, seconds: float) -> None:
        """A checkpoint kept training for so long."""
        self._stall += seconds

    def figures(self) -> dict[str, float]:
        """The figures of a logged step, for its record; figures over steps begin anew. Collective.

        Over all steps since the last record, validation and checkpoints left out: `samples_per_second`,
        `step_seconds`, and `data_wait_share` of the rank that waited most, since the others wait for it. Of the
        logged step on this rank: `wait_seconds` and the seconds of each part. `checkpoint_stall_seconds` is what
        checkpoints kept training for since the last record. Memory is the largest peak of any rank so far.
        `model_flop_utilisation` is the decoder's operations by the device's peak, where that is known.
        """
        device_peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if self._on_gpu else 0.0
        mine = (self._seconds, self._waits / self._seconds, host_peak_mb(), device_peak, self._stall)
        seconds, share, host, device, stall = (
            max(values) for values in zip(*gather_objects(mine), strict=True)
        )
        told = {
            "speed/samples_per_second": self.config.global_batch * self._steps / seconds,
            "speed/step_seconds": seconds / self._steps,
            "speed/data_wait_share": share,
            "speed/wait_seconds": self._waited,
            **{f"speed/{part}_seconds": self._parts.get(part, 0.0) for part in PARTS},
            "speed/checkpoint_stall_seconds": stall,
            "memory/host_peak_mb": host,
        }
        if self._on_gpu:
            told["memory/device_peak_mb"] = device
            told |= self._utilisation(seconds / self._steps)
        self._forget()
        return told

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _utilisation(self, seconds: float) -> dict[str, float]:
        tf32 = torch.get_float32_matmul_precision() != "highest"
        peak = peak_flops(torch.cuda.get_device_name(self.device), self.config.precision, tf32=tf32)
        if peak is None:
            return {}
        # Which parameters are trained may change on the way.
        trained = tuple(parameter.requires_grad for parameter in self.decoder.parameters())
        if trained not in self._flops:
            each = self.config.global_batch // (world_size() * len(self.subjects))
            self._flops[trained] = decoder_flops(self.decoder, dict.fromkeys(self.subjects, each))
        return {"speed/model_flop_utilisation": self._flops[trained] / seconds / peak}
