"""The report's audit, regions and retrieval: true to their figures, escaped, and without what is not there."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmri2img.errors import DamageError, InputError
from fmri2img.evaluation.audit_results import (
    Audit,
    ByCluster,
    Control,
    DimensionsKept,
    Finding,
    NearTraining,
    Region,
)
from fmri2img.evaluation.intervals import Estimate
from fmri2img.evaluation.report import MethodResult, ReportData, RetrievalRow, render_report
from fmri2img.evaluation.report_audit import AuditOf
from fmri2img.evaluation.results import Measure


def around(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=9, units=9)


def measure(value: float) -> Measure:
    return Measure(**around(value).model_dump(), label="Two-way, scene", description="d", chance=0.5)


def control(value: float, lead: float) -> Control:
    return Control(
        label=f"Control {value}",
        description="<b>words</b>",
        metrics={"two_way_scene": measure(value)},
        differences={"two_way_scene": around(lead)},
        strict={"two_way_scene": around(lead)},
    )


def audit() -> Audit:
    return Audit(
        subject="subj01",
        manifest="0",
        items=9,
        pictures=True,
        training_pictures=80,
        space="scene",
        clusters=2,
        controls={"shuffled": control(0.5, 0.3), "mean": control(0.79, 0.01), "nearest": control(0.9, -0.1)},
        by_cluster={
            "two_way_scene": ByCluster(label="Two-way, scene", own=None, within=around(0.6), across=None),
            "ssim": ByCluster(label="SSIM", own=around(0.4), within=around(0.3), across=around(0.2)),
        },
        dimensions={"scene": DimensionsKept(predicted=3.2, true=6.4, ratio=0.5, low=0.4, high=0.6)},
        near_training={
            "scene": NearTraining(
                duplicates=around(0.1), threshold=0.95, median=0.4, copies=around(0.2), copy_threshold=0.99
            )
        },
        regions=[Region(name="V1<i>", voxels=62, alone=around(0.6), without=around(0.7), drop=around(0.1))],
        findings=[
            Finding(name="responses", found=False, sentence="A <script>."),
            Finding(name="look-up", found=True, sentence="B."),
        ],
    )


def page(audits: list[AuditOf]) -> str:
    method = MethodResult("ridge", "", {"two_way_scene": measure(0.8)})
    return render_report(ReportData("t", "s", [method], ["two_way_scene"], audits=audits))


def test_findings_controls_and_leads_are_shown_and_escaped() -> None:
    html = page([AuditOf("ridge", audit(), {"two_way_scene": measure(0.8)})])
    part = html[html.index('id="audit"') : html.index('id="regions"')]
    assert re.search(r'flag">clear</span><b>Do the scores need the responses\?', part)
    assert re.search(r'flag found">found</span><b>Is it more than a look-up', part)
    assert "A &lt;script&gt;." in part and "ridge: findings" in part and "<b>words" not in part
    leads = re.findall(r'class="range (\w+)">([^<]+)<', part)
    assert [kind for kind, _ in leads] == ["clear", "open", "behind"]
    assert leads[0][1] == "+30.0 (+28.0 to +32.0), ahead"
    assert "60.0\N{NO-BREAK SPACE}% (58.0 to 62.0)" in part and "0.400 (0.380 to 0.420)" in part
    assert "50.0\N{NO-BREAK SPACE}% (40.0 to 60.0)" in part and "3.2" in part


def test_regions_are_charts_with_chance_and_voxels() -> None:
    html = page([AuditOf("ridge", audit(), {})])
    part = html[html.index('id="regions"') :]
    assert "V1&lt;i&gt;, 62 voxels" in part and part.count('class="chance"') == 2
    assert "+10.0\N{NO-BREAK SPACE}%" in part


def test_without_an_audit_there_is_no_section_and_no_link() -> None:
    html = page([])
    assert 'id="audit"' not in html and 'id="regions"' not in html and 'id="retrieval"' not in html


def test_the_picture_seen_is_outlined_where_it_was_retrieved() -> None:
    pictures = [np.full((8, 8, 3), v, np.uint8) for v in range(5)]
    rows = [RetrievalRow("a", pictures[0], pictures, 2, 30), RetrievalRow("b", pictures[0], pictures, 9, 30)]
    data = ReportData("t", "s", [MethodResult("ridge", "", {})], retrieved=rows, retrieved_by="scene")
    html = render_report(data)
    part = html[html.index('id="retrieval"') :]
    assert part.count('class="own"') == 1 and part.count("<img") == 12
    assert "rank 2 of 30" in part and "rank 9 of 30" in part
    assert 'id="retrieval"' not in render_report(replace(data, retrieved=()))


def test_an_audit_is_read_as_it_was_written_and_damage_is_told(tmp_path: Path) -> None:
    audit().write(tmp_path / "audit.json")
    assert Audit.read(tmp_path / "audit.json") == audit()
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(DamageError, match="is not an audit"):
        Audit.read(tmp_path / "audit.json")
    with pytest.raises(InputError, match="evaluate --audit"):
        Audit.read(tmp_path / "none.json")
