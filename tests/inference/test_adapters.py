"""Several adapters over one base in llama.cpp's server answer as the merged model of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fastft.commands.serve import ServeRequest, _adapters, _named, serve_until_stopped
from fastft.errors import FastftError, RecipeError, UsageError
from fastft.exports.gguf.lora import write_lora
from fastft.exports.gguf.writer import write_gguf
from fastft.files.tensors import Floats
from fastft.inference.gguf_header import read_gguf_header
from fastft.inference.llamacpp import GgufModel
from fastft.inference.proxy import BASE, with_adapter
from fastft.inference.server import serve
from tests.exports.tiny import CHAT_TEMPLATE, HIDDEN, write_adapter, write_base

PROMPT = [5, 9, 17, 33, 60]
# A rank of its own for one module, another scale, and not all modules: what adapters of other programs have.
ADAPTERS: dict[str, dict[str, Any]] = {
    "one": {"seed": 1},
    "two": {"seed": 2, "modules": ("self_attn.q_proj", "mlp.down_proj"), "use_rslora": True, "lora_alpha": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_base(folder / "base", tied=False)
    write_gguf(folder / "base", None, folder / "base.gguf", "f32")
    for name, options in ADAPTERS.items():
        write_adapter(folder / name, base_model_name_or_path=str(folder / "base"), **options)
        write_gguf(folder / "base", folder / name, folder / f"{name}.gguf", "f32")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    places = {name: folder / name for name in ADAPTERS}
    adapters, template = _adapters(places, folder / "base.gguf", tmp_path_factory.mktemp("lora"))
    with serve(folder / "base.gguf", port=0, adapters=adapters, chat_template=template) as address:
        yield address


def logprobs(file: Path) -> Floats:
    """(vocabulary,): what follows PROMPT."""
    with GgufModel(file, context_tokens=64) as model:
        logits = model.logits(PROMPT)[-1].astype(np.float64)
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


@pytest.mark.parametrize("name", [*ADAPTERS, BASE, "one"])
def test_each_name_answers_as_its_merged_model(folder: Path, address: str, name: str) -> None:
    body = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 20, "model": name}
    answer = httpx.post(f"{address}/completion", json=body, timeout=60).json()

    found = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
    merged = logprobs(folder / f"{name}.gguf")
    assert len(found) == 20
    # float32 in another order of sums; the two adapters and the base differ by more than 0.1.
    assert max(abs(merged[token] - value) for token, value in found.items()) < 1e-4
    assert np.abs(logprobs(folder / "base.gguf") - logprobs(folder / "one.gguf")).max() > 0.1


def test_the_models_are_listed_and_another_name_is_refused(address: str) -> None:
    listed = httpx.get(f"{address}/v1/models").json()
    refused = httpx.post(f"{address}/v1/chat/completions", json={"model": "three", "messages": []}, timeout=60)

    assert [entry["id"] for entry in listed["data"]] == ["one", "two", BASE]
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == "there is no model three; write one, two, base"


def test_a_request_without_a_name_gets_the_first_and_one_of_llama_cpp_stays_as_it_is() -> None:
    names = ("a", "b")

    assert json.loads(with_adapter(b"{}", names))["lora"] == [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}]
    for untouched in (b'{"lora": []}', b"[1]", b"no JSON", b""):
        assert with_adapter(untouched, names) == untouched


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"extra": {"base_model.model.model.norm.weight": np.ones(HIDDEN, np.float32)}}, "whole tensors"),
        ({"modules": ()}, "the adapter is empty"),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], wrong: str
) -> None:
    write_adapter(tmp_path / "adapter", **options)
    with pytest.raises(FastftError, match=wrong):
        write_lora(folder / "base", tmp_path / "adapter", read_gguf_header(folder / "base.gguf"), tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_dora_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight"
    modules = ("self_attn.q_proj",)
    other = name.replace("layers.0", "layers.1")
    lengths = np.ones(HIDDEN, np.float32)
    write_adapter(tmp_path / "dora", modules=modules, extra={name: lengths, other: lengths}, use_dora=True)
    with pytest.raises(RecipeError, match="is a DoRA adapter"):
        write_lora(folder / "base", tmp_path / "dora", read_gguf_header(folder / "base.gguf"), tmp_path / "x.gguf")


def test_a_file_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    header = read_gguf_header(folder / "base.gguf")
    other = [tensor for tensor in header.tensors if "attn_q" not in tensor.name]
    with pytest.raises(RecipeError, match=r"another model than the GGUF file: model\.layers\.0\.self_attn\.q_proj"):
        write_lora(
            folder / "base", folder / "one", type(header)(**{**vars(header), "tensors": tuple(other)}), tmp_path / "x"
        )


def test_adapters_of_two_chat_templates_are_not_served_together(folder: Path, tmp_path: Path) -> None:
    write_base(tmp_path / "base", tied=False)
    write_adapter(tmp_path / "three", base_model_name_or_path=str(tmp_path / "base"))
    (tmp_path / "base/chat_template.jinja").write_text(CHAT_TEMPLATE.replace("\n", " "))

    with pytest.raises(UsageError, match="one and three have different chat templates"):
        _adapters({"one": folder / "one", "three": tmp_path / "three"}, folder / "base.gguf", tmp_path)


@pytest.mark.parametrize("texts", [("a=x", "a=y"), ("base=x",), ("a b=x",), ("=x",)])
def test_a_name_that_cannot_be_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--lora NAME=PATH"):
        _named(texts)


def test_adapters_go_on_a_base_alone(folder: Path) -> None:
    with pytest.raises(UsageError, match="adds adapters to a base model"):
        serve_until_stopped(folder / "one", ServeRequest(0, adapters=(f"two={folder / 'two'}",)))
