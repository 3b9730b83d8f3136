"""Tokens that a recipe adds: rows that begin as the mean of their pieces, trained, saved, resumed and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastft.commands.chat import ChatRequest, open_chat
from fastft.engine.reference import load_to_ask
from fastft.exports.gguf.vocabulary import CONTROL, USER_DEFINED
from fastft.inference.conversation import Sampling
from tests.engine.tiny import make_parts, run, stop, write_recipe, write_rows
from tests.exports.tiny import write_base

WORDS = ["<think>", "</think>"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Answers that think first, in the added tokens."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"number {number}"},
                {"role": "assistant", "content": f"<think>{number}</think><done>red"},
            ]
        }
        for number in range(first, first + count)
    ]


def recipe(folder: Path, model: Path, **changes: Any) -> Path:
    write_rows(folder / "train.jsonl", rows(24))
    write_rows(folder / "held_out.jsonl", rows(4, 100))
    more = {"data.add_tokens": WORDS, "data.add_special_tokens": ["<done>"], **changes}
    return write_recipe(folder, model, more)


def tied(model: Path, folder: Path) -> Path:
    """`model` with its embedding as the output layer."""
    shutil.copytree(model, folder)
    whole = AutoModelForCausalLM.from_pretrained(model)
    whole.lm_head.weight = whole.model.embed_tokens.weight
    whole.config.tie_word_embeddings = True
    whole.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("engine", "ties"), [("unsloth", True), ("transformers", False)])
def test_rows_begin_as_the_mean_of_the_pieces(model: Path, tmp_path: Path, engine: str, ties: bool) -> None:
    base = tied(model, tmp_path / "tied") if ties else model
    own = load_file(base / "model.safetensors")
    bare = Tokenizer.from_file(str(base / "tokenizer.json"))

    grown, tokenizer = make_parts(recipe(tmp_path, base, **{"model.engine": engine})).load()

    layers = [grown.get_input_embeddings().weight, grown.get_output_embeddings().weight]
    assert (layers[0].data_ptr() == layers[1].data_ptr()) is ties
    assert all(layer.requires_grad for layer in layers)
    for name, layer in zip((EMBEDDING, HEAD), layers, strict=True):
        before = own.get(name, own[EMBEDDING])
        assert torch.equal(layer[: len(before)], before)
        for number, text in enumerate((*WORDS, "<done>")):
            assert tokenizer.convert_tokens_to_ids(text) == len(before) + number
            pieces = before[bare.encode(text, add_special_tokens=False).ids]
            assert len(pieces) > 1
            torch.testing.assert_close(layer[len(before) + number], pieces.mean(0))


def test_a_run_is_exported_proven_and_answers_with_the_added_tokens(tmp_path: Path) -> None:
    base, size = tmp_path / "base", 300
    write_base(base, max_position_embeddings=512)
    formats = ["adapter", "merged_16bit", "gguf"]
    changes = {"data.eval": "held_out.jsonl", "export.formats": formats, "export.quantization": ["f16"]}
    changes |= {"train.num_train_epochs": 8, "train.save_strategy": "no", "train.save_steps": None}

    ran = run(recipe(tmp_path, base, **changes, **{"train.save_total_limit": None}))

    record = json.loads((ran.folder.exports / "export.json").read_text(encoding="utf-8"))
    assert [one["parity"]["passed"] for one in record["artefacts"]] == [True, True]
    saved = load_file(ran.folder.adapter / "adapter_model.safetensors")
    full = {name: weight for name, weight in saved.items() if "lora_" not in name}
    assert all(weight.shape == (size + 3, 64) for weight in full.values())
    assert len(full) <= 2  # the one matrix, under the names of both layers at most
    merged = json.loads((ran.folder.exports / "merged_16bit/config.json").read_text(encoding="utf-8"))
    assert (merged["vocab_size"], merged["tie_word_embeddings"]) == (size + 3, True)
    [file] = (ran.folder.exports / "gguf").glob("*.gguf")
    fields = GGUFReader(file).fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert tokens[size:] == [*WORDS, "<done>"]
    assert types[size:] == [USER_DEFINED, USER_DEFINED, CONTROL]
    prompt = [{"role": "user", "content": "number 3"}]
    tokenizer = AutoTokenizer.from_pretrained(ran.folder.adapter)
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
    trained = load_to_ask(base, ran.folder.adapter, torch.float32)
    assert trained(ids).logits[0, -1].argmax() == size
    for source in (file, ran.folder.adapter):
        with open_chat(source, ChatRequest(sampling=Sampling(max_new_tokens=8)), lambda _: None) as [(_, chat)]:
            assert "".join(chat.answer("number 3")).startswith("<think>")


def test_a_stopped_run_continues_with_the_same_rows(model: Path, tmp_path: Path) -> None:
    whole = recipe(tmp_path, model)
    cut = write_recipe(tmp_path, model, {"data.add_tokens": WORDS, "data.add_special_tokens": ["<done>"]}, name="cut")

    expected = run(whole)
    stop(cut, step=5)
    continued = run(cut, resume=True)

    assert continued.losses[-3:] == expected.losses[-3:]
    weights = [load_file(one.folder.adapter / "adapter_model.safetensors") for one in (expected, continued)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_model_that_is_trained_whole_grows_too(tmp_path: Path) -> None:
    write_base(tmp_path / "base", max_position_embeddings=512)
    changes = {
        "model.full_finetuning": True,
        "lora.r": None,
        "lora.lora_alpha": None,
        "train.learning_rate": 1e-3,
        "train.num_train_epochs": 1,
        "export.formats": ["merged_16bit", "gguf"],
        "export.quantization": ["f16"],
    }

    ran = run(recipe(tmp_path, tmp_path / "base", **changes))

    record = json.loads((ran.folder.exports / "export.json").read_text(encoding="utf-8"))
    assert [(one["kind"], one["parity"]["passed"]) for one in record["artefacts"]] == [("f16", True)]
    merged = load_file(ran.folder.exports / "merged_16bit/model.safetensors")
    assert merged[EMBEDDING].shape == (303, 64)
