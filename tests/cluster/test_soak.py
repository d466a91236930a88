"""The soak, short: a run that something happens to all the time ends as one that nothing happened to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("soak.py")

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_a_run_that_faults_keep_hitting_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    words = ["--minutes", "1.5", "--every", "15:25", "--seed", "1", "--out", tmp_path / "soak"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=880, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    told = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert [name for name, holds in told["checks"].items() if not holds] == [], told
    assert len(told["faults"]) >= 3
    assert told["exit_codes"][-1] == 0
