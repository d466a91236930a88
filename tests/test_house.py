"""The house: version, packaging, pins, documents, and what a started command sees."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fmri2img

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"fmri2img": "fmri2img"} | {
    folder: name for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()
}
HEAVY = ["accelerate", "deepspeed", "diffusers", "pandas", "ray", "scipy", "torch", "transformers", "wandb"]

# A process started the way the console script starts one: sys.path begins with the script's own folder.
PROBE = """
import json, sys
from importlib import import_module
import_module(sys.argv[1])
loaded = sorted(name for name in sys.argv[2:] if name in sys.modules)
from transformers.utils import is_datasets_available
print(json.dumps({"loaded": loaded, "hugging_face_datasets": is_datasets_available()}))
"""


def readme_commands() -> list[str]:
    """Every `fmri2img ...` line of README's bash blocks, continuation lines joined, comments left out."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line, comments=True)) for line in lines if line.startswith("fmri2img ")]


def installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_installed_version_is_the_one_of_the_source_and_the_changelog() -> None:
    assert importlib.metadata.version("fmri2img") == fmri2img.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", fmri2img.__version__)


def test_every_package_of_the_folders_is_in_the_wheel() -> None:
    found = {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_file_that_is_no_module_is_package_data() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if not path.is_file() or path.suffix == ".py" or "__pycache__" in path.parts:
                continue
            relative = path.relative_to(ROOT / folder)
            owners = [(package, relative)]
            if len(relative.parts) > 1:
                owners.append((f"{package}.{relative.parts[0]}", Path(*relative.parts[1:])))
            assert any(name.match(glob) for owner, name in owners for glob in data.get(owner, [])), (
                f"{path.relative_to(ROOT)} is in no wheel: add it to package-data in pyproject.toml"
            )


def test_every_dependency_is_pinned_and_no_pin_names_a_host() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}
    assert all(re.fullmatch(r"==[^*+,]+", str(pin.specifier)) and pin.url is None for pin in pins.values())
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]:
        wanted = Requirement(text)
        if wanted.name == "fmri2img":
            continue
        pin = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(next(iter(pin.specifier)).version), (
            f"{pin} does not satisfy {wanted}"
        )


def test_the_repository_root_is_not_on_the_path_of_tests() -> None:
    assert ROOT not in [Path(entry or ".").resolve() for entry in sys.path]


@pytest.mark.parametrize("module", ["fmri2img.cli", "fmri2img.checkpoints_schema"])
def test_a_command_starts_quickly_and_is_not_fooled_by_our_datasets_folder(
    module: str, tmp_path: Path
) -> None:
    script = tmp_path / "probe"
    script.write_text(PROBE)
    command = [sys.executable, str(script), module, *HEAVY]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["loaded"] == [], f"import {module} loads {seen['loaded']}: import them where they are used"
    assert seen["hugging_face_datasets"] == installed("datasets")


def test_readme_shows_commands() -> None:
    assert {line.split()[1] for line in readme_commands()} >= {"data", "pretrain", "finetune", "reconstruct"}


@pytest.mark.parametrize("line", readme_commands())
def test_every_command_and_flag_of_the_readme_exists(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fmri2img.cli import main

    words = shlex.split(line)
    flags = [word for word in words if word.startswith("--")]
    command = words[: words.index(flags[0])] if flags else words
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    help_text = capsys.readouterr().out
    assert stopped.value.code in (0, None), f"`{shlex.join(command)}` is no command"
    missing = [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", help_text)]
    assert missing == [], f"`{shlex.join(command)} --help` knows no {', '.join(missing)}"
