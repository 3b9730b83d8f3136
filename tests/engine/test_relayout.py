from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastft.data.sentencepiece_model import proof_texts, write_fast_tokenizer
from fastft.data.tokenizer import load_tokenizer
from fastft.engine.relayout import relayout
from fastft.errors import FastftError, Where
from fastft.probe.base_model import find_base_model
from fastft.probe.layouts import layout_of
from fastft.recipe.loader import load
from fastft.stages.inputs import convert, fetch_tokenizer
from tests.engine.other_layouts import (
    baichuan_logits,
    internlm2_logits,
    recipe_text,
    write_baichuan,
    write_internlm2,
    write_sentencepiece,
)
from tests.engine.tiny import make_model, make_rows, run, write_rows

HERE = Where("recipe.toml", 2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def converted(folder: Path, *, pickled: bool = False) -> Path:
    return convert(find_base_model(folder.name, None, folder.parent, HERE, pickled=pickled), HERE, lambda _: None)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickles"])
@pytest.mark.parametrize("padding", [0, 5])
def test_baichuan_2_as_a_llama_has_the_same_logits(tmp_path: Path, cache: Path, pickled: bool, padding: int) -> None:
    original = write_baichuan(tmp_path / "baichuan", pickled=pickled)
    model = AutoModelForCausalLM.from_pretrained(
        converted(tmp_path / "baichuan", pickled=pickled), dtype=torch.float32
    ).eval()
    ids = torch.randint(5, 400, (2, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0

    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
    expected = baichuan_logits(original, ids, mask)

    assert torch.equal(found[mask.bool()], expected[mask.bool()])


def test_16_bit_weights_stay_and_the_output_layer_is_rounded_once(tmp_path: Path, cache: Path) -> None:
    original = write_baichuan(tmp_path / "baichuan", bfloat16=True)
    model = AutoModelForCausalLM.from_pretrained(converted(tmp_path / "baichuan"), dtype=torch.bfloat16)

    head = torch.nn.functional.normalize(original["lm_head.weight"].float()).bfloat16()
    assert torch.equal(model.lm_head.weight, head)
    packed = original["model.layers.1.self_attn.W_pack.weight"]
    assert torch.equal(model.model.layers[1].self_attn.v_proj.weight, packed[-64:])


@pytest.mark.parametrize("padding", [0, 5])
def test_internlm2_as_a_llama_has_the_same_logits(tmp_path: Path, cache: Path, padding: int) -> None:
    original = write_internlm2(tmp_path / "internlm2")
    model = AutoModelForCausalLM.from_pretrained(converted(tmp_path / "internlm2"), dtype=torch.float32).eval()
    ids = torch.randint(5, 400, (2, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0

    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits

    torch.testing.assert_close(
        found[mask.bool()], internlm2_logits(original, ids, mask)[mask.bool()], rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_a_tokenizer_gives_the_ids_of_sentencepiece(tmp_path: Path, dummy_prefix: bool) -> None:
    write_sentencepiece(tmp_path, dummy_prefix=dummy_prefix)
    (tmp_path / "fast").mkdir()
    write_fast_tokenizer(tmp_path, tmp_path / "fast", HERE)
    fast, own = load_tokenizer(tmp_path / "fast"), SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    through_transformers = AutoTokenizer.from_pretrained(tmp_path / "fast")

    texts = list(proof_texts([own.IdToPiece(number) for number in range(own.vocab_size())]))
    assert len(texts) == 1000
    for text in texts:
        assert fast.tokenizer.encode(text, add_special_tokens=False).ids == own.EncodeAsIds(text)
        assert through_transformers(text, add_special_tokens=False).input_ids == own.EncodeAsIds(text)
    assert {"<s>", "</s>", "<reserved_106>"} <= fast.special_tokens


def test_a_tokenizer_that_would_read_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sentencepiece(tmp_path)
    monkeypatch.setattr("fastft.data.sentencepiece_model.SPACE", "_")

    with pytest.raises(FastftError, match="would get the tokens"):
        write_fast_tokenizer(tmp_path, tmp_path, HERE)


def test_a_model_with_alibi_is_refused_with_the_reason(tmp_path: Path, cache: Path) -> None:
    write_baichuan(tmp_path / "baichuan")
    config = json.loads((tmp_path / "baichuan" / "config.json").read_text())
    del config["max_position_embeddings"]
    (tmp_path / "baichuan" / "config.json").write_text(json.dumps(config))

    with pytest.raises(FastftError, match="ALiBi"):
        find_base_model("baichuan", None, tmp_path, HERE)


def test_pickles_are_read_only_when_asked_for_and_only_as_tensors(tmp_path: Path, cache: Path) -> None:
    write_baichuan(tmp_path / "baichuan", pickled=True)
    with pytest.raises(FastftError, match="use_safetensors = false"):
        find_base_model("baichuan", None, tmp_path, HERE)

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",)

    torch.save({"model.norm.weight": Harm()}, tmp_path / "baichuan" / "pytorch_model.bin")
    with pytest.raises(FastftError, match="cannot be converted: Weights only load failed"):
        converted(tmp_path / "baichuan", pickled=True)
    assert not (tmp_path / "harm").exists()
    assert not list(cache.glob("fastft/converted/*"))


def test_pickles_of_a_plain_llama_become_safetensors(tmp_path: Path, cache: Path) -> None:
    folder = make_model(tmp_path / "llama")
    expected: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    # Some families save what they can compute beside the weights, of any type and shape.
    torch.save(
        {**expected, "model.mask": torch.ones(2, dtype=torch.bool), "model.step": torch.tensor(7)},
        folder / "pytorch_model.bin",
    )
    (folder / "model.safetensors").unlink()

    found = AutoModelForCausalLM.from_pretrained(converted(folder, pickled=True)).state_dict()

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # Once it is converted, the weights are safetensors.
    assert find_base_model("llama", None, tmp_path, HERE).is_here


def test_a_full_disk_is_said_before_weights_are_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_baichuan(tmp_path / "baichuan")
    monkeypatch.setattr("fastft.engine.relayout.free_bytes", lambda _: 1000)

    with pytest.raises(FastftError, match=r"converting needs 0\.\d GB"):
        relayout(tmp_path / "baichuan", tmp_path / "new", layout_of({"model_type": "baichuan"}), HERE)


def test_rows_are_read_before_the_weights_are_converted(tmp_path: Path, cache: Path) -> None:
    write_baichuan(tmp_path / "baichuan")
    (tmp_path / "baichuan" / "model.safetensors").unlink()
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path / "baichuan", use_safetensors=False))
    (tmp_path / "baichuan" / "pytorch_model.bin").write_bytes(b"")

    folder = fetch_tokenizer(load(tmp_path / "recipe.toml"), lambda _: None)

    assert load_tokenizer(folder).id_of("<reserved_106>") == 3


def test_baichuan_2_trains_and_is_exported_as_a_llama(tmp_path: Path, cache: Path) -> None:
    """What llama.cpp reads and says is compared with the trained model by the gates of the run itself."""
    write_baichuan(tmp_path / "baichuan", pickled=True)
    write_rows(tmp_path / "rows.jsonl", make_rows(20))
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path / "baichuan", use_safetensors=False))

    ran = run(tmp_path / "recipe.toml")

    assert "a Baichuan is a Llama under other names" in ran.shown
    entries = json.loads((ran.folder.exports / "export.json").read_text(encoding="utf-8"))["artefacts"]
    assert {(entry["kind"], entry["parity"]["passed"]) for entry in entries} == {("merged_16bit", True), ("f16", True)}
