"""Components out of a model folder in the layout of diffusers or transformers: safetensors, whole, or refused."""

import json
from pathlib import Path
from typing import Any

import torch

from fmri2img.errors import InputError
from fmri2img.features.loading import load_model
from fmri2img.files import sha256_file
from fmri2img.weights import folder_of


class ModelFolder:
    """A model's local folder and the components that were read from it."""

    def __init__(
        self, name: str, needs: tuple[str, ...] = (), *, also: tuple[str, ...] = (), lone: str | None = None
    ) -> None:
        """Find the folder, from the hub with the components it `needs` and those of `also` that it has.

        A `lone` component stands in the folder itself or in the subfolder of that name. Raises InputError when the
        folder is not there or lacks what it needs.
        """
        wanted = [pattern for part in needs for pattern in _patterns(part)]
        offered = [pattern for part in also for pattern in _patterns(part)]
        if lone is not None:
            offered += ["config.json", "diffusion_pytorch_model.safetensors", f"{lone}/*"]
        self.name, self.path = name, folder_of(name, needs=wanted, also=offered)
        self.lone = lone if lone is not None and self.has(lone) else "."
        self.used: list[Path] = []

    def has(self, part: str) -> bool:
        return (self.path / part).exists()

    def json(self, file: str) -> dict[str, Any]:
        """A configuration file. Raises InputError when it is missing or no JSON object."""
        path = self.path / file
        try:
            told = json.loads(path.read_text())
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}. Bring the whole folder of {self.name}"
            ) from error
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: fetch {self.name} again") from error
        if not isinstance(told, dict):
            raise InputError(f"{path} holds no settings: fetch {self.name} again")
        return told

    def model(self, part: str, kind: Any, device: torch.device, dtype: torch.dtype) -> Any:
        """A frozen diffusers or transformers model of the subfolder `part` ("." is the folder itself).

        Raises InputError when it cannot be read, and when its file lacks a weight, which the libraries would fill with
        random numbers.
        """
        folder = self.path / part
        files = sorted(folder.glob("*.safetensors"))
        half = [file for file in files if ".fp16" in file.suffixes]
        variant = "fp16" if files and len(half) == len(files) else None
        model = load_model(kind, folder, device, dtype, variant=variant)
        self.used += half if variant else [file for file in files if file not in half]
        return model

    def digests(self) -> dict[str, str]:
        """{model name/file: SHA-256} of every file of weights that was read."""
        return {
            f"{self.name}/{file.relative_to(self.path)}": sha256_file(file) for file in sorted(set(self.used))
        }


def _patterns(part: str) -> list[str]:
    """The files of a component, for a folder of ours to have and for the hub to give."""
    if part.endswith((".json", ".safetensors")):
        return [part]
    if part.endswith("scheduler"):
        return [f"{part}/scheduler_config.json"]
    if part.startswith("tokenizer"):
        return [f"{part}/*"]
    if part.endswith("extractor"):
        return [f"{part}/preprocessor_config.json"]
    return [f"{part}/config.json", f"{part}/*.safetensors"]
