"""What pictures show at full data: with and without the low-level branch, and that branch alone, as JSON.

    python benchmarks/pictures.py DEMO --out FOLDER [--samples 8] [--steps 900] [--pool 100]

DEMO is the folder of `fmri2img demo`. Its pretrained decoder is finetuned on all sessions of the subject that was left
out, and the test pictures are made four times: as the recipe says with the best of `samples`, with one sample, without
latents to start from, and from the latents alone. Each is judged by pixels and by the simulation's CLIP. What is there
already is not made again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from fmri2img import checkpoints_schema as schema
from fmri2img.launch import jobs
from fmri2img.launch.demo import NEW
from fmri2img.launch.items import recipe_of

CLIP = "simulation/clip"
MEASURES = ("perceived", "two_way", "pixcorr")


def generators(recipe: Any, samples: int) -> dict[str, dict[str, Any]]:
    """Settings of each variant's generator, from those of the recipe, which is a best-of an unCLIP with latents."""
    best = recipe.generator.model_dump(mode="json")
    base = best["base"]
    without = {key: value for key, value in base.items() if key not in ("latents", "strength")}
    return {
        f"best of {samples}": best | {"samples": samples},
        "one sample": base,
        f"best of {samples}, without the low-level branch": best | {"samples": samples, "base": without},
        "the low-level branch alone": {"kind": "vae", "model": "simulation/vae", "latents": base["latents"]},
    }


def main() -> None:
    """Finetune, make and judge; print the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--pool", type=int, default=100)
    told = parser.parse_args()
    recipe = recipe_of(schema.resolve(told.demo / "pretrained").path)
    longer = {"steps": told.steps, "trainable": "whole", "learning_rate": 1.0e-3, "weight_decay": 0.3}
    recipe = recipe.model_copy(update={"finetuning": recipe.finetuning.model_copy(update=longer)})
    data, run = told.demo / "data", told.out / "finetuned"
    jobs.finetuning(recipe, data, run, subject=NEW, sessions=None, start=told.demo / "pretrained")
    scores: dict[str, Any] = {}
    for number, (name, generator) in enumerate(generators(recipe, told.samples).items()):
        made = told.out / f"made-{number}"
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(generator, file)
            file.flush()
            jobs.reconstruction(
                run, data, made, place=None, subjects=(NEW,), split="test", generator=Path(file.name)
            )
        result = jobs.evaluation(made, data, pool=told.pool, networks=(CLIP,))
        scores[name] = {
            key: {"value": measure.value, "low": measure.low, "high": measure.high}
            for key, measure in result.metrics.items()
            if key.startswith(MEASURES)
        }
    print(json.dumps({"samples": told.samples, "steps": told.steps, "scores": scores}, indent=2))


if __name__ == "__main__":
    main()
