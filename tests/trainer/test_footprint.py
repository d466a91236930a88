"""Predicted memory beside what real training took, and the rules that the predictions must obey."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.footprint import BUCKET, Footprint, footprint, refused, touched
from fmri2img.trainer.rehearsal import Counts, Moment, Trace, count, meta_decoder, rehearse

SCRIPT = Path(__file__).parent / "footprints.py"
# Two processes cost most, so each of them has its turn with what one process shows less of.
ALONE = ["zero0", "zero2-many-rows", "zero3-offload"]
TWO = ["zero1", "zero2-average-parts", "zero2-offload-bfloat16", "zero3"]


@pytest.fixture(scope="module")
def footprints() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("footprints", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def predicted(footprints: ModuleType, name: str, world: int) -> Footprint:
    recipe = footprints.recipe(name, world)
    decoder = meta_decoder(recipe, footprints.VOXELS, footprints.targets(recipe))
    config = recipe.pretraining
    return footprint(count(decoder, config), config, world, rehearse(decoder, recipe, config, world), "cpu")


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are reset in /proc, which Linux has"
)
@pytest.mark.parametrize(("world", "names"), [(1, ALONE), (2, TWO)])
def test_every_phase_takes_what_was_predicted_within_15_percent(
    footprints: ModuleType,
    group: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world: int,
    names: list[str],
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    group(SCRIPT, tmp_path, world, ",".join(names), seconds=550)
    wrong = []
    for rank in range(world):
        told = json.loads((tmp_path / f"{world}-{rank}.json").read_text())
        for name in names:
            found = predicted(footprints, name, world)
            for phase, measured in told[name].items():
                share = found.phase(phase).total("device") / measured
                print(
                    f"{world} {name} rank {rank} {phase}: {measured / 1e6:.0f} MB, predicted {share:.3f} of it"
                )
                if not 0.85 < share < 1.15:
                    wrong.append((name, rank, phase, round(share, 3)))
    assert not wrong


def test_a_part_of_a_parameter_counts_whole() -> None:
    # Three ranks hold elements 0-3, 4-7 and 8-11: the parameter of 6 stands on the first two, that of 5 on the others.
    assert touched([(6, 5, 1)], 3) == 11
    assert touched([(4, 4, 4)], 3) == 4
    assert touched([(4, 4, 4), (9,)], 3) == 13
    assert touched([(6, 5, 1)], 1) == 12


NOTHING = Trace((Moment(0, 0),), 0)
COUNTS = Counts({"all": 8_000_000_000}, ((8_000_000_000,),), 0)


@pytest.mark.parametrize("world", [1, 8, 64])
def test_what_rests_is_that_of_rajbhandari_and_others(world: int) -> None:
    # Section 5: weights and gradients of 2 bytes, 12 of Adam, each divided from its stage on; here without gradients
    # at stages 1 and 2, where they live for a part of the step.
    for stage, bytes_of in {1: 2 + 12 / world, 2: 2 + 12 / world, 3: (2 + 2 + 12) / world}.items():
        config = TrainingConfig(zero_stage=stage, precision="bfloat16")  # type: ignore[arg-type]
        found = footprint(COUNTS, config, world, NOTHING, "gpu").phase("checkpoint").device
        rests = sum(found[name] for name in ("weights", "float32 weights", "moments"))
        rests += found.get("gradients", 0)
        assert rests == pytest.approx(bytes_of * COUNTS.parameters)
    assert footprint(COUNTS, TrainingConfig(zero_stage=0), world, NOTHING, "gpu").phase("checkpoint").total(
        "device"
    ) == pytest.approx((4 + 8) * COUNTS.parameters)


def test_offloading_moves_and_makes_nothing_vanish() -> None:
    def resting(offload: str) -> tuple[float, float]:
        config = TrainingConfig(zero_stage=3, precision="bfloat16", offload=offload)  # type: ignore[arg-type]
        phase = footprint(COUNTS, config, 8, NOTHING, "gpu").phase("backward")
        return phase.total("device"), phase.total("host")

    (device, host), (less, more), (least, most) = map(
        resting, ("none", "optimizer", "optimizer-and-parameters")
    )
    assert host == 0
    assert device > less > least
    assert more < most
    assert device - least <= most  # the host holds a float32 gradient too


def test_buckets_of_a_gpu_are_whole_whatever_the_model_is() -> None:
    small = Counts({"all": 1000}, ((1000,),), 0)
    config = TrainingConfig(zero_stage=2)
    items = footprint(small, config, 2, NOTHING, "gpu").phase("backward").device
    assert items["buckets"] == 2 * BUCKET * 4
    assert footprint(small, config, 2, NOTHING, "cpu").phase("backward").device["buckets"] == 4000


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"zero_stage": 0, "precision": "bfloat16"}, "stage 0 cannot train in bfloat16"),
        ({"zero_stage": 2, "offload": "optimizer-and-parameters"}, "stage 2 cannot offload"),
        ({"zero_stage": 3, "offload": "optimizer-and-parameters"}, None),
    ],
)
def test_what_the_engine_refuses_is_known_before(changes: dict[str, Any], why: str | None) -> None:
    told = refused(TrainingConfig(**changes))
    assert told is None if why is None else why in str(told)


def test_a_rehearsal_allocates_nothing_and_grows_with_rows_and_not_with_parts(footprints: ModuleType) -> None:
    recipe = footprints.recipe("zero0", 1)
    decoder = meta_decoder(recipe, footprints.VOXELS, footprints.targets(recipe))
    assert {parameter.device.type for parameter in decoder.parameters()} == {"meta"}
    config = recipe.pretraining
    few = rehearse(decoder, recipe, config, 1)
    many = rehearse(decoder, recipe, config.model_copy(update={"global_batch": 8 * config.global_batch}), 1)
    assert many.flops == pytest.approx(8 * few.flops, rel=0.05)  # losses over pairs grow with the square
    halves = config.model_copy(update={"global_batch": 8 * config.global_batch, "micro_batches": 2})
    parts = rehearse(decoder, recipe, halves, 1)
    assert few.most < parts.most < many.most
    assert parts.flops > 1.3 * many.flops  # each row goes forward twice
    assert many.moments[-1].ready == count(decoder, config).parameters
