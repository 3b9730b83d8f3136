from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.commands.check import check
from fastft.errors import MachineError


def test_a_package_that_the_recipe_names_is_missed_where_training_libraries_are(
    write_recipe: Callable[..., Path], install: Callable[[str, str], None]
) -> None:
    install("transformers", "5.17.0")

    with pytest.raises(MachineError, match="run: pip install neptune, or"):
        check(write_recipe(), ['train.report_to=["neptune"]'])

    install("neptune", "1.14.0")
    assert check(write_recipe(), ['train.report_to=["neptune"]']).sources
