"""World size and micro-batches change nothing: every loss and gradient is that of one process with the whole batch."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fmri2img.models.decoder import Outputs
from fmri2img.models.prior import Noised
from fmri2img.trainer.objectives import MicroBatches, Place

SCRIPT = Path(__file__).parent / "ranks.py"
WORLDS = (2, 4)
# Sums in another order, in float64.
ROUNDING = 1e-11


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ranks = _load()
STEPS = [place.step for place in ranks.PLACES]


@pytest.fixture(scope="session")
def truth() -> dict[int, dict[str, Tensor]]:
    """One process, one part, the whole batch."""
    return {place.step: ranks.told(place) for place in ranks.PLACES}


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what groups of two and of four processes found; run once."""
    folder = tmp_path_factory.mktemp("ranks")
    for world in WORLDS:
        logs = [folder / f"log-{world}-{rank}.txt" for rank in range(world)]
        running = []
        for rank, log in enumerate(logs):
            with open(log, "w") as file:
                command = [sys.executable, "-P", str(SCRIPT), str(folder), str(rank), str(world)]
                place = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
                running.append(subprocess.Popen(command, env=place, stdout=file, stderr=file))
        try:
            codes = [process.wait(300) for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert codes == [0] * world, "\n".join(log.read_text()[-2000:] for log in logs)
    return folder


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        error = float((found[name] - value).abs().max())
        assert error <= ROUNDING * max(1.0, float(value.abs().max())), f"{name} is off by {error}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("world", WORLDS)
def test_losses_and_gradients_of_several_processes_are_those_of_one(
    several: Path, truth: dict[int, dict[str, Tensor]], world: int, step: int, parts: int
) -> None:
    # Negatives come from all ranks, with gradients; mixed labels point at the partner's row wherever it is gathered to.
    for rank in range(world):
        assert_same(load_file(several / f"{world}-{step}-{parts}-{rank}.safetensors"), truth[step])


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("step", STEPS)
def test_losses_and_gradients_of_micro_batches_are_those_of_the_whole_batch(
    truth: dict[int, dict[str, Tensor]], step: int, parts: int
) -> None:
    assert_same(ranks.told(Place(step, ranks.STEPS), parts=parts), truth[step])


def test_every_micro_batch_holds_every_subject_in_the_same_order() -> None:
    seen: list[Mapping[str, Tensor]] = []
    made = ranks.decoder()

    def forward(responses: Mapping[str, Tensor], noised: Mapping[str, Noised] | None) -> Outputs:
        seen.append(responses)
        outputs: Outputs = made(responses, noised)
        return outputs

    responses, _, _ = ranks.batch()
    micro = MicroBatches(
        forward, lambda loss, last: loss.backward(), responses, parts=4, seed=lambda part: None
    )
    outputs = micro.forward()
    assert torch.allclose(outputs[0], made(responses)[0], rtol=1e-12)
    micro.backward(outputs[0].square().sum())
    assert len(seen) == 8
    for part, rows in enumerate(seen):
        assert list(rows) == list(ranks.VOXELS)
        for name, values in rows.items():
            assert torch.equal(values, responses[name][4 * (part % 4) :][:4])


def test_the_second_pass_drops_the_same_units_as_the_first() -> None:
    found: list[Outputs] = []
    made = ranks.decoder(dropout=0.5)

    def forward(responses: Mapping[str, Tensor], noised: Mapping[str, Noised] | None) -> Outputs:
        found.append(made(responses, noised))
        return found[-1]

    seeds: list[int] = []

    def seed(part: int) -> None:
        seeds.append(part)
        torch.manual_seed(part)

    micro = MicroBatches(forward, lambda loss, last: loss.backward(), ranks.batch()[0], parts=2, seed=seed)
    micro.backward(micro.forward()[1]["map"].sum())
    assert seeds == [0, 1, 0, 1]
    for one, again in zip(found[:2], found[2:], strict=True):
        assert torch.equal(one[1]["map"], again[1]["map"])
    assert not torch.equal(found[0][1]["map"], found[1][1]["map"])


def test_only_the_last_micro_batch_is_told_to_be_the_last() -> None:
    told: list[bool] = []
    made = ranks.decoder()

    def backward(loss: Tensor, *, last: bool) -> None:
        told.append(last)
        loss.backward()

    for parts in (1, 4):
        micro = MicroBatches(made, backward, ranks.batch()[0], parts=parts, seed=lambda part: None)
        micro.backward(micro.forward()[1]["map"].sum())
    assert told == [True, False, False, False, True]


@pytest.mark.parametrize("step", range(ranks.STEPS))
def test_every_parameter_has_a_gradient_at_every_step_whatever_counts(step: int) -> None:
    # ZeRO needs the same graph on every rank and at every step: weights of 0 and losses that do not count included.
    made = ranks.decoder()
    loss = ranks.step(made, Place(step, ranks.STEPS))
    assert [name for name, parameter in made.named_parameters() if parameter.grad is None] == []
    counting = {"map/mse", "map/l1", "map/soft_contrastive", "words/cosine", "words/prior", "cycle"}
    counting |= {"map/prior", "response"} if step < 5 else set()
    counting |= {"tone/contrastive"} if step < 5 else {"tone/softclip"}
    counting |= {"words/bimixco"} if step < 4 else {"words/softclip"}
    assert set(loss.terms) == set(loss.weights) == counting


def test_a_loss_of_weight_0_is_told_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ranks.PLACES[1]
    with_it = ranks.told(place)
    fewer = {name: dict(kinds) for name, kinds in ranks.LOSSES.items()}
    del fewer["words"]["cosine"]
    monkeypatch.setattr(ranks, "LOSSES", fewer)
    without = ranks.told(place)
    assert with_it.pop("term.words/cosine") > 0
    assert_same(with_it, without)
