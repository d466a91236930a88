"""Gather what a report shows: scores of every method, pictures seen and made, curves, noise ceilings, provenance."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmri2img import checkpoints_schema as schema
from fmri2img.datasets import Dataset
from fmri2img.errors import InputError
from fmri2img.evaluation import Evaluation, difference
from fmri2img.evaluation.audit_results import Audit
from fmri2img.evaluation.report import (
    Comparison,
    Curve,
    MethodResult,
    PictureRow,
    PublishedRow,
    ReportData,
    RoiSummary,
    write_report,
)
from fmri2img.evaluation.report_audit import AuditOf
from fmri2img.files import sha256_file
from fmri2img.launch.auditing import AUDIT
from fmri2img.launch.folders import check_file
from fmri2img.launch.judging import seen_pictures
from fmri2img.launch.made import MANIFEST, Made, read_made
from fmri2img.launch.retrieving import retrieval_examples
from fmri2img.trainer.watch import read_records


def write_run_report(
    out: Path,
    made: Mapping[str, Path],
    data: Path,
    *,
    title: str,
    summary: str = "",
    descriptions: Mapping[str, str] | None = None,
    runs: Mapping[str, Path] | None = None,
    notes: tuple[str, ...] = (),
) -> Path:
    """Write the report of evaluated reconstructions of the same pictures; the first is the main one.

    `runs` names further run folders whose curves belong in it. Raises InputError when one is not evaluated, or when
    they are of different pictures.
    """
    check_file(out)
    dataset = Dataset.open(data)
    results = {name: Evaluation.read(path / "metrics.json") for name, path in made.items()}
    pictures = {name: read_made(path) for name, path in made.items()}
    main = next(iter(made))
    for name, result in results.items():
        if result.keys != results[main].keys:
            raise InputError(f"{made[name]} and {made[main]} are of different pictures: report them apart")
    order = results[main].headlines()
    described = descriptions or {}
    sources = {name: _source(path) for name, path in made.items()}
    curves = dict(runs or {}) | {name: path for name, path in sources.items() if path is not None}
    retrieved_by, retrieved = retrieval_examples(dataset, pictures[main])
    report = ReportData(
        title=title,
        summary=summary or _summary(results[main], dataset),
        methods=[
            MethodResult(name, described.get(name, ""), result.metrics) for name, result in results.items()
        ],
        metric_order=order,
        comparisons=_comparisons(results, order),
        published=_published(results[main]),
        pictures=_pictures(dataset, pictures, results[main], _score(order)),
        score_name=results[main].metrics[_score(order)].label,
        curves=_curves(curves),
        rois=_rois(dataset, results[main].subject),
        retrieved=retrieved,
        retrieved_by=retrieved_by,
        audits=_audits(made, results),
        provenance=_provenance(dataset, pictures, sources),
        notes=notes,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_report(out, report)
    return out


def _audits(made: Mapping[str, Path], results: Mapping[str, Evaluation]) -> list[AuditOf]:
    """Audits that stand beside the reconstructions. Raises InputError for one of another reconstruction."""
    found = []
    for name, path in made.items():
        if not (path / AUDIT).is_file():
            continue
        audit = Audit.read(path / AUDIT)
        if audit.manifest != sha256_file(path / MANIFEST):
            raise InputError(
                f"{path / AUDIT} is of another reconstruction: run `fmri2img evaluate --audit` again"
            )
        found.append(AuditOf(name, audit, results[name].metrics))
    return found


def _published(result: Evaluation) -> list[PublishedRow]:
    """Published rows that compare with the main method, or the field's main ones with why they do not."""
    rows = [row for row in result.published if row.comparable] or [r for r in result.published if r.headline]
    return [
        PublishedRow(
            f"{row.method}, {row.sessions} sessions, {row.split}",
            f"{row.source} ({row.evidence})",
            row.values,
            row.comparable,
            row.why,
        )
        for row in rows
    ]


def _score(order: list[str]) -> str:
    """What ranks pictures from best to worst: their pixels, since pixels are what is looked at."""
    return "pixcorr" if "pixcorr" in order else order[0]


def _summary(result: Evaluation, dataset: Dataset) -> str:
    return f"{len(result.keys)} reconstructions of {result.subject}, data set {dataset.manifest.name}."


def _comparisons(results: Mapping[str, Evaluation], order: list[str]) -> list[Comparison]:
    main, *others = results
    return [
        Comparison(metric, main, other, difference(results[main], results[other], metric))
        for metric in order
        if metric.startswith(("image_retrieval", "two_way", "pixcorr"))
        for other in others
    ]


def _pictures(dataset: Dataset, made: Mapping[str, Made], result: Evaluation, score: str) -> list[PictureRow]:
    main = next(iter(made.values()))
    table = dataset.samples(main.job.subjects[0], main.job.split)
    rows = {int(nsd_id): row for row, nsd_id in enumerate(table.nsd_id)}
    chosen = np.array([rows[item["nsd_id"]] for item in main.items])
    seen = seen_pictures(dataset, table, chosen, main.pictures.shape[1])
    shown = []
    for i, item in enumerate(main.items):
        captions = dataset.captions(table, int(chosen[i]))
        made_of = {name: other.pictures[i] for name, other in made.items()}
        shown.append(
            PictureRow(
                item["key"], captions[0] if captions else "", seen[i], made_of, result.scores[score][i]
            )
        )
    return shown


def _curves(runs: Mapping[str, Path]) -> list[Curve]:
    wanted = {"train/loss": "Training loss", "validation/loss": "Validation loss"}
    curves = []
    for key, label in wanted.items():
        series = {}
        for name, run in runs.items():
            points = [(r["step"], r[key]) for r in read_records(run) if key in r]
            if len(points) > 1:
                series[name] = ([float(x) for x, _ in points], [float(y) for _, y in points])
        if series:
            curves.append(Curve(label, "step", "loss", series))
    return curves


def _rois(dataset: Dataset, subject: str) -> list[RoiSummary]:
    table = dataset.voxel_table(subject)
    if "roi" not in table or "noise_ceiling" not in table:
        return []
    found = []
    for roi in dict.fromkeys(table["roi"].tolist()):
        ceiling = table["noise_ceiling"][table["roi"] == roi]
        low, median, high = (float(v) for v in np.quantile(ceiling, [0.25, 0.5, 0.75]))
        found.append(RoiSummary(str(roi), len(ceiling), median, low, high))
    return found


def _source(made: Path) -> Path | None:
    """The run folder that a reconstruction was made with, if it is still there."""
    path = made / "source.json"
    if not path.is_file():
        return None
    checkpoint = Path(json.loads(path.read_bytes())["checkpoint"])
    run = checkpoint.parent.parent if schema.parse_step(checkpoint.name) is not None else checkpoint
    return run if run.is_dir() else None


def _provenance(
    dataset: Dataset, made: Mapping[str, Made], sources: Mapping[str, Path | None]
) -> dict[str, dict[str, str]]:
    groups = {
        "Data": {
            "name": dataset.manifest.name,
            "fingerprint": dataset.fingerprint,
            "terms": dataset.manifest.terms,
        }
    }
    for name, run in sources.items():
        job = made[name].job
        entry: dict[str, Any] = {
            "checkpoint manifest SHA-256": job.checkpoint,
            "split": job.split,
            "seed": job.seed,
        }
        if run is not None:
            found = schema.resolve(run)
            entry |= {
                "recipe": found.manifest.recipe,
                "kind": found.manifest.kind,
                "step": found.manifest.step,
            }
            entry |= {
                "made with": ", ".join(f"{k} {v}" for k, v in sorted(found.manifest.created_with.items()))
            }
            if (
                sha256_file(found.path / schema.MANIFEST_NAME) == job.checkpoint
                and found.manifest.parent is not None
            ):
                entry["started from"] = (
                    f"{found.manifest.parent.path} ({found.manifest.parent.manifest_sha256[:12]})"
                )
        groups[name] = {key: str(value) for key, value in entry.items()}
    groups["This report"] = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    return groups
