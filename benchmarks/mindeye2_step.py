"""The training step of MindEye2's decoder at its published size, with random weights and batches, as JSON.

    python benchmarks/mindeye2_step.py > step.json                              # one GPU
    torchrun --nproc-per-node 8 benchmarks/mindeye2_step.py > step.json         # eight
    python benchmarks/mindeye2_step.py --small                                  # any machine, seconds

Needs torch and nothing else. A step is forward, all losses with negatives of all ranks, backward, clipping and AdamW
(float32 weights and moments) on rows that lie on the device already. A variant is a precision, `+compile` after it for
torch.compile; each starts from a new model. `share_of_measured_peak` divides the operations of forward and backward,
counted on the meta device, by the step's time and the rate of a large matrix product of that precision, measured
before; `share_of_published_peak` by the vendor's dense rate. A variant that does not fit the memory says so.
`frozen_tower` is what running the frozen image tower (ViT-bigG/14, bfloat16) on the pictures of each step would add.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from mindeye2_model import SMALL, VOXELS, MindEye2, Sizes, world_size
from mindeye2_parts import image_tower, parameters, step_flops, synthetic_batch

PRECISIONS = ("bfloat16", "tf32", "float32")
# Dense TFLOP/s of the data sheets (SXM parts), by what the device's name contains.
PUBLISHED = {
    "H200": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "H100": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "A100": {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
}


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def use_precision(precision: str) -> None:
    """What float32 matrix products are computed in."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def matrix_peak(device: torch.device, precision: str, size: int) -> float:
    """TFLOP/s of a square matrix product of random values: the best of ten, after three."""
    use_precision(precision)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one, other = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    seconds = []
    for _ in range(13):
        synchronise(device)
        started = time.perf_counter()
        one @ other
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[3:]) / 1e12


def tower_seconds(options: argparse.Namespace, device: torch.device) -> float:
    """Seconds of the image tower on the pictures of a step: the median after a first run."""
    run = image_tower(device, torch.bfloat16, small=options.small)
    seconds = []
    for _ in range(options.steps + 1):
        synchronise(device)
        started = time.perf_counter()
        run(options.rows)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def make_step(
    sizes: Sizes, options: argparse.Namespace, device: torch.device, variant: str
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """A function that takes one step of a new model on a batch and returns the loss."""
    precision, _, compiled = variant.partition("+")
    use_precision(precision)
    torch.manual_seed(0)
    with device:
        model = MindEye2(sizes)
    network: torch.nn.Module = model
    if compiled:
        model.compile(backend=options.backend)
    if dist.is_initialized():
        devices = [device.index] if device.type == "cuda" else None
        network = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True
        )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=device.type == "cuda")

    def step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mixed = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
        with mixed:
            outputs = network(batch)
        loss = model.loss(outputs, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step


def measure(
    sizes: Sizes,
    options: argparse.Namespace,
    device: torch.device,
    tflop: float,
    peaks: dict[str, float],
    variant: str,
) -> dict[str, Any]:
    """Time and memory of one variant on this rank, whose step has `tflop` operations; every rank runs it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step = make_step(sizes, options, device, variant)
    batches = [synthetic_batch(sizes, options.rows, device, rank() * 2 + n) for n in range(2)]
    started = time.perf_counter()
    for n in range(options.warmup):
        loss = step(batches[n % 2])
    synchronise(device)
    warmed = time.perf_counter() - started
    seconds = []
    for n in range(options.steps):
        started = time.perf_counter()
        loss = step(batches[n % 2])
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    median, precision = statistics.median(seconds), variant.split("+")[0]
    rate = tflop / median
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    published = next((v for name, v in PUBLISHED.items() if name in device_name(device)), None)
    return {
        "variant": variant,
        "seconds_per_step": median,
        "seconds_fastest_slowest": [min(seconds), max(seconds)],
        "warmup_seconds": warmed,
        "samples_per_second": options.rows * world_size() / median,
        "tflops_per_device": rate,
        "share_of_measured_peak": rate / peaks[precision],
        "share_of_published_peak": rate / published[precision] if published else None,
        "peak_memory_gb": peak / 1e9,
        "loss": float(loss),
    }


def attempt(variant: str, run: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or that memory did not suffice; nothing of it stays in memory."""
    try:
        result = run(variant)
    except torch.OutOfMemoryError as error:
        if world_size() > 1:
            raise  # the other ranks wait for this one
        result = {"variant": variant, "does_not_fit": str(error).split(". ")[0]}
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def peak_memory() -> float:
    """Peak resident bytes of this process, over all variants so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def device_name(device: torch.device) -> str:
    """As the vendor calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def start() -> torch.device:
    """This process's device; under torchrun also the group of all processes."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def parse() -> argparse.Namespace:
    """The options; `--small` only changes defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, for any machine")
    parser.add_argument("--rows", type=int, help="of a step and process, over all subjects; 63, small 8")
    parser.add_argument("--subjects", type=int, default=7, help="7 as in pretraining, 1 as in finetuning")
    parser.add_argument("--steps", type=int, help="timed, after the warm-up; 20, small 3")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--matrix", type=int, help="side of the matrices of the peak; 8192, small 256")
    parser.add_argument("--no-prior", action="store_true", help="leave the diffusion prior out")
    parser.add_argument(
        "--backend", help="of torch.compile; inductor, small aot_eager, which compiles nothing"
    )
    known = [f"{precision}{how}" for precision in PRECISIONS for how in ("", "+compile")]
    parser.add_argument("--variants", nargs="+", choices=known, default=known)
    options = parser.parse_args()
    full = {"rows": 63, "steps": 20, "matrix": 8192, "backend": "inductor"}
    small = {"rows": 8, "steps": 3, "matrix": 256, "backend": "aot_eager"}
    for name, value in (small if options.small else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The published sizes for the last subjects of eight, or small ones."""
    if options.small:
        return SMALL
    names = sorted(VOXELS)[-options.subjects :] if options.subjects > 1 else ["subj01"]
    return Sizes({name: VOXELS[name] for name in names}, prior=not options.no_prior)


def main() -> None:
    """Run every variant and print JSON on rank 0."""
    options = parse()
    sizes = sizes_of(options)
    tflop = step_flops(sizes, options.rows) / 1e12
    device = start()
    wanted = sorted({variant.split("+")[0] for variant in options.variants})
    peaks = {precision: matrix_peak(device, precision, options.matrix) for precision in wanted}
    tower = tower_seconds(options, device)
    run = partial(measure, sizes, options, device, tflop, peaks)
    variants = [attempt(variant, run) for variant in options.variants]
    with torch.device("meta"):
        count = parameters(MindEye2(sizes))
    told = {
        "device": device_name(device),
        "torch": torch.__version__,
        "processes": world_size(),
        "rows_per_process": options.rows,
        "subjects": dict(sizes.voxels),
        "parameters_m": {name: value / 1e6 for name, value in count.items()},
        "tflop_per_step_and_process": tflop,
        "measured_matrix_tflops": peaks,
        "variants": variants,
        "frozen_tower": {
            "seconds": tower,
            "step_with_it_over_step": {
                told["variant"]: 1 + tower / told["seconds_per_step"]
                for told in variants
                if "seconds_per_step" in told
            },
        },
    }
    if rank() == 0:
        print(json.dumps(told, indent=1))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
