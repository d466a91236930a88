"""Run by the Python of an environment that holds the wheel: every file of the packages is there, every module imports.

python .ci/check_wheel.py REPOSITORY
"""

import importlib
import pkgutil
import sys
import tomllib
from pathlib import Path


def expected(repository: Path) -> set[str]:
    """Every file of the package folders, as a path below fmri2img/ in the wheel."""
    tool = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"fmri2img": ""} | {
        folder: name.removeprefix("fmri2img.") + "/" for name, folder in tool["package-dir"].items()
    }
    return {
        prefix + path.relative_to(repository / folder).as_posix()
        for folder, prefix in folders.items()
        for path in (repository / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def main() -> None:
    """Exit with what is wrong with the installed wheel, or print what was found right."""
    import fmri2img

    repository = Path(sys.argv[1]).resolve()
    package = Path(fmri2img.__file__).resolve().parent
    if package.is_relative_to(repository):
        sys.exit(
            f"fmri2img was imported from the repository, {package}: run this with the wheel's environment"
        )
    missing = sorted(name for name in expected(repository) if not (package / name).is_file())
    if missing:
        sys.exit(
            f"the wheel lacks {', '.join(missing)}: list them in pyproject.toml, packages or package-data"
        )
    names = [module.name for module in pkgutil.walk_packages(fmri2img.__path__, "fmri2img.", onerror=_fail)]
    for name in names:
        importlib.import_module(name)
    print(f"fmri2img {fmri2img.__version__}: {len(names)} modules import, all package files are there")


def _fail(name: str) -> None:
    raise ImportError(f"{name} cannot be imported")


if __name__ == "__main__":
    main()
