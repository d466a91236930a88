"""The reconstruction job beside the plain loop of one picture at a time through the stock pipeline, as JSON.

    python benchmarks/reconstruct.py [--size small|full] [--device cpu|cuda] [--dtype float32] [--rounds 3]

Both use one folder in Stable Diffusion's layout with random weights, the same steps, guidance and precision, and both
write PNG files. `full` has the sizes of Stable Diffusion 1.5, for a GPU. Each variant runs in a process of its own,
rounds alternate. `pictures_per_second` leaves loading out; for Ray workers it is the rate from the first unit to the
last. `processor_seconds` are of one picture, and say more than the clock where others use the machine too.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reconstruct_world import GUIDANCE, SPACE, build_world

from fmri2img.launch.cluster import Place
from fmri2img.launch.items import ReconstructionJob, plan_job
from fmri2img.launch.reconstruction import launch_reconstruction
from fmri2img.launch.reconstructor import Reconstructor, stream

VARIANTS = {
    "plain-1-thread": {"threads": 1},
    "plain-2-threads": {"threads": 2},
    "ours-in-process": {"workers": 0, "overlap": 1},
    "ours-in-process-serial": {"workers": 0, "overlap": 0},
    "ours-1-worker": {"workers": 1, "overlap": 1},
    "ours-2-workers": {"workers": 2, "overlap": 1},
}


def plain(arguments: argparse.Namespace, threads: int) -> dict[str, float]:
    """One picture at a time, as the pipeline's documentation shows it."""
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(threads)
    folder, dtype = arguments.folder, getattr(torch, arguments.dtype)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder / "sd", dtype=dtype, safety_checker=None)
    pipeline.to(arguments.device).set_progress_bar_config(disable=True)
    empty = pipeline.encode_prompt("", arguments.device, 1, False)[0]
    tokens = torch.from_numpy(np.load(folder / f"{SPACE}.npy")[: arguments.pictures])
    (folder / "plain").mkdir(exist_ok=True)
    seconds = processor = 0.0
    for i, embedding in enumerate([tokens[0], *tokens]):  # the first one warms up
        if i == 1:
            seconds, processor = time.perf_counter(), time.process_time()
        made = pipeline(
            prompt_embeds=embedding[None].to(arguments.device, dtype),
            negative_prompt_embeds=empty,
            num_inference_steps=arguments.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(i),
        )
        made.images[0].save(folder / "plain" / f"{i}.png")
    return figures(len(tokens), time.perf_counter() - seconds, time.process_time() - processor)


def figures(pictures: int, seconds: float, processor: float | None) -> dict[str, float]:
    """What a variant is told by."""
    told = {
        "pictures_per_second": pictures / seconds,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return told if processor is None else told | {"processor_seconds": processor / pictures}


def planned(arguments: argparse.Namespace) -> ReconstructionJob:
    """The job of this size."""
    return plan_job(
        arguments.folder / "run",
        arguments.folder / "data",
        subjects=["subj01"],
        split="test",
        batch=arguments.batch,
        device=arguments.device,
        dtype=arguments.dtype,
    )


def ours(arguments: argparse.Namespace, workers: int, overlap: int) -> dict[str, float]:
    """The job, into a fresh folder."""
    job, folder = planned(arguments), arguments.folder
    with tempfile.TemporaryDirectory(dir=folder) as out:
        if not workers:
            worker = Reconstructor(job, folder / "run", folder / "data", Path(out))
            (Path(out) / "units").mkdir()
            worker.compute(worker.units[0], worker.read(worker.units[0]))  # warms up
            start, processor = time.perf_counter(), time.process_time()
            failed = [
                error for _, error in stream(worker, range(len(worker.units)), threads=overlap) if error
            ]
            assert not failed, failed
            spent = time.process_time() - processor
            return figures(arguments.pictures, time.perf_counter() - start, spent)
        seen: list[tuple[float, int]] = []
        launch_reconstruction(
            job,
            folder / "run",
            folder / "data",
            Path(out) / "made",
            place=Place(workers),
            progress=lambda done, total: seen.append((time.perf_counter(), done)),
            threads=overlap,
        )
        (first, before), (last, after) = seen[1], seen[-1]
        return figures(after - before, last - first, None)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", choices=["tiny", "small", "full"], default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--one", choices=VARIANTS, help="measure one variant in this process")
    arguments = parser.parse_args()
    if arguments.one:
        how = VARIANTS[arguments.one]
        print(json.dumps((plain if arguments.one.startswith("plain") else ours)(arguments, **how)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        arguments.folder = Path(folder)
        with contextlib.redirect_stdout(sys.stderr):
            build_world(arguments.folder, arguments.size, pictures=arguments.pictures, steps=arguments.steps)
        print(json.dumps(measure(arguments), indent=1))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate the variants; medians over rounds, and every round."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    same = ["--folder", arguments.folder, "--size", arguments.size, "--device", arguments.device]
    same += ["--dtype", arguments.dtype, "--pictures", arguments.pictures, "--batch", arguments.batch]
    same += ["--steps", arguments.steps]
    for _ in range(arguments.rounds):
        for name, found in rounds.items():
            threads = str(VARIANTS[name].get("threads", 1))
            command = [sys.executable, __file__, *map(str, same), "--one", name]
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: round(statistics.median(one[key] for one in found), 4) for key in found[0]}
        for name, found in rounds.items()
    }
    rates = {name: told["pictures_per_second"] for name, told in medians.items()}
    return {
        "size": arguments.size,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "pictures": arguments.pictures,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "load": os.getloadavg()[0],
        "unet_parameters": unet_parameters(arguments.folder),
        "variants": medians,
        "rounds": rounds,
        "times_plain_2_threads": {
            name: round(rate / rates["plain-2-threads"], 3)
            for name, rate in rates.items()
            if "plain-2-threads" in rates
        },
    }


def unet_parameters(folder: Path) -> int:
    """How many numbers the UNet has."""
    from safetensors import safe_open

    with safe_open(folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


if __name__ == "__main__":
    main()
