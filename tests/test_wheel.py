"""The wheel alone, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fastft` as `pip install` of the built wheel makes it, without [train]."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (wheel,) = folder.glob("fastft-*.whl")
    subprocess.run([*pip, "--python", str(folder / "venv/bin/python"), "install", str(wheel)], check=True)
    return folder / "venv/bin/fastft"


@pytest.mark.slow
def test_an_installed_wheel_starts_without_torch_and_brings_all_its_files(program: Path, tmp_path: Path) -> None:
    """Only an installed wheel shows a file that was not packaged, a dependency that was not declared, a wrong script."""

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
