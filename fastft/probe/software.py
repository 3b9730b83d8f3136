"""Which packages are installed, from their metadata, without importing them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from fastft.errors import MachineError, Problem, Where
from fastft.recipe.optimizers import optimizer_packages
from fastft.recipe.reporters import REPORTER_PACKAGES

# The versions that were tested together; requirements/cpu.txt and gpu.txt pin the same ones (a test compares them).
TESTED: Mapping[str, str] = {
    "torch": "2.13.0",
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "trl": "1.15.0",
    "transformers": "5.17.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "4.8.5",
    "bitsandbytes": "0.50.2",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "huggingface_hub": "1.33.0",
}
# Required to train. Unsloth is optional: model.engine = "transformers" works without it.
NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
# For train.deepspeed alone.
DEEPSPEED = "deepspeed"
INSTALL = 'pip install "fastft[train]"'
# What the modules of these commands import.
NEEDED_TO_EXPORT = ("numpy", "gguf", "xllamacpp", "torch", "transformers", "peft")
NEEDED_TO_CHAT = ("numpy", "xllamacpp")

# Lower versions have published vulnerabilities that an untrusted model can exploit: CVE-2026-93348 (unsloth),
# CVE-2026-9856 and CVE-2026-4372 (transformers), CVE-2026-24747 (torch).
FLOORS: Mapping[str, tuple[int, ...]] = {
    "unsloth": (2026, 8, 20),
    "unsloth_zoo": (2026, 8, 14),
    "transformers": (5, 10),
    "torch": (2, 10),
}
# The first versions that `[train]` does not allow (a test compares them): Unsloth 2026.10.9 refuses or fails with them.
CEILINGS: Mapping[str, tuple[int, ...]] = {
    "torch": (2, 15),
    "transformers": (5, 17, 1),
    "trl": (1, 15, 1),
    "datasets": (5,),
}


# Of C and C++, by the names that every system has for its own.
COMPILERS = ("cc", "c++")


def find_compilers() -> tuple[str, ...]:
    """Those of COMPILERS that are here, under that name, another usual one, or that of CC or CXX."""
    others = {"cc": (os.environ.get("CC"), "cc", "gcc", "clang"), "c++": (os.environ.get("CXX"), "g++", "c++")}
    return tuple(name for name in COMPILERS if any(other and shutil.which(other) for other in others[name]))


def version(package: str) -> str | None:
    """The installed version of `package` with its local build tag (`2.13.0+cpu`), or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """The installed packages among those that training uses, or can use if asked to: name -> version."""
    found = {name: version(name) for name in (*TESTED, *REPORTER_PACKAGES, *optimizer_packages(), DEEPSPEED)}
    return {name: text for name, text in found.items() if text is not None}


def below_floor(found: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do) for each package of `found` (name -> version) that an untrusted model can exploit."""
    for name, floor in FLOORS.items():
        if name in found and release(found[name]) < floor:
            need = ".".join(map(str, floor))
            yield f"{name} {found[name]} has published holes that a model file can use", f"pip install '{name}>={need}'"


def require(packages: Sequence[str], purpose: str) -> None:
    """Raise MachineError when one of `packages` is not installed, or has known holes.

    `fastft[train]` installs all of them.
    """
    missing = [package for package in packages if version(package) is None]
    if missing:
        wrong = f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise MachineError(Problem(Where(purpose), "", wrong, f"run: {INSTALL}"))
    found = {package: version(package) or "" for package in packages}
    holes = [Problem(Where(purpose), "", wrong, f"run: {fix}") for wrong, fix in below_floor(found)]
    if holes:
        raise MachineError(holes)


def release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `5.17.0.dev0+cu128` -> (5, 17, 0)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def fix_command(packages: Sequence[str]) -> str:
    """The command that installs the tested versions of those `packages` that differ; of all of them if none does."""
    changed = [name for name in packages if release(version(name) or "") != release(TESTED[name])]
    pins = " ".join(f"{name}=={TESTED[name]}" for name in changed or packages)
    return f"pip install {'' if changed else '--force-reinstall '}--no-deps {pins}"


def guilty_package(error: BaseException) -> str | None:
    """The tested package that raised `error`; torch only when no other one is in the traceback. None: our own code."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in TESTED:
        return (error.name or "").split(".")[0]
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").split(".")[0]
        if package in TESTED and (package != "torch" or found is None):
            found = package
    return found


def package_file(package: str, name: str) -> Path | None:
    """The path of file `name` inside the installed top-level package `package`, without importing it; None if absent.

    None also when `name` leads out of the package's folder.
    """
    if not package.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module without a spec, such as __main__
        return None
    if spec is None or spec.submodule_search_locations is None:
        return None
    for folder in spec.submodule_search_locations:
        root = Path(folder).resolve()
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path
    return None
