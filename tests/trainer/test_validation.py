"""Validation in parts that fit the memory: the figures are those of all rows at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fmri2img.trainer import validation
from fmri2img.trainer.engines import AccelerateEngine
from fmri2img.trainer.stages import pretrain
from fmri2img.trainer.watch import read_records

SUBJECTS = ("subj01", "subj02", "subj03")


@pytest.fixture
def judged(
    spec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], tuple[list[dict[str, float]], list[int]]]:
    """`judged(rows)`: figures of all validations where so many rows go forward at once; how many went in each pass."""

    def run(rows: int) -> tuple[list[dict[str, float]], list[int]]:
        counts: list[int] = []
        usual = AccelerateEngine.forward

        def counted(self: AccelerateEngine, responses: Mapping[str, Tensor], *others: Any) -> Any:
            if not self.decoder.training:
                counts.append(sum(len(values) for values in responses.values()))
            return usual(self, responses, *others)

        told = spec(f"run-{rows}", SUBJECTS, steps=2, lanes=1, global_batch=9)
        with monkeypatch.context() as patch:
            patch.setattr(validation, "ROWS", rows)
            patch.setattr(AccelerateEngine, "forward", counted)
            pretrain(told)
        records = [record for record in read_records(Path(told.run)) if "validation/loss" in record]
        return [
            {name: value for name, value in record.items() if name.startswith("validation/")}
            for record in records
        ], counts

    return run


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_parts_of_any_size_give_the_figures_of_all_rows_at_once(
    judged: Callable[..., Any], rows: int
) -> None:
    (whole, at_once), (parts, counts) = judged(1000), judged(rows)
    assert len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        assert {name.split("/")[-1] for name in one} == {"loss", "mse", "contrastive", "retrieval"}
        assert other == pytest.approx(one, rel=1e-5)
    assert len(at_once) == 2 and sum(counts) == sum(at_once)
    assert max(counts) <= rows + len(SUBJECTS) - 1 < at_once[0]
