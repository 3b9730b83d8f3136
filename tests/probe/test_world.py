"""Several processes are seen, whatever started them, and a run is refused rather than trained several times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fastft.commands.run import run
from fastft.errors import MachineError
from fastft.probe.world import VARIABLES, world_size
from fastft.stages.attempt import Start


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ["", "1", " 1 "])
def test_one_process_is_one(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)

    assert world_size() == 1


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("text", ["abc", "0", "-2", "1.5", "2,2"])
def test_what_is_no_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)

    with pytest.raises(MachineError, match=rf"{name}: is not a number of processes \(got {text}\)"):
        world_size()


@pytest.mark.parametrize("name", VARIABLES)
def test_a_run_of_several_processes_is_refused_and_makes_no_folder(
    monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, "2")

    with pytest.raises(MachineError, match=rf"{name}: 2 processes were started, and each would train the whole run"):
        run(write_recipe(), [], tmp_path / "runs", Start(), Console())

    assert not (tmp_path / "runs").exists()
