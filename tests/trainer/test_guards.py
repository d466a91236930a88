"""Guards: ranks whose graphs differ, waiting for data, layouts that do not fit."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from fmri2img.errors import Fmri2imgError, InputError
from fmri2img.trainer.batches import BatchLoader
from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.guards import GraphGuard, WaitGuard, gradient_order
from fmri2img.trainer.loop import check_layout
from fmri2img.trainer.stages import finetune
from fmri2img.trainer.watch import Watch


class Model(nn.Module):
    """Two heads in front of a trunk; which heads are used, and in which order, is said at each pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleDict({name: nn.Linear(3, 4) for name in ("subj01", "subj02")})
        self.first = nn.Linear(4, 4)
        self.trunk = nn.Sequential(self.first, nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2))

    def forward(self, *subjects: str) -> Tensor:
        latent = torch.cat([self.heads[name](torch.ones(2, 3)) for name in subjects])
        out: Tensor = self.trunk(latent) + self.trunk(2 * latent)
        return out


def fired(model: nn.Module, loss: Tensor) -> list[str]:
    """The order in which gradient hooks fire, by firing them."""
    order: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda _, name=name: order.append(name))
    loss.backward()
    return order


def names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("subjects", [("subj01", "subj02"), ("subj02", "subj01"), ("subj02",)])
def test_the_order_of_gradients_is_the_one_in_which_hooks_fire(subjects: tuple[str, ...]) -> None:
    model = Model()
    loss = model(*subjects).square().sum() + 0.0 * model.first.weight.sum()
    told = gradient_order(loss, names(model))
    assert told == fired(model, loss)
    assert len(told) == len(set(told)) == 6 + 2 * len(subjects)


def test_a_decoders_order_is_the_one_in_which_hooks_fire(processes: Any) -> None:
    made = processes.decoder()
    for parameter in made.branch("tone").parameters():
        parameter.requires_grad_(False)
    loss = processes.losses(made, made, 0).backward
    assert gradient_order(loss, names(made)) == fired(made, loss)


def compare(rank: int, folder: str, orders: list[tuple[str, ...]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = Model()
    guard, told = GraphGuard(model, 7), "the same"
    try:
        guard.check(model(*orders[rank]).sum())
    except Fmri2imgError as error:
        told = str(error)
    Path(folder, f"told-{rank}").write_text(told)
    dist.barrier()
    dist.destroy_process_group()


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, *orders: tuple[str, ...]) -> list[str]:
    """What two processes say of their graphs."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    start_processes(compare, (str(folder), list(orders)), nprocs=2, start_method="fork")
    return [(folder / f"told-{rank}").read_text() for rank in range(2)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ranks_whose_graphs_differ_all_stop_and_name_the_first_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("same", "order", "missing")]
    for folder in folders:
        folder.mkdir()
    same, order, missing = folders
    usual = ("subj01", "subj02")
    assert both(same, monkeypatch, usual, usual) == ["the same"] * 2
    one, other = both(order, monkeypatch, usual, ("subj02", "subj01"))
    assert one == other
    assert one.startswith("step 7: ranks compute different graphs: gradient 6 is of heads.subj02.")
    assert "on rank 0 and of heads.subj01." in one and "on rank 1: nothing of this step was applied" in one
    one, other = both(missing, monkeypatch, usual, ("subj01",))
    assert one == other and "of heads.subj02." in one and "of heads.subj01." in one


def test_orders_of_unequal_length_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    guard = GraphGuard(model, 0)
    monkeypatch.setattr(
        "fmri2img.trainer.guards.gather_objects",
        lambda mine: [mine, "other"] if isinstance(mine, str) else [mine, mine[:-1]],
    )
    with pytest.raises(
        Fmri2imgError, match=r"gradient 9 is of heads.subj01.weight on rank 0 and of none on rank 1"
    ):
        guard.check(model("subj01", "subj02").sum())


def test_the_first_step_of_every_start_is_compared_and_no_other(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    monkeypatch.setattr(GraphGuard, "check", lambda self, loss: compared.append(self.step))
    monkeypatch.setattr("fmri2img.trainer.loop.world_size", lambda: 2)
    with pytest.raises(killed):
        finetune(spec("run", micro_batches=2), listener=faults.kill_at(5))
    finetune(spec("run", micro_batches=2))
    assert compared == [0, 0, 4, 4]  # each of two micro-batches


def test_waiting_for_data_is_told_once_after_several_records_in_a_row() -> None:
    guard = WaitGuard(threads=1, remote=False, share=0.2, records=3)
    shares = [0.9, 0.3, 0.1, 0.3, 0.3, 0.43, 0.5, 0.5, 0.5]
    told = [guard.hear(share) for share in shares]
    assert [text is not None for text in told] == [n == 5 for n in range(len(shares))]
    assert told[5] == (
        "training waits for data 43% of the time: stop and resume with the data set on a local disk, "
        "or with more reading_threads than 1"
    )
    far = WaitGuard(threads=2, remote=True, records=1).hear(0.5)
    assert far is not None and "FMRI2IMG_CACHE" in far


def test_a_run_that_waits_says_so_in_one_line_and_goes_on(
    spec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = BatchLoader.read

    def slow(self: BatchLoader, step: int) -> Any:
        time.sleep(0.1)
        return read(self, step)

    monkeypatch.setattr(BatchLoader, "read", slow)
    monkeypatch.setattr("fmri2img.trainer.guards.WAIT_RECORDS", 3)
    finetune(spec("run", validation=0, checkpoint_every=100))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and "training waits for data" in lines[0]


def test_reading_threads_change_no_bit(spec: Callable[..., Any]) -> None:
    one, many = finetune(spec("one")), finetune(spec("many", reading_threads=3))
    assert (one / "model.safetensors").read_bytes() == (many / "model.safetensors").read_bytes()


@pytest.mark.parametrize("micro", [1, 2, 3, 5])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 50, 97, 250])
def test_a_batch_that_is_offered_is_taken(world: int, micro: int, batch: int) -> None:
    subjects = ("subj01", "subj02", "subj05")

    def fits(size: int) -> None:
        check_layout(TrainingConfig(lanes=8, global_batch=size, micro_batches=micro), subjects, world)

    with pytest.raises(InputError, match=r"must be a multiple of 24\. Use \d+ or \d+") as caught:
        fits(batch)
    below, above = (int(word) for word in str(caught.value).split("Use ")[1].split(" or "))
    fits(below)
    fits(above)
    assert above - below == 3 * math.lcm(8, world * micro)


def test_a_watch_warns_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(tmp_path, first_step=0, total=1, config={})
    watch.warn("mind [red]the[/red] step")
    watch.close()
    assert capsys.readouterr().out == "warning: mind [red]the[/red] step\n"
