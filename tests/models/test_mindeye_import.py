"""Published files: what is read of them, what is never run, and whose the heads are."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.models.mindeye_exchange import names_of, subjects_of
from fmri2img.models.mindeye_files import read_published
from fmri2img.models.mindeye_weights import NSD_VOXELS

WEIGHTS = {"ridge.linears.0.weight": torch.arange(6.0).view(2, 3), "ridge.linears.0.bias": torch.ones(2)}


class Runs:
    """What a file may ask to be run when it is read."""

    def __init__(self, function: Any, *words: Any) -> None:
        self.asked = (function, words)

    def __reduce__(self) -> Any:
        return self.asked


@pytest.fixture
def deepspeed_left(tmp_path: Path) -> Path:
    """A last.pth whose optimiser is of a package that is not here, saved beside the weights."""
    module = ModuleType("package_that_is_gone")
    scaler = type("LossScaler", (), {"__module__": module.__name__})
    odd = type("Groups", (dict,), {"__module__": module.__name__})
    listed = type("Shards", (list,), {"__module__": module.__name__})
    for kind in (scaler, odd, listed):
        setattr(module, kind.__name__, kind)
    sys.modules[module.__name__] = module
    one = scaler()
    one.cur_scale, one.parts = 65536.0, [torch.ones(2), odd(a=1), listed([1, 2])]
    whole = {
        "epoch": 149,
        "model_state_dict": {f"module.{name}": value.half() for name, value in WEIGHTS.items()},
        "optimizer_state_dict": {"loss_scaler": one, "state": {0: torch.zeros(3)}},
        "lrs": [3e-4, 1e-7],
    }
    torch.save(whole, tmp_path / "last.pth")
    del sys.modules[module.__name__]
    return tmp_path / "last.pth"


def test_weights_beside_objects_of_a_package_that_is_not_here_are_read(deepspeed_left: Path) -> None:
    with pytest.raises((pickle.UnpicklingError, ModuleNotFoundError)):
        torch.load(deepspeed_left, weights_only=True)
    found = read_published(deepspeed_left)
    assert found.keys() == WEIGHTS.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, WEIGHTS[n]) for n, value in found.items())


def test_deepspeeds_own_file_is_read(tmp_path: Path) -> None:
    torch.save({"module": WEIGHTS, "ds_version": "0.13.1"}, tmp_path / "mp_rank_00_model_states.pt")
    assert read_published(tmp_path / "mp_rank_00_model_states.pt").keys() == WEIGHTS.keys()


@pytest.mark.parametrize("function", [subprocess.check_call, eval, Path.touch])
def test_nothing_that_a_file_names_is_run(tmp_path: Path, function: Any) -> None:
    made = tmp_path / "made"
    words: tuple[Any, ...] = {
        subprocess.check_call: (["touch", str(made)],),
        eval: (f"open({str(made)!r}, 'w')",),
        Path.touch: (made,),
    }[function]
    torch.save({"model_state_dict": WEIGHTS, "optimizer": Runs(function, *words)}, tmp_path / "last.pth")
    assert read_published(tmp_path / "last.pth").keys() == WEIGHTS.keys()
    assert not made.exists()


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ({"model_state_dict": WEIGHTS | {"more": Runs(complex, 1.0)}}, "hold an object"),
        ({"model_state_dict": WEIGHTS | {"more": [1]}}, "hold a list"),
        ([torch.ones(2)], "holds a list"),
    ],
)
def test_weights_that_are_not_tensors_are_refused(tmp_path: Path, whole: Any, said: str) -> None:
    torch.save(whole, tmp_path / "last.pth")
    with pytest.raises(InputError, match=said):
        read_published(tmp_path / "last.pth")


def test_a_plain_pickle_and_a_file_cut_off_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model_state_dict": {}}))
    with pytest.raises(InputError, match="is not a file of"):
        read_published(tmp_path / "old.pth")
    torch.save({"model_state_dict": WEIGHTS}, tmp_path / "last.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "last.pth").read_bytes()[:-200])
    with pytest.raises(InputError, match="cut off"):
        read_published(tmp_path / "cut.pth")
    with pytest.raises(InputError, match="does not exist"):
        read_published(tmp_path / "none.pth")


def test_voxel_counts_tell_whose_heads_a_published_file_has() -> None:
    seven = [name for name in NSD_VOXELS if name != "subj01"]
    counts = [NSD_VOXELS[name] for name in seven]
    assert subjects_of(counts, []) == subjects_of(counts, seven) == seven
    assert subjects_of([NSD_VOXELS["subj05"]], []) == ["subj05"]
    # Voxels of another preparation belong to whom the user says, in the order said.
    assert subjects_of([900, 800], ["subj07", "subj02"]) == ["subj07", "subj02"]
    assert subjects_of([15724], ["ana"]) == ["ana"]


@pytest.mark.parametrize(
    ("voxels", "named", "said"),
    [
        ([14278, 15226], ["subj03", "subj02"], "which subj02 has in the published data: pass subj02,subj03"),
        ([900, 800], [], "pass --subjects"),
        ([15724, 15724], [], "pass --subjects"),
        ([900, 800], ["a"], "name each subject once"),
        ([900, 800], ["a", "a"], "name each subject once"),
    ],
)
def test_whose_heads_they_are_is_never_guessed(voxels: list[int], named: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        subjects_of(voxels, named)


def test_spaces_are_told_apart_or_refused() -> None:
    found = names_of(["c", "a", "b"], {"b"}, "a")
    assert (found.tokens, found.latents, found.maps) == ("b", "c", "a")
    with pytest.raises(InputError, match="one space that is contrasted"):
        names_of(["a", "b"], set(), None)
