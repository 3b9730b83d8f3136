"""Adapters in the layouts that other programs write, and with a vocabulary that grew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastft.errors import RecipeError
from fastft.exports.gguf.writer import write_gguf
from fastft.exports.merged import write_merged
from fastft.exports.tensor_check import check_tensors
from tests.exports.tiny import HIDDEN, Arrays, base_arrays, read_json, write_adapter, write_base

PEFT = "base_model.model."
Rename = Callable[[str], str]
LAYOUTS: dict[str, Rename] = {
    "PEFT, as TRL, Unsloth, LLaMA-Factory, Axolotl and ms-swift save": lambda name: name,
    "PEFT in memory": lambda name: name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
    "a compiled model": lambda name: name.replace(PEFT, f"{PEFT}_orig_mod."),
    "a compiled layer": lambda name: name.replace(".layers.0.", ".layers.0._orig_mod."),
    "the text part of a vision model": lambda name: name.replace(f"{PEFT}model.", f"{PEFT}model.language_model."),
    "an older vision model": lambda name: name.replace(f"{PEFT}model.", f"{PEFT}language_model.model."),
    "without a prefix": lambda name: name.removeprefix(PEFT),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_adapter_in_another_layout_gives_the_same_weights(tmp_path: Path, layout: str) -> None:
    write_base(tmp_path / "base")
    arrays = write_adapter(tmp_path / "adapter")
    right = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "right").folder
    renamed = {LAYOUTS[layout](name): values for name, values in arrays.items()}
    save_file(renamed, tmp_path / "adapter/adapter_model.safetensors")
    found = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "found").folder
    assert (found / "model.safetensors").read_bytes() == (right / "model.safetensors").read_bytes()


def grown(rows: int = 308) -> tuple[Arrays, Arrays]:
    random = np.random.default_rng(5)
    new = [random.normal(0, 0.05, (rows, HIDDEN)).astype(np.float32) for _ in range(2)]
    return {"embed_tokens": new[0]}, {"embed_tokens": new[0], "lm_head": new[1]}


NAMINGS = {
    "saved as resized": "{module}.weight",
    "modules_to_save": "{module}.modules_to_save.weight",
    "modules_to_save of older PEFT": "{module}.modules_to_save.default.weight",
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_that_grew_is_exported(tmp_path: Path, naming: str, tied: bool) -> None:
    write_base(tmp_path / "base", base_arrays(tied=tied), tied=tied)
    _, both = grown()
    modules = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
    extra = {PEFT + NAMINGS[naming].format(module=modules[name]): values for name, values in both.items()}
    extra[f"{PEFT}lm_head.original_module.weight"] = base_arrays(tied=False)["lm_head.weight"]
    copied = {} if naming == "saved as resized" else {"modules_to_save": ["embed_tokens", "lm_head"]}
    write_adapter(tmp_path / "adapter", extra=extra, **copied)
    folder = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged").folder
    merged = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], both["embed_tokens"].astype(np.float16))
    np.testing.assert_array_equal(merged["lm_head.weight"], both["lm_head"].astype(np.float16))
    config = read_json(folder / "config.json")
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (308, False)
    file = write_gguf(tmp_path / "base", tmp_path / "adapter", tmp_path / "out.gguf", "q8_0").file
    assert check_tensors(tmp_path / "base", tmp_path / "adapter", file, "q8_0").reasons == ()


def test_a_tied_embedding_that_grew_stays_tied(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    one, _ = grown()
    write_adapter(tmp_path / "adapter", extra={f"{PEFT}model.embed_tokens.weight": one["embed_tokens"]})
    folder = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged").folder
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert read_json(folder / "config.json")["tie_word_embeddings"] is True


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_grew_without_its_head_is_refused(tmp_path: Path, tied: bool) -> None:
    write_base(tmp_path / "base", base_arrays(tied=tied), tied=tied)
    one, _ = grown()
    name = f"{PEFT}model.embed_tokens.modules_to_save.weight"
    write_adapter(tmp_path / "adapter", extra={name: one["embed_tokens"]}, modules_to_save=["embed_tokens"])
    with pytest.raises(RecipeError, match="the embedding has 308 rows with this adapter, the output head 300"):
        write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def single_rows(folder: Path, rows: list[int], count: int | None = None) -> Arrays:
    """An adapter that also trains single rows of the embedding, `count` of them in the file."""
    trained = np.random.default_rng(7).normal(0, 0.05, (count or len(rows), HIDDEN)).astype(np.float32)
    name = f"{PEFT}model.embed_tokens.token_adapter.trainable_tokens_delta"
    write_adapter(folder, extra={name: trained}, trainable_token_indices={"embed_tokens": rows})
    return {name: trained}


def test_single_rows_are_replaced_and_checked(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")["model.embed_tokens.weight"]
    [trained] = single_rows(tmp_path / "adapter", [299, 4]).values()
    base[[299, 4]] = trained

    folder = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged").folder

    merged = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], base.astype(np.float16))
    assert check_tensors(tmp_path / "base", tmp_path / "adapter", folder, "merged_16bit").reasons == ()
    merged["model.embed_tokens.weight"][4] *= 2
    save_file(merged, folder / "model.safetensors")
    [reason] = check_tensors(tmp_path / "base", tmp_path / "adapter", folder, "merged_16bit").reasons
    assert "model.embed_tokens.weight differs from base + adapter in 1 of" in reason


@pytest.mark.parametrize(
    ("rows", "count", "wrong"),
    [
        ([4, 300], 2, "has 300 rows, the adapter trains row 300 and brings no larger one"),
        ([4, 5], 3, r"has \(3, 64\) for 2 single rows"),
        (["4"], 1, "trains single rows that adapter_config.json does not name"),
    ],
)
def test_single_rows_that_fit_nothing_are_refused(tmp_path: Path, rows: list[int], count: int, wrong: str) -> None:
    write_base(tmp_path / "base")
    single_rows(tmp_path / "adapter", rows, count)

    with pytest.raises(RecipeError, match=wrong):
        write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
