"""Progress: lines at intervals where there is no terminal, a live bar where there is one."""

import io
import re

import pytest
from rich.console import Console

from fmri2img import console


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, fail: bool = False) -> str:
    text = io.StringIO()
    made = Console(file=text, force_terminal=terminal, width=120, highlight=False)
    monkeypatch.setattr(console, "output", lambda: made)
    clock = iter(range(1000))
    monkeypatch.setattr("fmri2img.console.time.monotonic", lambda: float(next(clock)) * 4)
    with console.stage("Training", "steps") as tell:
        for step in range(8):
            tell(step, 8, f"loss {1 - step / 10:.1f}")
            if fail and step == 3:
                raise RuntimeError("stop")
    return text.getvalue()


def test_plain_lines_come_at_intervals_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert lines[0] == "Training ..."
    assert re.fullmatch(r"✓ Training \d+ s", lines[-1])
    middle = lines[1:-1]
    assert 2 <= len(middle) < 8, "not a line a step"
    for line in middle:
        assert re.fullmatch(r"  Training: \d/8 steps, \d\.\d/s, \d+ s left loss 0\.\d", line), line


def test_a_live_bar_shows_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "Training" in text and "✓" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_what_failed_is_not_ticked_off(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    with pytest.raises(RuntimeError):
        shown(monkeypatch, terminal=terminal, fail=True)
