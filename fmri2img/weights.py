"""Where the weights of published models are on this machine: a local folder for every name a recipe may write.

Names are looked up in this order: `simulation/NAME`, which comes with fmri2img; a folder; the same name under the
directory in the environment variable `FMRI2IMG_MODELS`; the Hugging Face hub, through its cache. Models are then
loaded from that folder alone. Only safetensors are fetched: no pickle, and no code.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from fmri2img.errors import InputError
from fmri2img.files import sha256_file

MODELS = "FMRI2IMG_MODELS"
SIMULATION = "simulation"
_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")
_CODE = ("*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.msgpack", "*.h5")


def folder_of(name: str, *, needs: Sequence[str] = (), also: Sequence[str] = ()) -> Path:
    """The local folder of a model's files.

    Args:
        name: `simulation/NAME`, a folder's path, or a hub name `ORG/NAME`, which may end in `@REVISION`.
        needs: subfolders, files or patterns relative to the folder; each has to be there.
        also: the same, to fetch where there are any.

    Raises:
        InputError: there is no such folder, or files that are needed are neither here nor to be had from the hub.
    """
    found = _packaged(name) or _local(name)
    if found is not None:
        _refuse_missing(found, name, needs)
        return found
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"there is no folder {name}, and it is no hub name such as openai/clip-vit-base-patch32: give either"
        )
    return _from_hub(name, match["name"], match["revision"], needs, also)


def weights_digest(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """SHA-256 by relative path of the files in a folder that match: which weights a name stands for."""
    return {file: sha256_file(folder / file) for file in files_in(folder, patterns)}


def files_in(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files of a folder that match one of the patterns, sorted, as paths relative to it."""
    return sorted(
        {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}
    )


def _packaged(name: str) -> Path | None:
    if not name.startswith(f"{SIMULATION}/"):
        return None
    home = Path(__file__).parent / "simulation" / "weights"
    folder = home / name.removeprefix(f"{SIMULATION}/")
    if folder.parent != home or folder.name == ".." or not folder.is_dir():
        known = sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
        offered = ", ".join(f"{SIMULATION}/{model}" for model in known) or "none"
        raise InputError(f"fmri2img comes with no model {name}: it has {offered}")
    return folder


def _local(name: str) -> Path | None:
    plain = name.partition("@")[0]
    places = [Path(name).expanduser()]
    if home := os.environ.get(MODELS):
        places += [Path(home, plain.replace("/", "--")), Path(home, plain)]
    return next((place.absolute() for place in places if place.is_dir()), None)


def _refuse_missing(folder: Path, name: str, needs: Sequence[str]) -> None:
    missing = [pattern for pattern in needs if not any(folder.glob(pattern))]
    missing += _absent_parts(folder, needs)
    if missing:
        raise InputError(f"the folder {folder} of {name} lacks {', '.join(missing)}: bring it there")


def _absent_parts(folder: Path, needs: Sequence[str]) -> list[str]:
    """Files that the index of a sharded model names and that are not there."""
    homes = {(folder / need) if (folder / need).is_dir() else (folder / need).parent for need in needs}
    absent = list[str]()
    for index in sorted(path for home in homes for path in home.glob("*.safetensors.index.json")):
        try:
            parts = {str(part) for part in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} is not an index of weights: bring it again") from None
        absent += sorted(part for part in parts if not (index.parent / part).is_file())
    return absent


def _from_hub(
    name: str, repository: str, revision: str | None, needs: Sequence[str], also: Sequence[str]
) -> Path:
    """The snapshot of a hub model: what the cache has already, else fetched."""
    from huggingface_hub import snapshot_download

    patterns = [*needs, *also]
    wanted = [*patterns, *(f"{pattern}/*" for pattern in patterns)] or None  # a need may be a subfolder
    problem = ""
    for offline in (True, False):
        try:
            found = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=wanted,
                    ignore_patterns=list(_CODE),
                    local_files_only=offline,
                )
            )
            _refuse_missing(found, name, needs)
            return found
        except (InputError, OSError, ValueError) as error:  # the hub's own errors are OSErrors
            problem = " ".join(str(error).split())[:160] or type(error).__name__
    home = os.environ.get(MODELS)
    where = f"{home}/{repository.replace('/', '--')}" if home else "a folder, and name that folder instead"
    raise InputError(
        f"the files of {name} are not here and not to be had from the hub ({problem.rstrip('.:')}): bring "
        f"{', '.join(needs) or 'them'} into {where}; {MODELS} names a directory of such folders"
    )
