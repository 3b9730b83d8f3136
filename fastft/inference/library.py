"""The shared library of llama.cpp that the xllamacpp wheel ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastft.errors import MachineError, Problem, Where


def shared_library() -> Path:
    """The path of the shared library in the installed xllamacpp, without importing it.

    Raises:
        MachineError: xllamacpp is not installed.
    """
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for file in sorted(Path(folder).glob("xllamacpp*.so")):
            return file
    raise MachineError(
        Problem(
            Where("export"), "", "needs xllamacpp, which is not installed", "install it: pip install 'fastft[train]'"
        )
    )
