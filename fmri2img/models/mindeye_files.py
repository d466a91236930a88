"""The `.pth` files of published decoders: tensors out of a pickle, and nothing else of it.

Published training saves one pickle of the model beside its optimiser, and DeepSpeed's objects with that. The unpickler
here knows what tensors and plain containers are made with, and nothing else: whatever the file names beyond that
becomes a `NotRead`, which keeps nothing and does nothing. So neither DeepSpeed nor any other package that took part is
needed, and no function that a file names is ever called. PyTorch's own `weights_only` refuses such a file as a whole.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import _utils as rebuilding

from fmri2img.errors import DamageError, InputError

WEIGHTS = ("model_state_dict", "module")  # of MindEye's files; of DeepSpeed's own mp_rank_00_model_states.pt


class NotRead:
    """Stands for an object that is neither a tensor nor a container."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "NotRead":
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Of a list that is none."""

    def extend(self, values: object) -> None:
        """Of a list that is none."""


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): rebuilding._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): rebuilding._rebuild_parameter,
}
"""All that a file may name; names of storages, which are no functions, PyTorch reads itself."""


class TensorsOnly(pickle.Unpickler):
    """Makes tensors and containers."""

    def find_class(self, module: str, name: str) -> Any:
        """What is called by this name in `KNOWN`, otherwise `NotRead`."""
        return KNOWN.get((module, name), NotRead)


class _Unpickling:
    """What `torch.load` takes for the module pickle."""

    Unpickler = TensorsOnly


def read_published(path: Path) -> dict[str, Tensor]:
    """The weights of a published file by their names there, float32 on the CPU.

    Raises InputError when the file is no such file or its weights hold anything but tensors, DamageError when its bytes
    cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of a published last.pth")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a file of torch.save since PyTorch 1.6 (a zip archive), or was cut off: download it "
            "again, or save it anew with a present PyTorch"
        )
    try:
        whole = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Unpickling, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, TypeError, ValueError, KeyError) as error:
        raise DamageError(
            f"{path} is damaged: {' '.join(str(error).split())[:300]}. Download it again"
        ) from error
    return _weights(path, whole)


def _weights(path: Path, whole: Any) -> dict[str, Tensor]:
    if not isinstance(whole, dict):
        raise InputError(f"{path} holds a {type(whole).__name__}: a published last.pth holds a dictionary")
    found = next((whole[key] for key in WEIGHTS if key in whole), whole)
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{path} has no weights under {' or '.join(WEIGHTS)}: its keys are {sorted(map(str, whole))}"
        )
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = "an object" if isinstance(value, NotRead) else f"a {type(value).__name__}"
            raise InputError(
                f"{path}: the weights hold {kind} under {name!r}, and only tensors are taken: export it anew"
            )
        tensors[name.removeprefix("module.")] = value.float() if value.is_floating_point() else value
    return tensors
