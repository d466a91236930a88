"""The report's words and charts about an audit: findings, controls, clusters, regions. Numbers are the audit's."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from markupsafe import Markup

from fmri2img.evaluation.audit_parts import CHANCE
from fmri2img.evaluation.audit_results import Audit, ByCluster, DimensionsKept, NearTraining
from fmri2img.evaluation.charts import Dot, interval_chart, number
from fmri2img.evaluation.intervals import Estimate

QUESTIONS = {
    "responses": "Do the scores need the responses?",
    "look-up": "Is it more than a look-up among training pictures?",
    "clusters": "Are similar pictures told apart?",
    "dimensions": "Do predictions keep their dimensions?",
    "near-duplicates": "Is the test set apart from training?",
}
ORDER = ("shuffled", "mean", "nearest")
UNIT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class AuditOf:
    """An audit and whose it is; `metrics` are those of the evaluation that it belongs to."""

    method: str
    audit: Audit
    metrics: Mapping[str, Estimate]


def audit_view(item: AuditOf, order: list[str]) -> SimpleNamespace:
    """What the template shows of one audit; metrics in `order`."""
    audit = item.audit
    shown = [name for name in order if all(name in audit.controls[key].metrics for key in ORDER)]
    return SimpleNamespace(
        method=item.method,
        clear=not any(finding.found for finding in audit.findings),
        findings=[
            SimpleNamespace(question=QUESTIONS[f.name], found=f.found, sentence=f.sentence)
            for f in audit.findings
        ],
        about=_about(audit),
        controls=[audit.controls[key] for key in ORDER],
        rows=[_row(name, item.metrics[name], audit) for name in shown if name in item.metrics],
        clusters=[_by_cluster(value) for value in audit.by_cluster.values()],
        near=[_near(name, value) for name, value in audit.near_training.items()],
        dimensions=[_dimensions(name, value) for name, value in audit.dimensions.items()],
    )


def _about(audit: Audit) -> str:
    drawn = "pictures drawn by the generator too" if audit.pictures else "predicted features alone"
    return (
        f"{audit.items} items against {audit.training_pictures} training pictures, {drawn}; "
        f"{audit.clusters} clusters by {audit.space}."
    )


def _row(name: str, own: Estimate, audit: Audit) -> SimpleNamespace:
    """A metric: the decoder's value, and each control's with the decoder's lead over it."""
    measure = audit.controls[ORDER[0]].metrics[name]
    percent = bool(measure.chance)
    sign = 1 if measure.higher_is_better else -1
    cells = []
    for key in ORDER:
        lead = audit.controls[key].differences[name]
        low, high = sorted((sign * lead.low, sign * lead.high))
        gap = [number(part, percent=percent, signed=True) for part in (lead.value, lead.low, lead.high)]
        cells.append(
            SimpleNamespace(
                value=number(audit.controls[key].metrics[name].value, percent=percent),
                lead=f"{gap[0]} ({gap[1]} to {gap[2]})",
                verdict="ahead" if low > 0 else "behind" if high < 0 else "open",
            )
        )
    label = measure.label + (", %" if percent else "")
    return SimpleNamespace(label=label, own=number(own.value, percent=percent), cells=cells)


def _by_cluster(value: ByCluster) -> SimpleNamespace:
    percent = value.own is None
    own, within, across = (_with_range(found, percent) for found in (value.own, value.within, value.across))
    return SimpleNamespace(label=value.label, own=own, within=within, across=across)


def _with_range(found: Estimate | None, percent: bool) -> str:
    if found is None:
        return "\N{EN DASH}"
    low, value, high = (number(part, percent=percent) for part in (found.low, found.value, found.high))
    return f"{value}{UNIT if percent else ''} ({low} to {high})"


def _near(name: str, value: NearTraining) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        median=number(value.median, percent=False),
        duplicates=f"{_with_range(value.duplicates, True)} at {value.threshold:g} or more",
        copies=f"{_with_range(value.copies, True)} at {value.copy_threshold:g} or more",
    )


def _dimensions(name: str, kept: DimensionsKept) -> SimpleNamespace:
    low, ratio, high = (number(part, percent=True) for part in (kept.low, kept.ratio, kept.high))
    share = f"{ratio}{UNIT} ({low} to {high})"
    return SimpleNamespace(name=name, predicted=f"{kept.predicted:.1f}", true=f"{kept.true:.1f}", share=share)


def regions_view(item: AuditOf) -> SimpleNamespace | None:
    """Charts of identification from one region alone, and of what leaving it out costs; None without regions."""
    regions = item.audit.regions
    if not regions:
        return None

    def chart(label: str, pairs: list[tuple[str, Estimate]], chance: float, *, signed: bool) -> Markup:
        dots = [
            Dot(name, e.value, e.low, e.high, f"{number(e.value, percent=True, signed=signed)}{UNIT}", 0)
            for name, e in pairs
        ]
        return interval_chart(label, dots, chance=chance, percent=True)

    named = [(f"{region.name}, {region.voxels} voxels", region) for region in regions]
    return SimpleNamespace(
        method=item.method,
        space=item.audit.space,
        alone=chart("One region alone", [(name, r.alone) for name, r in named], CHANCE, signed=False),
        drop=chart("Lost without it", [(name, r.drop) for name, r in named], 0.0, signed=True),
    )
