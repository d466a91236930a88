"""The report: one HTML file that opens offline, with the figures, the pictures and where they come from."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fmri2img.evaluation.charts import COLOURS, Dot, interval_chart, line_chart, number
from fmri2img.evaluation.intervals import Estimate
from fmri2img.evaluation.report_audit import AuditOf, audit_view, regions_view
from fmri2img.evaluation.results import Measure
from fmri2img.files import write_atomic

SHOWN = 6
KEY_FIGURES = 4
# Above this side a picture is a photograph: as PNG a hundred of them would make a file nobody can mail.
PNG_SIDE = 128
LARGEST_SIDE = 256
UNIT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class MethodResult:
    """One row of the table. A `Measure` brings label, chance and direction; an `Estimate` does without."""

    name: str
    description: str
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """How far `method` is above `other` on a metric, paired by picture (`fmri2img.evaluation.difference`)."""

    metric: str
    method: str
    other: str
    difference: Estimate


@dataclass(frozen=True)
class PictureRow:
    """One item: the picture seen and what each method made of it, uint8 (H, W, 3)."""

    key: str
    caption: str
    seen: np.ndarray
    reconstructed: Mapping[str, np.ndarray]
    score: float | None = None


@dataclass(frozen=True)
class RetrievalRow:
    """One item: the picture seen, the candidates nearest to its prediction, and the rank of the one seen, from 1."""

    key: str
    seen: np.ndarray
    nearest: Sequence[np.ndarray]
    rank: int
    candidates: int


@dataclass(frozen=True)
class Curve:
    """A chart of one or more series, name: (x, y), such as the loss of every run by step."""

    name: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table beside ours: values by metric, and every reason why they do not compare."""

    name: str
    source: str
    values: Mapping[str, float]
    comparable: bool
    why: str = ""


@dataclass(frozen=True)
class RoiSummary:
    """Noise ceilings (explainable share of variance, 0 to 1) of a region's voxels: median and quartiles."""

    name: str
    voxels: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ReportData:
    """What a report shows. The first method is the one the key figures are about."""

    title: str
    summary: str
    methods: Sequence[MethodResult] = ()
    metric_order: Sequence[str] = ()
    comparisons: Sequence[Comparison] = ()
    published: Sequence[PublishedRow] = ()
    pictures: Sequence[PictureRow] = ()
    score_name: str = "score"
    score_higher_is_better: bool = True
    curves: Sequence[Curve] = ()
    rois: Sequence[RoiSummary] = ()
    retrieved: Sequence[RetrievalRow] = ()
    retrieved_by: str = ""
    audits: Sequence[AuditOf] = ()
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    gallery_limit: int = 300


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one file, whole or not at all; its folder must exist."""
    write_atomic(path, render_report(data).encode())


def render_report(data: ReportData) -> str:
    """The report as HTML. Every text of `data` is escaped; nothing is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("fmri2img.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    metrics = [name for name in data.metric_order if any(name in method.metrics for method in data.methods)]
    ranked = _ranked(data)
    gallery = (ranked + [row for row in data.pictures if row.score is None])[: data.gallery_limit]
    return environment.get_template("report.html.j2").render(
        data=data,
        columns=[_column(data, name) for name in metrics],
        key_figures=[_key_figure(data, name) for name in metrics[:KEY_FIGURES]] if data.methods else [],
        charts=[_metric_chart(data, name) for name in metrics],
        comparisons=[_comparison(data, item) for item in data.comparisons],
        published=_published(data, metrics),
        groups=_groups(ranked),
        picture_methods=_picture_methods(data),
        gallery=gallery,
        curves=_curves(data),
        audits=[audit_view(item, metrics) for item in data.audits],
        regions=[view for item in data.audits if (view := regions_view(item)) is not None],
        colours={method.name: i % COLOURS for i, method in enumerate(data.methods)},
    )


def data_uri(picture: np.ndarray) -> str:
    """A picture uint8 (H, W, 3) as a data URI: PNG when small, else JPEG of at most 256 pixels."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    if max(image.size) <= PNG_SIDE:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chance_text(chance: float) -> str:
    """Chance levels, two digits: a share in percent (50, 1.1, 0.33), else 0."""
    return f"{chance * 100:.2g}" if 0 < chance < 1 else f"{chance:g}"


def _measure(data: ReportData, metric: str) -> Measure:
    """The first method's words on a metric; an `Estimate` without words is named by its key."""
    found = next(method.metrics[metric] for method in data.methods if metric in method.metrics)
    if isinstance(found, Measure):
        return found
    return Measure(**found.model_dump(), label=metric.replace("_", " "), description="")


def _is_share(measure: Measure) -> bool:
    return measure.chance is not None and measure.chance > 0


def _best(data: ReportData, metric: str) -> float:
    values = [method.metrics[metric].value for method in data.methods if metric in method.metrics]
    return max(values) if _measure(data, metric).higher_is_better else min(values)


def _column(data: ReportData, metric: str) -> SimpleNamespace:
    # A namespace, as all that the template reads: of a dict, `item.clear` or `item.items` is the method.
    measure = _measure(data, metric)
    percent = _is_share(measure)
    best = _best(data, metric) if len(data.methods) > 1 else None
    cells = {}
    for method in data.methods:
        if metric in method.metrics:
            found = method.metrics[metric]
            cells[method.name] = SimpleNamespace(
                value=number(found.value, percent=percent),
                interval=f"{number(found.low, percent=percent)} to {number(found.high, percent=percent)}",
                best=found.value == best,
            )
    return SimpleNamespace(
        label=measure.label,
        description=measure.description,
        unit="%" if percent else "",
        chance=None if measure.chance is None else chance_text(measure.chance),
        higher=measure.higher_is_better,
        level=f"{measure.level * 100:g}",
        counted=f"{measure.n} items, {measure.units} {measure.unit}s",
        cells=cells,
    )


def _key_figure(data: ReportData, metric: str) -> SimpleNamespace:
    """The first method's figure, and the best of the others beside it."""
    measure = _measure(data, metric)
    percent = _is_share(measure)
    unit = UNIT if percent else ""
    found = data.methods[0].metrics.get(metric)
    others = [(m.metrics[metric].value, m.name) for m in data.methods[1:] if metric in m.metrics]
    rival = (max(others) if measure.higher_is_better else min(others)) if others else None
    return SimpleNamespace(
        label=measure.label,
        value="\N{EM DASH}" if found is None else number(found.value, percent=percent),
        unit="%" if percent else "",
        interval=""
        if found is None
        else f"{number(found.low, percent=percent)} to {number(found.high, percent=percent)}{unit}",
        rival="" if rival is None else f"{rival[1]}: {number(rival[0], percent=percent)}{unit}",
        chance="" if measure.chance is None else f"chance: {chance_text(measure.chance)}{unit}",
    )


def _metric_chart(data: ReportData, metric: str) -> SimpleNamespace:
    measure = _measure(data, metric)
    percent = _is_share(measure)
    unit = UNIT if percent else ""
    dots = [
        Dot(
            method.name,
            (found := method.metrics[metric]).value,
            found.low,
            found.high,
            number(found.value, percent=percent) + unit,
            i % COLOURS,
        )
        for i, method in enumerate(data.methods)
        if metric in method.metrics
    ]
    return SimpleNamespace(
        label=measure.label,
        description=measure.description,
        svg=interval_chart(measure.label, dots, chance=measure.chance, percent=percent),
    )


def _comparison(data: ReportData, item: Comparison) -> SimpleNamespace:
    measure = _measure(data, item.metric)
    percent = _is_share(measure)
    value, low, high = (
        number(part, percent=percent, signed=True)
        for part in (item.difference.value, item.difference.low, item.difference.high)
    )
    return SimpleNamespace(
        label=measure.label,
        method=item.method,
        other=item.other,
        value=value,
        interval=f"{low} to {high}",
        unit="points" if percent else "",
        clear=item.difference.low > 0 or item.difference.high < 0,
    )


def _published(data: ReportData, metrics: list[str]) -> SimpleNamespace | None:
    """The published rows over those of the shown metrics that any of them has."""
    shown = [name for name in metrics if any(name in row.values for row in data.published)]
    if not shown:
        return None
    shares = {name: _is_share(_measure(data, name)) for name in shown}
    rows = [
        SimpleNamespace(
            row=row,
            cells=[
                number(row.values[name], percent=shares[name]) if name in row.values else "\N{EN DASH}"
                for name in shown
            ],
        )
        for row in data.published
    ]
    labels = [_measure(data, name).label + (", %" if shares[name] else "") for name in shown]
    return SimpleNamespace(labels=labels, rows=rows, comparable=sum(row.comparable for row in data.published))


def _ranked(data: ReportData) -> list[PictureRow]:
    """Rows that have a score, best first."""
    sign = -1 if data.score_higher_is_better else 1
    return sorted(
        (row for row in data.pictures if row.score is not None), key=lambda row: sign * float(row.score or 0)
    )


def _groups(ranked: list[PictureRow]) -> list[tuple[str, list[PictureRow]]]:
    """Best, median and worst, without overlap."""
    count = min(SHOWN, len(ranked) // 3)
    if not count:
        return []
    middle = (len(ranked) - count) // 2
    return [
        ("Best", ranked[:count]),
        ("Median", ranked[middle : middle + count]),
        ("Worst", ranked[-count:]),
    ]


def _picture_methods(data: ReportData) -> list[str]:
    """Methods that made pictures: those of the table in its order, then the others."""
    made = dict.fromkeys(name for row in data.pictures for name in row.reconstructed)
    known = [method.name for method in data.methods if method.name in made]
    return known + [name for name in made if name not in known]


def _curves(data: ReportData) -> list[SimpleNamespace]:
    """Charts; a run or method keeps its colour from one chart to the next."""
    names = dict.fromkeys(method.name for method in data.methods)
    names |= dict.fromkeys(name for curve in data.curves for name in curve.series)
    colour = {name: i % COLOURS for i, name in enumerate(names)}
    drawn: list[SimpleNamespace] = []
    for curve in data.curves:
        series = [
            (colour[name], np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
            for name, (x, y) in curve.series.items()
        ]
        svg: Markup = line_chart(curve.name, series, x_label=curve.x_label, y_label=curve.y_label)
        drawn.append(
            SimpleNamespace(name=curve.name, svg=svg, legend=[(name, colour[name]) for name in curve.series])
        )
    return drawn
