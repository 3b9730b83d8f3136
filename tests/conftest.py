"""The tests never use the network: a missing model or data set is a case to test."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.recipe.loader import LoadedRecipe, load

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a valid recipe with `rows` training rows beside it; `lines` are added below [data]."""

    def write(lines: str = "", *, name: str = "recipe", rows: int = 10) -> Path:
        turns = [{"role": "user", "content": "Capital of Peru?"}, {"role": "assistant", "content": "Lima."}]
        (tmp_path / "rows.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * rows)
        path = tmp_path / f"{name}.toml"
        path.write_text(f'[model]\nid = "org/model"\n\n[data]\ntrain = "rows.jsonl"\n{lines}')
        return path

    return write


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Callable[..., LoadedRecipe]:
    """Writes a valid recipe and loads it, with overrides."""

    def make(lines: str = "", *overrides: str, name: str = "recipe", rows: int = 10) -> LoadedRecipe:
        return load(write_recipe(lines, name=name, rows=rows), overrides)

    return make


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a package look installed in a version, with the metadata that an installer writes."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(name: str, version: str) -> None:
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return write


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an `nvidia-smi` on PATH that prints the given text."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(text: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    return write
