"""Tiny model folders, made once a session, and one generator of every kind on them."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fmri2img.generators import AnyGenerator, LoadedGenerator

READ: TypeAdapter[Any] = TypeAdapter(AnyGenerator)


def _tiny() -> ModuleType:
    """tests/generators/folders.py, which no import finds: the root of the tests is not on the path."""
    spec = importlib.util.spec_from_file_location("tiny_folders", Path(__file__).with_name("folders.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHAPES: dict[str, tuple[int, ...]] = {
    "pixels": (3, 4, 4),
    "latents": (4, 8, 8),
    "text": (6, 8),
    "text-xl": (6, 20),
    "pooled": (12,),
    "image": (10,),
    "tokens": (7, 10),
    "hidden": (5, 12),
    "projected": (5, 10),
    "words": (6, 10),
}

CASES: dict[str, dict[str, Any]] = {
    "pixels": {"kind": "pixels", "space": "pixels", "size": 16},
    "vae": {"kind": "vae", "model": "sd", "latents": "latents"},
    "sd": {"kind": "sd", "model": "sd", "text": "text"},
    "sd image-to-image": {
        "kind": "sd",
        "model": "sd",
        "text": "text",
        "latents": "latents",
        "strength": 0.5,
        "steps": 4,
    },
    "sdxl": {"kind": "sd", "model": "sdxl", "text": "text-xl", "pooled": "pooled"},
    "unclip": {"kind": "unclip", "model": "unclip", "image": "image", "noise_level": 9},
    "token unclip": {
        "kind": "unclip",
        "model": "tokens",
        "image": "tokens",
        "negative_tokens": "noise",
        "offset": 0.04,
    },
    "ip-adapter": {"kind": "ip-adapter", "model": "sd", "adapter": "adapter", "image": "image"},
    "ip-adapter plus": {"kind": "ip-adapter", "model": "sd", "adapter": "plus", "image": "hidden"},
    "versatile": {
        "kind": "versatile",
        "model": "versatile",
        "image": "projected",
        "text": "words",
        "text_share": 0.4,
    },
    "controlnet": {
        "kind": "controlnet",
        "model": "sd",
        "control": "control",
        "text": "text",
        "structure": {"kind": "pixels", "space": "pixels", "size": 8},
    },
    "refine": {
        "kind": "refine",
        "model": "sd",
        "text": "text",
        "steps": 4,
        "base": {"kind": "vae", "model": "sd", "latents": "latents"},
    },
    "blend": {
        "kind": "blend",
        "base": {"kind": "sd", "model": "sd", "text": "text", "steps": 2},
        "low": {"kind": "pixels", "space": "pixels", "size": 4},
    },
}


@dataclass(frozen=True)
class Tiny:
    """The folders, and generators on them."""

    root: Path
    make: ModuleType
    loaded: dict[str, LoadedGenerator] = field(default_factory=dict)

    def settings(self, case: str, **changes: Any) -> dict[str, Any]:
        """The settings of a case, two steps where it says nothing, with the names of models as paths."""
        told = {
            key: value
            for key, value in (CASES.get(case, {"kind": case}) | changes).items()
            if value is not None
        }
        if case not in ("pixels", "vae", "blend", "best-of"):
            told.setdefault("steps", 2)
        return self._placed(told)

    def _placed(self, told: dict[str, Any]) -> dict[str, Any]:
        paths = {key: str(self.root / told[key]) for key in ("model", "control", "adapter") if key in told}
        nested = {key: self._placed(value) for key, value in told.items() if isinstance(value, dict)}
        return told | paths | nested

    def config(self, case: str, **changes: Any) -> Any:
        return READ.validate_python(self.settings(case, **changes))

    def load(self, case: str, dtype: torch.dtype = torch.float32, **changes: Any) -> LoadedGenerator:
        """A generator, read once a session for the same wishes: it keeps no state between batches."""
        key = f"{case} {dtype} {sorted(changes.items())}"
        if key not in self.loaded:
            self.loaded[key] = self.config(case, **changes).load("cpu", dtype)
        return self.loaded[key]

    @staticmethod
    def features(rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
        """A batch of features of every space."""
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(rows, *shape, generator=generator) for name, shape in SHAPES.items()}

    @staticmethod
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Folders sd, sdxl, unclip, tokens, control, adapter, plus and versatile."""
    root, make = tmp_path_factory.mktemp("models"), _tiny()
    make.save_sd(root / "sd")
    make.save_sdxl(root / "sdxl")
    make.save_unclip(root / "unclip")
    make.save_token_unclip(root / "tokens")
    make.save_controlnet(root / "control")
    make.save_adapter(root / "adapter", plus=False)
    make.save_adapter(root / "plus", plus=True)
    make.save_versatile(root / "versatile")
    return Tiny(root, make)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """One generator of every kind."""
    return str(request.param)
