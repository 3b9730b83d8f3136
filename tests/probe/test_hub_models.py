from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.errors import MachineError, Where
from fastft.probe.base_model import SMALL_HUB_FILES, BaseModel
from fastft.probe.hub import fetch_small_files

WHERE = Where("recipe.toml", 2)


def test_no_weights_are_among_the_small_files() -> None:
    assert [name for name in SMALL_HUB_FILES if "safetensors" in name] == []


def test_a_tokenizer_that_is_here_is_not_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    here = BaseModel("org/model", "hub", tmp_path)
    local = BaseModel("model", "folder", None)

    assert fetch_small_files(here, None, WHERE) == here
    assert fetch_small_files(local, None, WHERE) == local


def test_offline_says_so() -> None:
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE forbids asking the Hub"):
        fetch_small_files(BaseModel("org/model", "hub", None), None, WHERE)


def test_only_the_small_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    (tmp_path / "config.json").write_text("{}")

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    _answer(monkeypatch, download)

    found = fetch_small_files(BaseModel("org/model", "hub", None), None, WHERE)

    assert found.folder == tmp_path
    assert asked == {"name": "org/model", "revision": "abc", "patterns": list(SMALL_HUB_FILES)}


def test_a_config_that_is_made_to_harm_is_refused_after_its_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "a; b"}')
    _answer(monkeypatch, lambda *_, **__: str(tmp_path))

    with pytest.raises(MachineError, match=r"config\.json is damaged"):
        fetch_small_files(BaseModel("org/model", "hub", None), None, WHERE)


def test_a_full_disk_is_not_called_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    _answer(monkeypatch, download)

    with pytest.raises(OSError, match="No space left"):
        fetch_small_files(BaseModel("org/model", "hub", None), None, WHERE)


def _answer(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    """Let the Hub know the model, and `download` answer for its files."""

    class Info:
        sha = "abc"

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: Info())
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
