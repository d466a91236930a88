"""`save_pretrained` and `from_pretrained` of decoders: to a folder, from a folder, a checkpoint or the hub.

The methods are those of huggingface_hub's `PyTorchModelHubMixin`. We do not inherit it: it keeps the arguments that
`__init__` was called with, and a decoder whose heads were replaced since is another one; its weights may miss or exceed
the model's in silence (`strict=False`), and it falls back to a pickle. Here the config says what the module is when it
is saved, every tensor must fit, the bytes of the weights are proved by their SHA-256, and only safetensors are loaded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import DamageError, InputError
from fmri2img.models.prior import PriorConfig
from fmri2img.models.spaces import TargetSpace

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Layout:
    """Everything that decides which tensors a decoder has, and of which shape.

    `voxels` of each subject; `shapes` of one picture's features in each space; the `directed` spaces; further `sizes`;
    the diffusion `priors` of spaces.
    """

    voxels: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    directed: set[str]
    sizes: dict[str, Any]
    priors: dict[str, PriorConfig] = field(default_factory=dict)

    def targets(self) -> dict[str, TargetSpace]:
        """The spaces, with statistics of 0 and 1."""
        return {
            name: TargetSpace(
                name, shape, np.zeros(shape, np.float32), 1.0, name in self.directed, self.priors.get(name)
            )
            for name, shape in self.shapes.items()
        }


class Pretrained(nn.Module):
    """A decoder that can be saved as a folder in the hub's style and come back equal to the bit."""

    kind: ClassVar[Literal["decoder", "ridge"]]

    def layout(self) -> Layout:
        """What this decoder is now, so that `make` of it has the same tensors."""
        raise NotImplementedError

    @classmethod
    def make(
        cls, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace], sizes: Mapping[str, Any]
    ) -> Self:
        """A fresh decoder."""
        raise NotImplementedError

    def for_pictures(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """What pictures are made from, given predicted features: these themselves, where nothing is drawn."""
        return dict(features)

    def save_pretrained(
        self, folder: str | Path, *, found: schema.Found | None = None, license: str = "other"
    ) -> Path:
        """Write `config.json`, `model.safetensors` and a model card into a new folder; returns it.

        `found` is the checkpoint that the decoder was loaded from, which config and card then name. Raises InputError
        when the folder is there already, or when the config could not describe this decoder.
        """
        config = self._config(found)
        tensors = dict(self.state_dict())
        built = {
            name: tuple(value.shape) for name, value in _skeleton(type(self), config).state_dict().items()
        }
        has = {name: tuple(value.shape) for name, value in tensors.items()}
        if built != has:
            odd = sorted(name for name in set(built) | set(has) if built.get(name) != has.get(name))
            raise InputError(
                f"this decoder holds {odd[0]} as {has.get(odd[0])}, a {type(self).__name__} of its sizes as "
                f"{built.get(odd[0])}: save it as a checkpoint, or undo what was changed in it"
            )
        return schema.write_exported(Path(folder), config, tensors, license=license)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The decoder of a folder or of a model on the hub, on the CPU, in evaluation mode.

        `name` is a folder that `save_pretrained` or `fmri2img checkpoint export` made, a run folder or one of its
        checkpoints, or a hub name `owner/model`, of which `revision` is a branch, tag or commit. Raises InputError when
        it is none of these or holds another kind of decoder, DamageError when its bytes are not as they were written.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(str(name), revision, cache_dir, local_files_only)
        elif revision is not None:
            raise InputError(f"{folder} is a folder and has no revision {revision!r}: leave revision away")
        if schema.is_step(folder) or schema.step_folders(folder):
            from fmri2img.models.loading import load_decoder  # which knows this module

            loaded: nn.Module = load_decoder(folder)
        else:
            loaded = load_pretrained(folder)
        if not isinstance(loaded, cls):
            raise InputError(f"{name} holds a {type(loaded).__name__}: load it with {type(loaded).__name__}")
        return loaded

    def _config(self, found: schema.Found | None) -> schema.ExportedConfig:
        layout, manifest = self.layout(), None if found is None else found.manifest
        subjects = {
            name: schema.ExportedSubject(
                voxels=count,
                dataset=manifest.subjects[name].dataset if manifest else None,
                fingerprint=manifest.subjects[name].fingerprint if manifest else None,
            )
            for name, count in layout.voxels.items()
        }
        spaces = {
            name: schema.ExportedSpace(
                shape=shape,
                directed=name in layout.directed,
                extractor=manifest.feature_spaces[name].extractor if manifest else None,
                prior=layout.priors[name].model_dump(mode="json") if name in layout.priors else None,
            )
            for name, shape in layout.shapes.items()
        }
        config = schema.ExportedConfig(
            kind=self.kind, subjects=subjects, feature_spaces=spaces, sizes=layout.sizes
        )
        if found is None or manifest is None:
            return config
        told = {"recipe": manifest.recipe, "step": manifest.step, "metrics": dict(manifest.metrics)}
        return config.model_copy(update={**told, "source": schema.parent_record(found)})


def load_pretrained(folder: Path) -> Pretrained:
    """The decoder of an exported folder, whichever kind it is, in evaluation mode.

    Sizes are bounded by the bytes of the weights before anything is allocated.
    """
    config = schema.read_exported(folder)
    tensors = schema.load_exported(folder, config)
    assert config.weights is not None
    path = folder / schema.CONFIG_NAME
    widths = [record.voxels for record in config.subjects.values()]
    widths += [prod(record.shape) for record in config.feature_spaces.values()]
    widths += [size for size in config.sizes.values() if isinstance(size, int)]
    priors = [record.prior for record in config.feature_spaces.values() if record.prior is not None]
    widths += [
        size for told in priors for size in (told.get("width"), told.get("heads")) if isinstance(size, int)
    ]
    for blocks in (config.sizes.get("blocks", 0), *(told.get("depth", 0) for told in priors)):
        if not isinstance(blocks, int) or blocks > len(tensors):
            raise DamageError(f"{path} names {blocks} blocks: the weights are {len(tensors)} tensors")
    if 4 * max(widths) > config.weights.bytes:
        raise DamageError(
            f"{path} names a size of {max(widths)}: the weights have {config.weights.bytes} bytes"
        )
    try:
        decoder = _skeleton(_kind_of(config), config)
        # Copied, because safetensors maps the file: weights must not change or vanish with it.
        whole: dict[str, Tensor] = {name: value.clone() for name, value in tensors.items()}
        decoder.load_state_dict(whole, strict=True, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise DamageError(f"{path}: the weights do not fit it: {' '.join(str(error).split())}") from error
    return decoder.eval()


def _kind_of(config: schema.ExportedConfig) -> type[Pretrained]:
    from fmri2img.models.decoder import MultiSubjectDecoder
    from fmri2img.models.linear import RidgeDecoder
    from fmri2img.models.mindeye import MindEyeDecoder

    if config.kind == RidgeDecoder.kind:
        return RidgeDecoder
    return MindEyeDecoder if "architecture" in config.sizes else MultiSubjectDecoder


def _skeleton(kind: type[Pretrained], config: schema.ExportedConfig) -> Pretrained:
    """The decoder without memory for its tensors; statistics of its spaces are among them."""
    shapes = {name: tuple(record.shape) for name, record in config.feature_spaces.items()}
    directed = {name for name, record in config.feature_spaces.items() if record.directed}
    priors = {
        name: PriorConfig.model_validate(record.prior)
        for name, record in config.feature_spaces.items()
        if record.prior is not None
    }
    voxels = {name: record.voxels for name, record in config.subjects.items()}
    layout = Layout(voxels, shapes, directed, config.sizes, priors)
    with torch.device("meta"):
        return kind.make(voxels, layout.targets(), layout.sizes)


def _download(name: str, revision: str | None, cache_dir: str | Path | None, local: bool) -> Path:
    """The folder of a hub model in the local cache, after what it lacks was fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    http: Any = HfHubHTTPError.__bases__[0]  # the base class of errors of whichever httpx the hub uses
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"there is no folder {name}, and a name on the hub reads owner/model: pass one of these"
        )
    way_out = (
        f"where there is network, run `hf download {name} --local-dir FOLDER`, "
        f"bring that FOLDER ({', '.join(schema.EXPORTED_FILES)}) here and pass its path"
    )
    download: Callable[..., str] = snapshot_download
    try:
        path = download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local,
            allow_patterns=list(schema.EXPORTED_FILES),
        )
    except (http, HFValidationError, LocalEntryNotFoundError) as error:
        why = " ".join(str(error).split()).split(". ")[0][:200]
        raise InputError(
            f"there is no folder {name}, and the hub did not give a model of that name ({why}): {way_out}"
        ) from error
    return Path(path)
