"""What every process of a small training group does, and the material that a single process checks it with.

Run as `python processes.py FOLDER RANK WORLD`: writes what came out of each engine as safetensors files, and pretrains
the runs of `FOLDER/runs.json`, each once straight through and once from a copy of its first checkpoint.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from safetensors.torch import save_file
from torch import Tensor

from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.config import SpaceConfig, TrainingConfig
from fmri2img.trainer.engines import DeepSpeedEngine, Engine
from fmri2img.trainer.objectives import LossTerms, Place, decoder_loss
from fmri2img.trainer.stages import StageSpec, pretrain

VOXELS = {"subj01": 7, "subj02": 12, "subj05": 9}
SHAPES = {"map": (2, 3), "tone": (3,), "words": (5,)}
ROWS, STEPS, MIDDLE, RATE = 12, 6, 3, 1e-2

# What each engine is told, by name: every stage with and without clipping, reduced precision, and the other settings.
CASES: dict[str, dict[str, Any]] = {
    f"zero{stage}-clip{clip}-float32": {"zero_stage": stage, "clip": clip}
    for stage in (0, 1, 2, 3)
    for clip in (0.05, 0.0)
}
CASES |= {
    f"zero{stage}-clip0.05-{kind}": {"zero_stage": stage, "precision": kind}
    for stage in (1, 2, 3)
    for kind in ("bfloat16", "float16")
}
CASES |= {f"zero{stage}-rates": {"zero_stage": stage, "rates": {"heads": 0.5}} for stage in (0, 2, 3)}
CASES |= {f"zero{stage}-parts": {"zero_stage": stage, "micro_batches": 2} for stage in (0, 1, 2, 3)}
CASES["zero1-offload"] = {"zero_stage": 1, "offload": "optimizer"}
CASES["zero2-offload"] = {"zero_stage": 2, "offload": "optimizer"}
CASES["zero3-offload"] = {"zero_stage": 3, "offload": "optimizer-and-parameters"}


def spaces() -> dict[str, SpaceConfig]:
    """Regression alone, contrast alone, and both."""
    pixels = {"kind": "pixels", "size": 1}
    losses: dict[str, dict[str, Any]] = {
        "map": {"mse": {}},
        "tone": {"contrastive": {"weight": 0.7}},
        "words": {"mse": {}, "contrastive": {"weight": 0.3}},
    }
    return {
        name: SpaceConfig.model_validate({"extractor": pixels, "losses": kinds})
        for name, kinds in losses.items()
    }


def config(**changes: Any) -> TrainingConfig:
    told = {
        "zero_stage": 0,
        "clip": 0.05,
        "global_batch": ROWS * len(VOXELS),
        "weight_decay": 0.1,
        "ema": 0.7,
    }
    return TrainingConfig.model_validate({**told, **changes})


def fresh() -> MultiSubjectDecoder:
    """A decoder as it is made."""
    targets = {
        name: TargetSpace(name, shape, np.full(shape, 0.5, np.float32), 2.0, spaces()[name].directed)
        for name, shape in SHAPES.items()
    }
    return DecoderConfig(latent=6, hidden=10, blocks=1, dropout=0.0).build(VOXELS, targets)


def decoder() -> MultiSubjectDecoder:
    """Every parameter random, those that start at zero too: a gradient of exactly 0 would prove nothing."""
    made = fresh()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made


def batch(step: int, rank: int = 0, world: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Responses, features and pictures of one rank: its share of every subject's rows. Pictures repeat."""
    each = ROWS // world
    mine = slice(rank * each, (rank + 1) * each)
    generator = torch.Generator().manual_seed(100 + step)
    responses, features, pictures = {}, {name: [] for name in SHAPES}, []  # type: ignore[var-annotated]
    for subject, width in VOXELS.items():
        responses[subject] = torch.randn(ROWS, width, generator=generator)[mine]
        pictures.append(torch.randint(0, 20, (ROWS,), generator=generator)[mine])
        for name, shape in SHAPES.items():
            features[name].append(torch.randn(ROWS, *shape, generator=generator)[mine])
    return responses, {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(pictures)


def losses(forward: Callable[..., Any], made: MultiSubjectDecoder, step: int, *place: int) -> LossTerms:
    responses, features, pictures = batch(step, *place)
    if next(made.parameters()).dtype == torch.float64:
        responses = {name: value.double() for name, value in responses.items()}
        features = {name: value.double() for name, value in features.items()}
    kinds = {name: space.losses for name, space in spaces().items()}
    return decoder_loss(made, forward(responses), features, pictures, kinds, place=Place(0, 1))


def train(engine: Engine, first: int, last: int, *place: int, parts: int = 1) -> list[float]:
    """Updates of steps first to last - 1, the loss handed over in equal parts; the gradient norms."""
    engine.decoder.train()
    norms = []
    for step in range(first, last):
        for part in range(1, parts + 1):
            loss = losses(engine.forward, engine.decoder, step, *place).backward / parts
            engine.backward(loss, last=part == parts)
        norms.append(engine.step(RATE * (1 + step)))
    return norms


def state(engine: Engine) -> dict[str, Tensor]:
    """Everything that an engine gives away."""
    averaged = {f"ema.{name}": value for name, value in engine.ema_tensors().items()}
    return {**engine.model_tensors(), **averaged, **engine.optimiser_tensors()}


def double_gradients(world: int = 1, rank: int = 0) -> dict[str, Tensor]:
    """Loss terms and gradients averaged over ranks, in float64."""
    made = decoder().double()
    loss = losses(made, made, 0, rank, world)
    loss.backward.backward()
    told = {f"term.{name}": value.detach().clone() for name, value in loss.terms.items()}
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        told[f"gradient.{name}"] = parameter.grad.clone()
    if world > 1:
        for value in told.values():
            dist.all_reduce(value)
            value /= world
    return told


def main(folder: Path, rank: int, world: int) -> None:
    place = (rank, world)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    save_file(double_gradients(world, rank), folder / f"double-{rank}.safetensors")
    # The CPU computes in float16, if slowly; DeepSpeed asks whether it does so fast.
    get_accelerator().is_fp16_supported = lambda: True
    for name, changes in CASES.items():
        parts = changes.get("micro_batches", 1)
        engine = DeepSpeedEngine(decoder(), config(**changes))
        assert engine.optimiser_tensors()["count"] == 0
        norms = train(engine, 0, MIDDLE, *place, parts=parts)
        model, averaged, moments = engine.model_tensors(), engine.ema_tensors(), engine.optimiser_tensors()
        middle = state(engine)
        norms += train(engine, MIDDLE, STEPS, *place, parts=parts)
        told = {
            "middle": middle,
            "end": {**state(engine), "norms": torch.tensor(norms), "skipped": torch.tensor(engine.skipped)},
        }
        if changes.get("clip", 1):
            again = decoder()
            again.load_state_dict(model)
            engine = DeepSpeedEngine(again, config(**changes))
            engine.load_optimiser(moments)
            engine.load_ema(averaged)
            train(engine, MIDDLE, STEPS, *place, parts=parts)
            told["resumed"] = state(engine)
        for what, tensors in told.items():
            save_file(tensors, folder / f"{name}-{what}-{rank}.safetensors")
    for run in json.loads((folder / "runs.json").read_text()):
        spec = StageSpec(**{**run["spec"], "subjects": tuple(run["spec"]["subjects"])})
        final = pretrain(spec)
        if rank == 0:  # as if the run had been killed after its first checkpoint
            shutil.copytree(spec.run, run["again"])
            for path in (Path(run["again"]) / "checkpoints").iterdir():
                if path.name != run["first"]:
                    shutil.rmtree(path)
        dist.barrier()
        resumed = pretrain(replace(spec, run=run["again"]))
        assert final.name == resumed.name
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
