"""The example of docs/scaling.md is what its command prints."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"


def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command of the page prints on 80 columns, without a model or a network."""
    command = shlex.split(re.findall(r"^\$ fastft (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[0])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, value in (("HF_HUB_OFFLINE", "1"), ("XDG_CACHE_HOME", str(tmp_path)), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, [*command, "--runs-dir", str(tmp_path)], env=dict(os.environ))
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.output.splitlines())


def test_the_example_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"```console\n\$ .*?\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    assert shown == [example(tmp_path, monkeypatch)]
