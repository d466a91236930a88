"""Two people, ten pictures, real fMRI (Miyawaki et al. 2008): our decoder beside ridge regression, as JSON.

    python benchmarks/miyawaki.py --root FOLDER [--seeds 0 1 2]     FOLDER holds figures_two_subjects.npz

`runs`: leave one run out of both subjects, train on both, finetune one. `shapes`: leave two of S2's five shapes out of
its training, finetune S2 from S1, who has seen them; identification is between the two shapes.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fmri2img.config import load_recipe
from fmri2img.datasets import ArraysSource, ArraysSpec, build_dataset
from fmri2img.evaluation import EvaluationSettings
from fmri2img.launch.features import cache_features
from fmri2img.launch.items import plan_job
from fmri2img.launch.judging import judge
from fmri2img.launch.reconstruction import launch_reconstruction
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, finetune, fit_ridge_baseline, pretrain

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
FEATURES, DIRECTION = "two_way_patches-10", "two_way_directed_patches-10"
# Pictures never seen need penalties that hold for pictures never seen. Both people went through one order of pictures,
# so the head is fitted to S1's latents trial by trial; training it on three pictures would teach it only these.
UNSEEN = [
    "pretraining.fits_on=pictures",
    "pretraining.trial_latents=true",
    "finetuning.head=paired",
    "finetuning.steps=0",
]
Scores = dict[str, dict[str, list[float]]]


def build(root: Path, out: Path, recipe: Recipe, split: dict[str, Any]) -> Path:
    """The data set with this split, features included."""
    text = [
        f"split.{key}={yaml.safe_dump(value, default_flow_style=True).strip()}"
        for key, value in split.items()
    ]
    spec = ArraysSpec.load(EXAMPLES / "miyawaki2008.yaml", root=root, overrides=text)
    build_dataset(ArraysSource(spec), out, normalise=spec.normalise)
    cache_features(recipe, out)
    return out


def score(run: Path, data: Path, subject: str, candidates: Any) -> dict[str, list[float]]:
    """Two-way identification of every test trial, by predicted patches and by direction."""
    made = run / "test"
    job = plan_job(run, data, subjects=[subject], split="test", repeats="single")
    launch_reconstruction(job, run, data, made, place=None, progress=lambda done, total: None)
    found = judge(made, data, EvaluationSettings(resamples=1), candidates=candidates).scores
    return {"features": found[FEATURES], "direction": found[DIRECTION]}


def add(scores: Scores, method: str, found: dict[str, list[float]]) -> None:
    """Append the scores of more test trials."""
    for name, values in found.items():
        scores[method][name].extend(values)


def leave_runs_out(root: Path, work: Path, recipe: Recipe) -> dict[str, Scores]:
    """Ridge, our decoder alone, and pretrained on both subjects without the run, by subject."""
    result: dict[str, Scores] = {}
    for subject, runs in (("S1", 8), ("S2", 4)):
        scores: Scores = defaultdict(lambda: defaultdict(list))
        for run in range(1, runs + 1):
            here = work / f"{subject}-{run}"
            data = build(root, here / "data", recipe, {"test_sessions": {"S1": [run], "S2": [min(run, 4)]}})
            compare(scores, recipe, here, data, subject, pretrain_on=("S1", "S2"), candidates="subject")
        result[subject] = scores
    return result


def leave_shapes_out(root: Path, work: Path, recipe: Recipe, unseen: Recipe) -> dict[str, Scores]:
    """The same comparison for S2 with S1 as its teacher, whose recipe is `unseen`, by pair of shapes."""
    result: dict[str, Scores] = {}
    for pair in itertools.combinations(range(5), 2):
        here = work / f"{pair[0]}{pair[1]}"
        split = {"test_sessions": {}, "test_pictures": {"S2": list(pair)}}
        data = build(root, here / "data", recipe, split)
        scores: Scores = defaultdict(lambda: defaultdict(list))
        compare(scores, recipe, here, data, "S2", pretrain_on=("S1",), candidates="split", teacher=unseen)
        result["-".join(map(str, pair))] = scores
    return result


def compare(
    scores: Scores,
    recipe: Recipe,
    work: Path,
    data: Path,
    subject: str,
    *,
    pretrain_on: tuple[str, ...],
    candidates: Any,
    teacher: Recipe | None = None,
) -> None:
    """Train every method and score it on the test trials; `teacher` pretrains and finetunes by another recipe."""

    def spec(run: str, subjects: tuple[str, ...], by: Recipe, parent: Path | None = None) -> StageSpec:
        start = None if parent is None else str(parent)
        plain = by.model_dump(mode="json")
        return StageSpec(plain, str(data), subjects, str(work / run), parent=start, engine="accelerate")

    teacher = teacher or recipe
    pretrain(spec("pretrained", pretrain_on, teacher))
    fit_ridge_baseline(spec("ridge", (subject,), recipe))
    finetune(spec("alone", (subject,), recipe))
    finetune(spec("finetuned", (subject,), teacher, work / "pretrained"))
    for method in ("ridge", "alone", "finetuned"):
        add(scores, method, score(work / method, data, subject, candidates))
    if subject in pretrain_on:
        add(scores, "pretrained", score(work / "pretrained", data, subject, candidates))


def main() -> None:
    """Run both comparisons for every seed and print means, with the spread over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shapes", action="store_true", help="only the shapes")
    parser.add_argument("--set", nargs="*", default=[], help="key.key=value over the recipe, for the shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    means: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in arguments.seeds:
        values = [f"pretraining.seed={seed}", f"finetuning.seed={seed}"]
        recipe = load_recipe(str(EXAMPLES / "miyawaki2008-recipe.yaml"), values=values)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            runs = {} if arguments.shapes else leave_runs_out(arguments.root, Path(folder) / "runs", recipe)
            unseen = load_recipe(
                str(EXAMPLES / "miyawaki2008-recipe.yaml"), values=[*values, *UNSEEN, *arguments.set]
            )
            shapes = leave_shapes_out(arguments.root, Path(folder) / "shapes", recipe, unseen)
        for subject, scores in runs.items():
            collect(means[f"runs {subject}"], scores)
        for pair, scores in shapes.items():
            collect(means[f"shapes {pair}"], scores)
        for method in ("ridge", "alone", "finetuned"):
            for name in ("features", "direction"):
                every = [value for scores in shapes.values() for value in scores[method][name]]
                means["shapes, all ten pairs"][f"{method} {name}"].append(float(np.mean(every)))
    table = {
        part: {
            method: {"mean": round(float(np.mean(v)), 3), "by seed": [round(x, 3) for x in v]}
            for method, v in m.items()
        }
        for part, m in means.items()
    }
    print(json.dumps({"seeds": arguments.seeds, "two_way": table}, indent=1))


def collect(into: dict[str, list[float]], scores: Scores) -> None:
    """Append the means of one seed."""
    for method, found in scores.items():
        for name, values in found.items():
            into[f"{method} {name}"].append(float(np.mean(values)))


if __name__ == "__main__":
    main()
