"""`--devices`: what it means on this machine, and what is refused before anything starts."""

import os
from collections.abc import Callable

import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.launch.cluster import Place
from fmri2img.launch.devices import VISIBLE, Devices, choose_devices, only


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`gpus(n)`: as if this machine had n GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("text", "count", "workers", "meant"),
    [
        ("auto", 0, 2, Devices("cpu")),
        ("auto", 2, 2, Devices("cuda")),
        ("cpu", 2, 8, Devices("cpu")),
        ("cuda", 4, 4, Devices("cuda")),
        ("cuda:1", 2, 1, Devices("cuda", (1,))),
        ("cuda:3,1", 4, 2, Devices("cuda", (3, 1))),
    ],
)
def test_devices_are_understood(
    gpus: Callable[[int], None], text: str, count: int, workers: int, meant: Devices
) -> None:
    gpus(count)
    assert choose_devices(text, Place(workers)) == meant
    assert choose_devices(text, None) == meant
    assert meant.first == ("cpu" if meant.kind == "cpu" else f"cuda:{(meant.numbers or (0,))[0]}")


@pytest.mark.parametrize(
    ("text", "count", "place", "told"),
    [
        ("gpu", 1, Place(), "--devices gpu: use auto, cpu, cuda, or GPUs by number"),
        ("cuda:", 1, Place(), "--devices cuda:: use auto"),
        ("cuda", 0, Place(), "this machine has no GPU that PyTorch can use"),
        ("cuda:2", 2, Place(), "this machine has GPUs 0 to 1"),
        ("cuda:1,1", 2, Place(), "names a GPU more than once"),
        ("auto", 2, Place(3), "--workers 3 on 2 GPUs: each has one of its own, use 2, or --devices cpu"),
        ("cuda:0", 2, Place(2), "--workers 2 on 1 GPUs"),
        ("cuda:0", 2, Place(1, 0, "auto"), "GPUs are numbered on this machine only"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(
    gpus: Callable[[int], None], text: str, count: int, place: Place, told: str
) -> None:
    gpus(count)
    with pytest.raises(InputError) as caught:
        choose_devices(text, place)
    assert told in str(caught.value)


def test_chosen_gpus_are_counted_among_the_visible_ones(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(3)
    monkeypatch.setenv(VISIBLE, "4,6,7")
    with only(Devices("cuda", (2, 0))):
        assert os.environ[VISIBLE] == "7,4"
    assert os.environ[VISIBLE] == "4,6,7"
    monkeypatch.delenv(VISIBLE)
    with only(Devices("cuda", (1,))):
        assert os.environ[VISIBLE] == "1"
    assert VISIBLE not in os.environ
