"""The report: whole, escaped, self-contained, and true to the figures it is given."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmri2img.evaluation.charts import (
    MAX_POINTS,
    Dot,
    finite_runs,
    interval_chart,
    line_chart,
    nice_ticks,
    thin,
)
from fmri2img.evaluation.intervals import Estimate
from fmri2img.evaluation.report import (
    Comparison,
    Curve,
    MethodResult,
    PictureRow,
    PublishedRow,
    ReportData,
    RoiSummary,
    data_uri,
    render_report,
    write_report,
)
from fmri2img.evaluation.results import Measure

EVIL = "<script>alert('x')</script>\"&"


def measure(value: float, *, label: str = "Two-way, scene", chance: float | None = 0.5) -> Measure:
    return Measure(
        value=value,
        low=value - 0.02,
        high=value + 0.02,
        n=9,
        units=9,
        label=label,
        description="d",
        chance=chance,
    )


def report(text: str = "a", *, pictures: int = 20) -> ReportData:
    """A report with every section, in which every text is or holds `text`."""
    rng = np.random.default_rng(0)
    names = [f"{text} tuned", f"{text} ridge"]
    made = {name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in names}
    return ReportData(
        title=text,
        summary=text,
        methods=[
            MethodResult(
                name,
                text,
                {
                    "two_way_scene": measure(value, label=text),
                    "pixcorr": measure(value / 3, label=text, chance=0.0),
                },
            )
            for name, value in zip(names, (0.912, 0.745), strict=True)
        ],
        metric_order=["two_way_scene", "pixcorr", "absent"],
        comparisons=[
            Comparison("pixcorr", names[0], names[1], Estimate(value=-0.1, low=-0.2, high=0.1, n=9, units=9))
        ],
        pictures=[
            PictureRow(
                f"{text}{i:02d}", text, rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), made, i / 100
            )
            for i in range(pictures)
        ],
        score_name=text,
        curves=[Curve(text, text, text, {text: ([0, 1, 2], [3.0, float("nan"), 1.0])})],
        rois=[RoiSummary(text, 12, 0.4, 0.2, 0.6)],
        provenance={text: {text: text}},
        notes=[text],
    )


class Page(HTMLParser):
    """Collects the tags of a page and complains about tags that do not close."""

    VOID = frozenset({"meta", "img", "br", "input", "line", "circle", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_every_text_is_escaped() -> None:
    harmless, evil = render_report(report("a")), render_report(report(EVIL))
    assert evil.count("<script") == harmless.count("<script") == 1
    assert "alert('x')" not in evil and "&lt;script&gt;" in evil
    assert [tag for tag, _ in Page(evil).tags] == [tag for tag, _ in Page(harmless).tags]


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = re.sub(r"data:image/[a-z]+;base64,[^\"]+", "data:image/png", render_report(report()))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe|<object|<embed", html)
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert "default-src 'none'" in html


def test_links_within_the_page_lead_somewhere() -> None:
    page = Page(render_report(report()))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}


def test_every_picture_has_words_and_a_size() -> None:
    page = Page(render_report(report()))
    images = page.all("img")
    # Three groups of six and a gallery of twenty, each seen and made by two methods.
    assert len(images) == 3 * (18 + 20)
    assert all(image["alt"] and image["width"] == "16" for image in images)
    assert all(chart.get("aria-label") or chart.get("aria-hidden") for chart in page.all("svg"))
    assert all("scope" in header for header in page.all("th"))


def test_the_table_shows_figures_intervals_chance_and_the_best() -> None:
    html = render_report(report())
    table = html[html.index('class="results"') : html.index("</table>")]
    assert "91.2" in table and "89.2 to 93.2" in table and "chance 50" in table
    assert "0.304" in table and "0.284 to 0.324" in table and "chance 0" in table
    assert table.count('class="best"') == 2 and table.index("91.2") < table.index("74.5")
    assert "absent" not in table


def test_lower_is_better_marks_the_lowest() -> None:
    data = report()
    methods = [
        MethodResult(m.name, "", {"d": measure(v).model_copy(update={"higher_is_better": False})})
        for m, v in zip(data.methods, (0.8, 0.6), strict=True)
    ]
    html = render_report(replace(data, methods=methods, metric_order=["d"], comparisons=()))
    assert re.search(r'class="best"><span class="num">60\.0', html) and "lower is better" in html


def test_a_plain_estimate_and_a_missing_metric_are_shown() -> None:
    plain = MethodResult("a", "", {"my_score": Estimate(value=-0.25, low=-0.5, high=0.0, n=4, units=4)})
    html = render_report(ReportData("t", "s", [plain, MethodResult("b", "", {})], ["my_score"]))
    assert "my score" in html and "\N{MINUS SIGN}0.250" in html and "not measured" in html


def test_a_difference_says_whether_it_is_clear() -> None:
    data = report()
    assert "open: includes 0" in render_report(data) and "clear: excludes 0" not in render_report(data)
    clear = replace(data.comparisons[0], difference=Estimate(value=0.2, low=0.1, high=0.3, n=9, units=9))
    assert "clear: excludes 0" in render_report(replace(data, comparisons=[clear]))


def test_a_published_row_says_why_it_does_not_compare() -> None:
    rows = [
        PublishedRow(EVIL, "a table", {"pixcorr": 0.322, "swav": 0.344}, False, "it is of another split"),
        PublishedRow("Theirs", "a table", {"two_way_scene": 0.961}, True),
    ]
    html = render_report(replace(report(), published=rows))
    Page(html)
    assert "Published results: 1 comparable" in html and "no: it is of another split" in html
    assert "0.322" in html and "96.1" in html and "0.344" not in html and EVIL not in html
    assert "Published results" not in render_report(report())
    none = replace(report(), published=[replace(rows[1], values={"swav": 0.3})])
    assert "Published results" not in render_report(none)


def test_best_median_and_worst_are_by_score_in_the_stated_direction() -> None:
    html = render_report(report())
    keys = [re.findall(r"</b> (a\d\d)</th>", part) for part in html.split('class="sheet')[1:]]
    assert keys == [
        ["a19", "a18", "a17", "a16", "a15", "a14"],
        ["a12", "a11", "a10", "a09", "a08", "a07"],
        ["a05", "a04", "a03", "a02", "a01", "a00"],
    ]
    turned = render_report(replace(report(), score_higher_is_better=False))
    assert re.findall(r"</b> (a\d\d)</th>", turned)[0] == "a00"


def test_few_pictures_appear_once_in_an_open_gallery() -> None:
    html = render_report(report(pictures=2))
    assert 'class="sheet' not in html and '<details class="panel" open>' in html


def test_a_long_gallery_is_cut_and_says_so() -> None:
    html = render_report(replace(report(), gallery_limit=5))
    assert html.count('class="card"') == 5 and "The first 5 of 20 pictures" in html


def test_an_empty_report_is_still_a_page() -> None:
    html = render_report(ReportData("t", "s"))
    Page(html)
    assert "<section" not in html


def test_small_pictures_are_exact_and_large_ones_small(rng: np.random.Generator) -> None:
    small = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    kind, data = data_uri(small).split(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), small)
    kind, data = data_uri(np.zeros((425, 500, 3), np.uint8)).split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 218)


def test_a_report_is_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report())
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(report())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.31, 0.97), (-3, 12), (5, 5), (0, 0), (1e-7, 3e-7), (0, 123456)]
)
def test_ticks_are_round_few_and_enclose_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 4)
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low and ticks[-1] >= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_points_that_are_not_finite_break_a_line() -> None:
    x, y = np.arange(6.0), np.array([1, 2, np.nan, 4, np.inf, 6])
    assert [part.tolist() for _, part in finite_runs(x, y)] == [[1, 2], [4], [6]]
    svg = line_chart("c", [(0, x, y)], x_label="x", y_label="y")
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 2
    assert "nan" not in svg and "inf" not in svg
    nothing = line_chart("c", [(0, x[:0], y[:0])], x_label="x", y_label="y")
    assert "no points" in nothing


def test_a_long_curve_keeps_its_spikes(rng: np.random.Generator) -> None:
    x, y = np.arange(10000.0), rng.random(10000)
    y[[1234, 8765]] = 50, -50
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= MAX_POINTS + 2 and (np.diff(thin_x) > 0).all()
    assert {50.0, -50.0} <= set(thin_y.tolist()) and (thin_x[0], thin_x[-1]) == (0, 9999)


def test_an_interval_chart_places_dots_in_proportion() -> None:
    dots = [Dot("a", v, v - 0.1, v + 0.1, "t", 0) for v in (0.2, 0.5, 0.8)]
    centres = [
        float(v) for v in re.findall(r'cx="([\d.]+)"', interval_chart("m", dots, chance=0.5, percent=True))
    ]
    assert centres[1] - centres[0] == pytest.approx(centres[2] - centres[1], abs=0.2)
