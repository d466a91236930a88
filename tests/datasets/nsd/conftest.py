"""A small NSD release, once for all tests, and copies of it that a test may change."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_generator() -> ModuleType:
    """The module beside this file; tests are no package, so it is loaded by its path."""
    name = "nsd_release_generator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("release.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    return load_generator()


@pytest.fixture(scope="session")
def release(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two subjects, two sessions; not to be changed."""
    return generator.small_release(tmp_path_factory.mktemp("nsd"))


@pytest.fixture
def copied(release: Any, generator: ModuleType, tmp_path: Path) -> Any:
    """A copy of `release` that a test may change."""
    shutil.copytree(release.root, tmp_path / "nsd")
    return generator.Release(
        tmp_path / "nsd", release.shape, release.mask, side=release.side, subjects=release.subjects
    )
