"""Engines against a truth: two processes with DeepSpeed make the updates that one process makes with plain AdamW.

Subjects have heads of unequal width, every rank's batch holds every subject, and pictures repeat within the batch.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import InputError
from fmri2img.trainer.engines import AccelerateEngine, DeepSpeedEngine
from fmri2img.trainer.stages import StageSpec, pretrain

Tensors = dict[str, Tensor]
STAGES = [0, 1, 2, 3]
# Sums over the batch in another order differ by some float32 roundings (2**-24 = 6e-8 each, relative to the largest
# element of a tensor); 1e-5 allows about 150 of them. A gradient that misses a row or a factor is wrong by 1e-2.
ROUNDING = 1e-5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # DeepSpeed compiles its collectives at the first use


def assert_close(one: Tensors, truth: Tensors, tolerance: float) -> None:
    """Every tensor within `tolerance` of the truth, relative to the tensor's largest element."""
    assert one.keys() == truth.keys()
    for name, value in truth.items():
        error = float((one[name].double() - value.double()).abs().max())
        assert error <= tolerance * float(value.abs().max()), f"{name} is off by {error}"


def assert_equal(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def start(processes: ModuleType, tensors: Tensors | None = None, **changes: Any) -> AccelerateEngine:
    """A single process at step 0, or where the tensors of a checkpoint were."""
    decoder = processes.decoder()
    if tensors is not None:
        decoder.load_state_dict({name: tensors[name] for name in decoder.state_dict()})
    engine = AccelerateEngine(decoder, processes.config(**changes))
    if tensors is not None:
        engine.load_optimiser(tensors)
        engine.load_ema({name: tensors[f"ema.{name}"] for name in decoder.state_dict()})
    return engine


def test_loss_and_averaged_gradients_of_two_processes_are_those_of_one_in_float64(
    two_processes: Path, processes: ModuleType
) -> None:
    truth = processes.double_gradients()
    for rank in range(2):
        assert_close(load_file(two_processes / f"double-{rank}.safetensors"), truth, 1e-10)


@pytest.mark.parametrize("clip", [0.05, 0.0])
@pytest.mark.parametrize("stage", STAGES)
def test_weights_moments_and_norms_after_several_steps_are_those_of_one_process(
    two_processes: Path, processes: ModuleType, stage: int, clip: float
) -> None:
    engine = start(processes, clip=clip)
    norms = processes.train(engine, 0, processes.STEPS)
    assert min(norms) > 10 * 0.05  # so the clip is felt at every step
    truth = {**processes.state(engine), "norms": torch.tensor(norms)}
    for rank in range(2):
        found = load_file(two_processes / f"zero{stage}-clip{clip}-float32-end-{rank}.safetensors")
        assert found.pop("skipped") == 0
        assert_close(found, truth, ROUNDING)
        start_at = {name: p.detach() for name, p in processes.decoder().named_parameters()}
        moved, wanted = ({n: t[n] - p for n, p in start_at.items()} for t in (found, truth))
        assert_close(moved, wanted, 10 * ROUNDING)


def test_a_saved_and_loaded_engine_goes_on_as_if_it_had_not_stopped(
    two_processes: Path, processes: ModuleType
) -> None:
    cases = [name for name, changes in processes.CASES.items() if changes.get("clip", 1)]
    assert len(cases) >= 15
    for name in cases:
        for rank in range(2):
            end = load_file(two_processes / f"{name}-end-{rank}.safetensors")
            del end["norms"], end["skipped"]
            assert_equal(load_file(two_processes / f"{name}-resumed-{rank}.safetensors"), end)


@pytest.mark.parametrize(
    "name", ["zero0-rates", "zero2-rates", "zero3-rates", *(f"zero{n}-parts" for n in STAGES)]
)
def test_rates_by_part_and_accumulated_gradients_are_those_of_one_process(
    two_processes: Path, processes: ModuleType, name: str
) -> None:
    changes = {key: value for key, value in processes.CASES[name].items() if key == "rates"}
    engine = start(processes, **changes)
    processes.train(engine, 0, processes.STEPS)
    found = load_file(two_processes / f"{name}-end-0.safetensors")
    del found["norms"], found["skipped"]
    assert_close(found, processes.state(engine), ROUNDING)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_kept_in_the_memory_of_the_host_makes_no_difference(two_processes: Path, stage: int) -> None:
    there, here = (
        load_file(two_processes / f"zero{stage}-{what}-end-0.safetensors")
        for what in ("offload", "clip0.05-float32")
    )
    assert_close(there, here, ROUNDING)


def test_the_average_of_the_weights_is_the_closed_form(processes: ModuleType) -> None:
    engine = start(processes)
    averaged = {name: value.clone() for name, value in engine.model_tensors().items()}
    for step in range(4):
        processes.train(engine, step, step + 1)
        keep = min(0.7, (step + 1) / (step + 10))
        weights = engine.model_tensors()
        averaged = {name: keep * averaged[name] + (1 - keep) * weights[name] for name in weights}
    assert_close(engine.ema_tensors(), averaged, ROUNDING)
    assert_equal(engine.model_tensors(), weights)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reduced_precision_follows_float32_and_keeps_statistics_and_updates_in_float32(
    two_processes: Path, processes: ModuleType, stage: int, kind: str
) -> None:
    half, single = (
        load_file(two_processes / f"zero{stage}-clip0.05-{which}-end-0.safetensors")
        for which in (kind, "float32")
    )
    if not half["skipped"]:
        torch.testing.assert_close(half["norms"][:3], single["norms"][:3], rtol=0.02, atol=0)
    assert torch.equal(half["branches.map.mean"], single["branches.map.mean"])
    name = "heads.subj01.weight"
    assert not torch.equal(half[name], half[name].bfloat16().float())


def test_bfloat16_at_stage_0_is_refused_before_it_starts(processes: ModuleType) -> None:
    with pytest.raises(InputError, match="use zero_stage 1, 2 or 3"):
        DeepSpeedEngine(processes.decoder(), processes.config(precision="bfloat16"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"zero_stage": 0, "offload": "optimizer"}, "needs zero_stage 1 or more, not 0"),
        ({"zero_stage": 2, "offload": "optimizer-and-parameters"}, "needs zero_stage 3 or more, not 2"),
        ({"zero_stage": 0, "precision": "float16"}, "zero_stage 0 cannot train in float16"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_they_start(
    processes: ModuleType, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        DeepSpeedEngine(processes.decoder(), processes.config(**changes))


def test_float16_on_one_device_needs_a_gpu(processes: ModuleType) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match="float16 needs a GPU"):
        start(processes, precision="float16")


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_that_resume_a_pretraining_end_where_they_would_have(
    two_processes: Path, stage: int
) -> None:
    for name in ("model.safetensors", "state/model.safetensors", "state/optimiser.safetensors"):
        straight, again = (
            (two_processes / f"{run}-{stage}" / "checkpoints" / "step-00000006" / name).read_bytes()
            for run in ("straight", "again")
        )
        assert straight == again, name


@pytest.mark.parametrize("stage", [2, 3])
def test_pretraining_in_two_processes_is_pretraining_in_one(
    two_processes: Path, tmp_path: Path, stage: int
) -> None:
    told = json.loads((two_processes / "runs.json").read_text())[stage - 2]["spec"]
    spec = StageSpec(
        **{**told, "subjects": tuple(told["subjects"]), "run": str(tmp_path), "engine": "accelerate"}
    )
    one = schema.load_tensors(pretrain(spec))
    both = schema.load_tensors(two_processes / f"straight-{stage}" / "checkpoints" / "step-00000006")
    trained = {name for name in one if not name.startswith("alignment.")}
    # AdamW divides by the size of the gradient: where that is near 0, a rounding moves a weight by a share of the rate.
    assert_close({n: both[n] for n in trained}, {n: one[n] for n in trained}, 1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_what_two_processes_saved_one_process_goes_on_with(
    two_processes: Path, processes: ModuleType, stage: int
) -> None:
    middle = load_file(two_processes / f"zero{stage}-clip0.05-float32-middle-0.safetensors")
    engine = start(processes, middle)
    processes.train(engine, processes.MIDDLE, processes.STEPS)
    end = load_file(two_processes / f"zero{stage}-clip0.05-float32-end-0.safetensors")
    del end["norms"], end["skipped"]
    assert_close(processes.state(engine), end, ROUNDING)


def test_a_single_process_goes_on_as_if_it_had_not_stopped(processes: ModuleType) -> None:
    whole = start(processes)
    processes.train(whole, 0, processes.MIDDLE)
    broken = start(processes, processes.state(whole))
    for engine in (whole, broken):
        processes.train(engine, processes.MIDDLE, processes.STEPS)
    assert_equal(processes.state(broken), processes.state(whole))


def test_a_single_process_is_adamw_with_clipping(processes: ModuleType) -> None:
    engine = start(processes)
    processes.train(engine, 0, 3)
    plain = processes.decoder()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    for step in range(3):
        processes.losses(plain, plain, step).backward.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        for group in optimiser.param_groups:
            group["lr"] = processes.RATE * (1 + step)
        optimiser.step()
        optimiser.zero_grad()
    assert_equal(engine.model_tensors(), dict(plain.state_dict()))


def test_stages_of_two_precisions_follow_each_other_in_one_process(processes: ModuleType) -> None:
    norms: dict[str, list[list[float]]] = {}
    for precision in ("float32", "bfloat16", "float32"):
        engine = AccelerateEngine(processes.decoder(), processes.config(precision=precision))
        norms.setdefault(precision, []).append(processes.train(engine, 0, 2))
        assert all(value.dtype == torch.float32 for value in engine.decoder.parameters())
    assert norms["float32"][0] == norms["float32"][1]
    assert norms["bfloat16"][0] != norms["float32"][0]
    assert norms["bfloat16"][0] == pytest.approx(norms["float32"][0], rel=0.05)
