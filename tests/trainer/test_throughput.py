"""Where the time of a step goes, and how much of a device's peak the decoder reaches."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fmri2img.trainer import loop, throughput
from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.engines import AccelerateEngine
from fmri2img.trainer.stages import finetune
from fmri2img.trainer.throughput import Throughput, decoder_flops, peak_flops
from fmri2img.trainer.watch import read_records

CPU = torch.device("cpu")
SUBJECTS = ["subj01", "subj02", "subj05"]


class Clock:
    """Time that passes when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def step(speed: Throughput, clock: Clock, waited: float, *parts: float, logged: bool = True) -> None:
    clock.now += waited
    speed.begin(waited, logged=logged)
    for part, seconds in zip(throughput.PARTS, parts, strict=True):
        clock.now += seconds
        speed.lap(part)
    speed.end()


def test_the_figures_of_a_record_cover_all_steps_since_the_one_before(processes: Any) -> None:
    clock = Clock()
    speed = Throughput(processes.decoder(), TrainingConfig(global_batch=96), CPU, SUBJECTS, clock=clock)
    step(speed, clock, 1.0, 0.5, 1.0, 1.0, 0.5, logged=False)
    clock.now += 50.0  # a validation
    step(speed, clock, 0.0, 0.25, 2.0, 3.0, 0.75)
    speed.stalled(1.5)
    speed.stalled(0.5)
    figures = speed.figures()
    assert figures.pop("memory/host_peak_mb") > 1
    assert figures == pytest.approx(
        {
            "speed/samples_per_second": 2 * 96 / 10.0,
            "speed/step_seconds": 5.0,
            "speed/data_wait_share": 0.1,
            "speed/wait_seconds": 0.0,
            "speed/to_device_seconds": 0.25,
            "speed/forward_seconds": 2.0,
            "speed/backward_seconds": 3.0,
            "speed/update_seconds": 0.75,
            "speed/checkpoint_stall_seconds": 2.0,
        }
    )
    step(speed, clock, 2.0, 0.0, 1.0, 1.0, 0.0)
    after = speed.figures()
    assert after["speed/samples_per_second"] == pytest.approx(96 / 4.0)
    assert after["speed/data_wait_share"] == pytest.approx(0.5)
    assert after["speed/checkpoint_stall_seconds"] == 0.0


def test_the_rank_that_waits_most_and_needs_most_memory_is_told(
    processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    speed = Throughput(processes.decoder(), TrainingConfig(global_batch=96), CPU, SUBJECTS, clock=clock)
    step(speed, clock, 1.0, 0.0, 1.0, 1.0, 1.0)
    monkeypatch.setattr(throughput, "gather_objects", lambda mine: [mine, (4.5, 0.75, 1e9, 0.0, 3.0)])
    figures = speed.figures()
    assert figures["speed/data_wait_share"] == 0.75
    assert figures["speed/samples_per_second"] == pytest.approx(96 / 4.5)
    assert figures["memory/host_peak_mb"] == 1e9
    assert figures["speed/checkpoint_stall_seconds"] == 3.0


def test_the_operations_of_a_decoder_are_those_of_its_matrices(processes: Any) -> None:
    """Two a weight and row forward, two for the weight's gradient, two for the input's but that of the responses."""
    made = processes.decoder()
    rows = {"subj01": 2, "subj02": 3, "subj05": 4}
    heads = sum(rows[name] * made.heads[name].weight.numel() for name in rows)
    shared = sum(
        parameter.numel()
        for name, parameter in made.named_parameters()
        if parameter.ndim == 2 and not name.startswith("heads.")
    )
    assert decoder_flops(made, rows) == 4 * heads + 6 * sum(rows.values()) * shared
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name.startswith("heads."))
    assert decoder_flops(made, rows) == 4 * heads + 4 * sum(rows.values()) * shared


def test_counting_touches_neither_the_decoder_nor_a_random_state(processes: Any) -> None:
    made = processes.decoder()
    before, state = {n: v.clone() for n, v in made.state_dict().items()}, torch.get_rng_state()
    decoder_flops(made, {"subj01": 2, "subj02": 2, "subj05": 2})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "float16", 756.0),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H200 NVL", "bfloat16", 835.5),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA L40S", "float16", 362.05),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("Tesla V100-SXM2-16GB", "float16", 125.0),
    ],
)
def test_peaks_are_found_by_the_names_of_devices(name: str, precision: str, tflops: float) -> None:
    assert peak_flops(name, precision) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GH200 480GB",
        "NVIDIA A10G",
        "NVIDIA A100X",
        "cpu",
    ],
)
def test_a_device_that_is_not_known_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bfloat16") is None


def test_tf32_counts_where_products_may_be_rounded_to_it() -> None:
    assert peak_flops("NVIDIA H200", "float32") == pytest.approx(66.9e12)
    assert peak_flops("NVIDIA H200", "float32", tf32=True) == pytest.approx(494.7e12)
    assert peak_flops("Tesla V100-SXM2-16GB", "float32", tf32=True) == pytest.approx(15.7e12)
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None


def test_on_a_gpu_parts_are_waited_for_at_logged_steps_alone_and_the_share_of_the_peak_is_told(
    processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the GPU: this checks our arithmetic and our waiting, not CUDA."""
    waits: list[torch.device] = []
    gpu, clock, made = torch.device("cuda", 0), Clock(), processes.decoder()
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    speed = Throughput(
        made, TrainingConfig(global_batch=96, precision="bfloat16"), gpu, SUBJECTS, clock=clock
    )
    step(speed, clock, 0.0, 0.0, 1.0, 1.0, 0.0, logged=False)
    assert waits == []
    step(speed, clock, 0.0, 0.0, 1.0, 1.0, 0.0)
    assert waits == [gpu] * 6
    figures = speed.figures()
    flops = decoder_flops(made, dict.fromkeys(made.subjects, 32))
    assert figures["memory/device_peak_mb"] == 3.0
    assert figures["speed/model_flop_utilisation"] == pytest.approx(flops / 2.0 / 989.4e12)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name.startswith("heads."))
    step(speed, clock, 0.0, 0.0, 1.0, 1.0, 0.0)
    fewer = decoder_flops(made, dict.fromkeys(made.subjects, 32))
    assert fewer < flops
    told = speed.figures()["speed/model_flop_utilisation"]
    assert told == pytest.approx(fewer / 2.0 / 989.4e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA of tomorrow")
    step(speed, clock, 0.0, 0.0, 1.0, 1.0, 0.0)
    assert "speed/model_flop_utilisation" not in speed.figures()


def test_the_parts_of_a_logged_step_of_a_run_come_to_the_step(spec: Callable[..., Any]) -> None:
    finetune(spec("run", checkpoint_every=3))
    records = [r for r in read_records(Path(spec("run").run)) if "train/loss" in r]
    assert len(records) == 8
    for record in records:
        parts = [record[f"speed/{part}_seconds"] for part in ("wait", *throughput.PARTS)]
        assert all(part >= 0 for part in parts) and record["speed/forward_seconds"] > 0
        assert math.isclose(sum(parts), record["speed/step_seconds"], rel_tol=0.05, abs_tol=2e-3)
        assert "speed/model_flop_utilisation" not in record and "memory/device_peak_mb" not in record
        assert record["train/skipped_steps"] == 0
    stalled = [r["step"] for r in records if r["speed/checkpoint_stall_seconds"] > 0]
    assert stalled == [4, 7]  # the records after the checkpoints of steps 3 and 6


def test_skipped_steps_are_counted_over_a_resume(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 leaves out steps whose gradients overflow; here steps 1 and 5 are left out by hand."""
    update, train_step = AccelerateEngine.step, loop._step
    at = [0]

    def stepped(job: Any, batch: Any, *arguments: Any, **options: Any) -> Any:
        at[0] = batch.step
        return train_step(job, batch, *arguments, **options)

    def sometimes(self: AccelerateEngine, rate: float) -> float:
        if at[0] not in (1, 5):
            return update(self, rate)
        self.optimiser.zero_grad()
        self.skipped += 1
        return 0.0

    monkeypatch.setattr(loop, "_step", stepped)
    monkeypatch.setattr(AccelerateEngine, "step", sometimes)
    with pytest.raises(killed):
        finetune(spec("run"), listener=faults.kill_at(4))
    finetune(spec("run"))
    records = [r for r in read_records(Path(spec("run").run)) if "train/loss" in r]
    assert [r["train/skipped_steps"] for r in records] == [0, 1, 1, 1, 1, 2, 2, 2]
