"""The wheel alone, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastft import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fastft` as `pip install` of the built wheel makes it, without [train]."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools leaves a build folder behind, from which the next wheel would take what was deleted.
    source = folder / "source"
    shutil.copytree(ROOT / "fastft", source / "fastft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without PYTHONPATH, through which pip would find fastft installed already.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)],
        [sys.executable, "-m", "venv", str(folder / "venv")],
        [
            *pip,
            "--python",
            str(folder / "venv/bin/python"),
            "install",
            str(folder / f"fastft-{__version__}-py3-none-any.whl"),
        ],
    ):
        subprocess.run(command, check=True, cwd=folder, env=environment)
    return folder / "venv/bin/fastft"


@pytest.mark.slow
def test_an_installed_wheel_starts_without_torch_and_brings_all_its_files(program: Path, tmp_path: Path) -> None:
    """Only an installed wheel shows a file that was not packaged, an undeclared dependency, a wrong script."""

    def fastft(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, check=False)

    for arguments in (
        ["init", "capitals"],
        ["check", "capitals.toml"],
        ["check", "capitals.toml", "--set", "data.chat_template=llama-3.1"],
        ["plan", "capitals.toml"],
        ["check", ROOT / "recipes/llama31_sft.toml"],
        ["plan", ROOT / "recipes/llama31_sft.toml"],
        ["schema"],
        ["explain", "lora.r"],
    ):
        done = fastft(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments

    run = fastft("run", "capitals.toml")
    assert run.returncode == 4
    assert run.stderr.endswith('run: pip install "fastft[train]"\n')
    assert len(run.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capitals.jsonl", "capitals.toml"]
