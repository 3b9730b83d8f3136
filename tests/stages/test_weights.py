"""Weights that fastft sealed are refused once they are not what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.files.seal import SEAL, seal
from fastft.stages.weights import find_weights
from tests.exports.tiny import write_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "written")
    seal(tmp_path / "written", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_sealed_adapter_is_taken(adapter: Path) -> None:
    assert find_weights(adapter).kind == "adapter"


def test_an_adapter_of_another_tool_has_no_seal_and_is_taken(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")

    assert find_weights(tmp_path / "adapter").kind == "adapter"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "change", "wrong"),
    [
        ("adapter_model.safetensors", flip, "adapter_model.safetensors is not what was written"),
        ("adapter_model.safetensors", cut, r"adapter_model.safetensors has \d+ bytes, \d+ were written"),
        ("adapter_model.safetensors", Path.unlink, "adapter_model.safetensors is missing"),
        ("adapter_config.json", flip, "adapter_config.json is not what was written"),
        (SEAL, half, f"{SEAL} is not what was written"),
    ],
)
def test_a_sealed_adapter_that_changed_is_refused_by_name(
    adapter: Path, name: str, change: Callable[[Path], None], wrong: str
) -> None:
    change(adapter / name)

    with pytest.raises(MachineError, match=rf"adapter: is damaged: {wrong}; restore it"):
        find_weights(adapter)
