"""The `.pth` files of published decoders: tensors out of a pickle, and nothing else of it.

Published training saves one pickle of the model beside its optimiser, and DeepSpeed's objects with that. PyTorch's own
restricted unpickler reads it here: it makes tensors and plain containers, and calls nothing that the file names. What
else the file names becomes a `NotRead`, which keeps nothing and does nothing, so that neither DeepSpeed nor any other
package that took part is needed or run.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmri2img.errors import DamageError, InputError

WEIGHTS = ("model_state_dict", "module")  # of MindEye's files; of DeepSpeed's own mp_rank_00_model_states.pt


class NotRead:
    """Stands for an object that is neither a tensor nor a container."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Of a list that is none."""

    def extend(self, values: object) -> None:
        """Of a list that is none."""


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
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(NotRead, name) for name in names]):
            whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        told = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read without running what it names ({told[-200:]}): ask its author for the tensors alone"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as error:
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
