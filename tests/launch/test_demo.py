"""The demo, small, from nothing to the report; and again, which only looks at what is there."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _last_object(text: str) -> str:
    """The JSON at the end of what a script printed."""
    return text[text.index("\n{\n") :]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_runs_to_its_report_and_a_second_time_quickly(
    said: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["demo", "--out", tmp_path / "demo", "--size", "small"]
    result = said(*words)
    assert result.code == 0, result.err
    assert "report.html" in result.out.splitlines()[-2] and "metrics.json" in result.out.splitlines()[-1]
    report = (tmp_path / "demo" / "report.html").read_text()
    assert "from scratch" in report and "http://" not in report.replace("http://www.w3.org", "")
    told = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert set(told["methods"]) == {"pretrained, then finetuned", "from scratch", "ridge"}
    for scores in told["methods"].values():
        kinds = {name.split("_")[0] for name in scores}
        assert {"pixcorr", "two", "image"} <= kinds
        assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
    assert set(told["differences"]) == {"from scratch", "ridge"}
    assert all("low" in d for other in told["differences"].values() for d in other.values())

    started = time.monotonic()
    again = said(*words)
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())["methods"] == told["methods"]
    assert time.monotonic() - started < told["seconds"]["total"] / 2

    script = Path(__file__).parents[2] / "benchmarks" / "pictures.py"
    tiny = [tmp_path / "demo", "--out", tmp_path / "full", "--samples", 2, "--steps", 4, "--pool", 10]
    command = [sys.executable, "-P", str(script), *map(str, tiny)]
    scores = json.loads(
        _last_object(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    )
    assert len(scores["scores"]) == 4
    assert all(
        0 <= s["low"] <= s["value"] for v in scores["scores"].values() for k, s in v.items() if "two" in k
    )

    other = said(*words, "--seed", 1)
    assert (other.code, "holds a demo of" in other.line) == (2, True)
