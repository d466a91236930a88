"""Ranks at ZeRO 3 whose forward passes differ stop with one message, where they would wait for each other."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmri2img.trainer.stages import StageSpec

SCRIPT = Path(__file__).parent / "differing.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
]  # DeepSpeed compiles its collectives at the first use


def test_ranks_at_zero_3_that_call_other_modules_stop_within_seconds_and_name_them(
    spec: Callable[..., StageSpec], tmp_path: Path, group: Callable[..., None]
) -> None:
    told = spec("unused", ("subj01", "subj02"), zero_stage=3, steps=2, validation=0)
    plain = copy.deepcopy(dataclasses.asdict(told)) | {"engine": "deepspeed"}
    (tmp_path / "spec.json").write_text(json.dumps(plain))
    group(SCRIPT, tmp_path, 2, tmp_path / "spec.json", seconds=120)
    one, other = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    assert one == other
    start = "step 0: ranks compute different graphs: call"
    assert one["order"].startswith(
        f"{start} 1 of its forward pass is of heads.subj01 on rank 0 and of heads.subj02 on rank 1: nothing of this "
    )
    assert one["more"].startswith(f"{start} ")
    assert (
        " is of none on rank 0 and of backbone.0 on rank 1: nothing of this step was applied" in one["more"]
    )
    assert one["same"] == "step-00000002"
