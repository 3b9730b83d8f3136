"""A signal that comes before a run has begun is a stop like any other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torture.process import Child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_while_the_recipe_is_read_ends_with_75(
    write_recipe: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    recipe = write_recipe()

    def signal_at_reading() -> None:
        import fastft.commands.run  # noqa: F401  what Python reads meanwhile is none of the recipe

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and str(arguments[0]).endswith(recipe.name):
                os.kill(os.getpid(), number)

        sys.addaudithook(heard)

    ended = Child(["run", str(recipe)], tmp_path, signal_at_reading).wait()

    assert ended is not None
    assert ended.code == 75, ended.shown
    assert f"stopped by {number.name} before the run began; the same command begins it" in ended.shown
    assert not (tmp_path / "runs").exists()
