"""What extractors with a model share: finding its files, knowing which weights they are, loading them whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError

from fmri2img.errors import InputError
from fmri2img.features.loaded import LoadedExtractor
from fmri2img.weights import folder_of, weights_digest


class ModelExtractor(BaseModel):
    """An extractor with a published model, named by `model` and, for a part of a pipeline, `subfolder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str = Field(min_length=1, description="hub name, local folder, or simulation/NAME")
    subfolder: str = Field(default="", description="of a pipeline's folder, such as vae")

    def files(self) -> tuple[str, ...]:
        """Patterns of the files that are needed, relative to the model's folder."""
        raise NotImplementedError

    def optional(self) -> tuple[str, ...]:
        """Patterns of the files that are used where there are any."""
        return ()

    def home(self) -> Path:
        """The model's local folder. Raises InputError when it is nowhere to be had."""
        needs = self.files()
        indices = [f"{need.partition('*')[0]}.safetensors.index.json" for need in needs if "*" in need]
        return folder_of(self.model, needs=needs, also=[*indices, *self.optional()])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture's feature, from the model's configuration; no weights are read."""
        raise NotImplementedError

    def prepared(self) -> dict[str, Any]:
        """How pictures are prepared, as plain data; nothing where that is among the settings."""
        return {}

    def record(self) -> dict[str, Any]:
        """What a data set records of the space: the settings, how pictures are prepared, which weights."""
        told = self.prepared()
        weights = weights_digest(
            self.home(), [file for file in self.files() if file.endswith(".safetensors")]
        )
        return self.model_dump(mode="json") | ({"prepared": told} if told else {}) | {"weights": weights}

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedExtractor:
        """The model on a device, in a precision, for `batch` rows at a time."""
        raise NotImplementedError


def beside(subfolder: str, file: str) -> str:
    """The path of a model's file within its folder."""
    return f"{subfolder}/{file}" if subfolder else file


def load_model(
    kind: Any, folder: Path, device: torch.device | str, dtype: torch.dtype, *, variant: str | None = None
) -> Any:
    """A frozen transformers or diffusers model of a local folder, from safetensors, those named `variant` if asked.

    Raises InputError when it cannot be read, or lacks weights, which the libraries would fill at random.
    """
    key = "torch_dtype" if kind.__module__.startswith("diffusers") else "dtype"
    try:
        with _quiet():
            model, told = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                **{key: dtype},
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{folder} cannot be loaded as {kind.__name__}: {reason}") from error
    lacking = sorted(str(name) for name in [*told["missing_keys"], *told["mismatched_keys"]])
    if lacking:
        raise InputError(
            f"{folder} lacks {len(lacking)} weights of {kind.__name__}, such as {lacking[0]}: bring its files again"
        )
    return model.eval().requires_grad_(False).to(device)


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer of a local folder. Raises InputError when it is not there or cannot be read."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise InputError(f"{folder} holds no tokenizer: bring tokenizer.json, or vocab.json and merges.txt")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Half a CLIP is loaded on purpose, and transformers reports the other half as unexpected; its bars go too."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
