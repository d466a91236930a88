"""The demo: the three jobs one after another on simulated data, with the baselines that an honest table needs."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmri2img import __version__
from fmri2img.config import load_recipe
from fmri2img.console import output, stage
from fmri2img.datasets import Dataset, build_dataset
from fmri2img.errors import InputError
from fmri2img.evaluation import Evaluation, difference
from fmri2img.files import write_json
from fmri2img.launch import jobs
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.features import cache_features
from fmri2img.launch.folders import check_folder
from fmri2img.launch.reporting import write_run_report
from fmri2img.simulation import Simulation, SimulationSpec

NEW = "subj01"
METHODS = {
    "pretrained, then finetuned": "trained on the other subjects, then on one session of the new one",
    "from scratch": "the same decoder, one session of the new subject and nobody else",
    "ridge": "linear regression from voxels to features, one cross-validated penalty a feature",
}
FOLDERS = {"pretrained, then finetuned": "finetuned", "from scratch": "scratch", "ridge": "ridge"}
NODES = 2


@dataclass(frozen=True)
class Size:
    """How much to simulate and train."""

    simulation: dict[str, Any]
    recipe: tuple[str, ...]
    pool: int


SIZES = {
    "full": Size({"sessions": 20, "trials_per_session": 240, "test_pictures": 300}, (), 100),
    "small": Size(
        {
            "sessions": 2,
            "trials_per_session": 120,
            "test_pictures": 20,
            "subjects": {"subj01": 120, "subj02": 100, "subj03": 110},
        },
        (
            "pretraining.steps=20",
            "pretraining.global_batch=48",
            "pretraining.validate_every=10",
            "pretraining.checkpoint_every=10",
            "finetuning.steps=20",
            "finetuning.validate_every=10",
            "decoder.latent=32",
            "decoder.hidden=64",
            "generator.samples=2",
            "generator.base.steps=2",
        ),
        10,
    ),
}


def run_demo(out: Path, *, seed: int, size: Literal["full", "small"]) -> dict[str, Any]:
    """Simulate, pretrain without `subj01`, finetune it on one session beside two baselines, reconstruct, judge, report.

    Every part goes on from what is done. Returns what `metrics.json` holds.
    """
    started = time.monotonic()
    _claim(out, {"seed": seed, "size": size, "version": __version__})
    chosen, seconds = SIZES[size], dict[str, float]()
    values = (*chosen.recipe, f"pretraining.seed={seed}", f"finetuning.seed={seed}")
    recipe = load_recipe("simulation", values=values)
    data, place = out / "data", Place(NODES, NODES)
    with _timed(seconds, "data"):
        if not (data / "dataset.json").exists():
            with stage("Simulated data", "trials") as tell:
                spec = SimulationSpec(seed=seed, **chosen.simulation)
                build_dataset(
                    Simulation(spec), data, progress=lambda what, done, total: tell(done, total, what)
                )
        dataset = cache_features(recipe, data)
    others = jobs.chosen_subjects(dataset, (), (NEW,))
    with ExitStack() as nodes:
        with _timed(seconds, f"start of {NODES} emulated nodes"):
            nodes.enter_context(cluster(place))
        with _timed(seconds, "pretraining"):
            jobs.pretraining(recipe, data, out / "pretrained", subjects=others, place=place)
        with _timed(seconds, "finetuning and baselines"):
            for folder in FOLDERS.values():
                start: Any = out / "pretrained" if folder == "finetuned" else folder
                jobs.finetuning(recipe, data, out / folder, subject=NEW, sessions=1, start=start)
        with _timed(seconds, "reconstruction"):
            for folder in FOLDERS.values():
                made = out / "reconstructions" / folder
                jobs.reconstruction(out / folder, data, made, place=place, subjects=(NEW,), split="test")
    with _timed(seconds, "evaluation and report"):
        results = {
            method: jobs.evaluation(
                out / "reconstructions" / folder, data, pool=chosen.pool, networks=("simulation/clip",)
            )
            for method, folder in FOLDERS.items()
        }
        _report(out, data, dataset, others)
    summary = _summary(results, seed, seconds, time.monotonic() - started)
    write_json(out / "metrics.json", summary)
    jobs.show(results)
    output().print(f"Report  {out / 'report.html'}\nScores  {out / 'metrics.json'}")
    return summary


def _claim(out: Path, identity: dict[str, Any]) -> None:
    check_folder(out, ("demo.json",), what="demo")
    path = out / "demo.json"
    if path.exists():
        was = json.loads(path.read_text())
        if was != identity:
            raise InputError(
                f"{out} holds a demo of {was}, asked for is {identity}: give another --out or remove it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def _report(out: Path, data: Path, dataset: Dataset, others: tuple[str, ...]) -> None:
    write_run_report(
        out / "report.html",
        {method: out / "reconstructions" / folder for method, folder in FOLDERS.items()},
        data,
        title="A new person's pictures, from one session",
        summary=f"Simulated responses of {NEW}, session 1, decoded with what {len(others)} other subjects taught.",
        descriptions=METHODS,
        runs={"pretraining": out / "pretrained"},
        notes=(
            "The subjects, their responses and the pictures are simulated. The simulated subjects share structure in "
            "their higher areas by construction, so that these scores show that the software works and say nothing "
            "about people.",
            "Intervals are over pictures of one training run; another seed moves the scores too.",
        ),
    )


def _summary(
    results: dict[str, Evaluation], seed: int, seconds: dict[str, float], total: float
) -> dict[str, Any]:
    main, *baselines = results
    shared = [
        name for name in results[main].metrics if all(name in result.metrics for result in results.values())
    ]
    return {
        "schema_version": 1,
        "subject": NEW,
        "sessions": 1,
        "seed": seed,
        "methods": {
            method: {name: measure.model_dump(mode="json") for name, measure in result.metrics.items()}
            for method, result in results.items()
        },
        "differences": {
            other: {
                name: difference(results[main], results[other], name).model_dump(mode="json")
                for name in shared
            }
            for other in baselines
        },
        "seconds": {**seconds, "total": round(total, 1)},
    }
