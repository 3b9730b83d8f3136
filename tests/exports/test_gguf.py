from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from fastft.errors import DataError, MachineError, RecipeError
from fastft.exports.gguf.quantization import ModelFacts, tensor_type
from fastft.exports.gguf.vocabulary import pre_tokenizer
from fastft.exports.gguf.writer import estimate_gguf_bytes, write_gguf, write_ggufs
from fastft.inference.conversation import Conversation, Sampling, render_chat
from fastft.inference.llamacpp import GgufModel
from tests.exports.families import LLAMA3, YARN, write_family
from tests.exports.tiny import (
    CHAT_TEMPLATE,
    HEAD_DIM,
    base_arrays,
    read_json,
    write_adapter,
    write_base,
    write_json,
)

TEXT = "the quick brown fox: order 48213, naïve 日本 🚀 \n\n  twice"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    return tmp_path / "base"


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


def metadata(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def test_query_rows_are_interleaved_as_llama_cpp_rotates_them(base: Path, tmp_path: Path) -> None:
    change = write_adapter(tmp_path / "adapter", lora_alpha=8)
    write_gguf(base, tmp_path / "adapter", tmp_path / "out.gguf", "f32")
    name = "base_model.model.model.layers.1.self_attn.k_proj"
    before = base_arrays()["model.layers.1.self_attn.k_proj.weight"]
    merged = before + 2 * change[f"{name}.lora_B.weight"] @ change[f"{name}.lora_A.weight"]
    half = HEAD_DIM // 2
    order = [head * HEAD_DIM + side * half + i for head in range(2) for i in range(half) for side in range(2)]
    found = tensors(tmp_path / "out.gguf")["blk.1.attn_k.weight"].data
    np.testing.assert_allclose(found, merged[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [("f16", 16), ("bf16", 16), ("q8_0", 8), ("q5_1", 5), ("q5_0", 5), ("q4_1", 4), ("q4_0", 4)],
)
def test_quantized_weights_stay_near_the_trained_ones(base: Path, tmp_path: Path, quantization: str, bits: int) -> None:
    report = write_gguf(base, None, tmp_path / "out.gguf", quantization)
    tensor = tensors(tmp_path / "out.gguf")["blk.0.ffn_up.weight"]
    trained = base_arrays()["model.layers.0.mlp.up_proj.weight"]
    error = np.abs(dequantize(tensor.data, tensor.tensor_type).reshape(trained.shape) - trained).max()
    # One step of a block of 32 is its largest value over half the number of levels; bfloat16 has 8 bits of mantissa.
    step = np.abs(trained).max() / 2 ** min(bits - 1, 8)
    assert error <= step
    assert report.types["F32"] == 5


def test_rows_that_are_no_multiple_of_256_fall_back_as_in_llama_cpp_and_are_reported(
    base: Path, tmp_path: Path
) -> None:
    report = write_gguf(base, None, tmp_path / "out.gguf", "q4_k_m")
    assert tensors(tmp_path / "out.gguf")["blk.0.attn_q.weight"].tensor_type.name == "Q5_0"
    assert any("Q5_0 instead of Q4_K: their rows of 64" in sentence for sentence in report.notes)


def test_the_q4_k_m_mix_of_an_8b_llama_is_llama_cpps(tmp_path: Path) -> None:
    model = ModelFacts(layers=32, tied=False, grouped_heads=4, seventy_billion=False)
    better = [
        layer
        for layer in range(32)
        if tensor_type(f"blk.{layer}.attn_v.weight", (1024, 4096), "q4_k_m", model) == ("Q6_K", None)
    ]
    # As in every published Q4_K_M of Llama 3 8B.
    assert better == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert tensor_type("output.weight", (128256, 4096), "q4_k_m", model) == ("Q6_K", None)
    assert tensor_type("token_embd.weight", (128256, 4096), "q4_k_m", model) == ("Q4_K", None)
    assert tensor_type("blk.0.attn_norm.weight", (4096,), "q4_k_m", model) == ("F32", None)


def test_llama_cpp_reads_text_as_the_trained_tokenizer_does(base: Path, tmp_path: Path) -> None:
    write_gguf(base, None, tmp_path / "out.gguf", "q8_0")
    text = f"<|im_start|>user\n{TEXT}<|im_end|>\n"
    with GgufModel(tmp_path / "out.gguf") as model:
        found = model.tokenize(text)
        assert found == Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids
        assert model.text(found) == f"user\n{TEXT}\n"


def test_a_sentencepiece_vocabulary_is_rebuilt_from_its_merges(base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["▁the▁quick▁brown▁fox▁jumps▁over▁the▁lazy▁dog"] * 4, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if not entry["content"].startswith("<0x")]
    write_json(base / "tokenizer.json", content)
    write_json(base / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    write_gguf(base, None, tmp_path / "out.gguf", "f16")
    text = "the lazy fox ü"
    expected = Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids
    with GgufModel(tmp_path / "out.gguf") as model:
        assert model.tokenize(text) == expected


def test_the_end_token_is_the_one_that_generation_stops_at(base: Path, tmp_path: Path) -> None:
    write_json(
        base / "tokenizer_config.json", read_json(base / "tokenizer_config.json") | {"eos_token": "<|im_start|>"}
    )
    write_json(base / "generation_config.json", {"eos_token_id": [2, 0]})
    write_gguf(base, None, tmp_path / "out.gguf", "f16")
    assert metadata(tmp_path / "out.gguf")["tokenizer.ggml.eos_token_id"] == 2


def test_the_given_chat_template_is_in_the_file_byte_for_byte(base: Path, tmp_path: Path) -> None:
    template = CHAT_TEMPLATE + "{# ünïcode \\ 'quoted' #}\n"
    write_gguf(base, None, tmp_path / "out.gguf", "f16", template)
    assert metadata(tmp_path / "out.gguf")["tokenizer.chat_template"] == template


def test_the_estimate_is_within_five_percent_of_the_file(base: Path, tmp_path: Path) -> None:
    estimate = estimate_gguf_bytes(base, None, "f16")
    written = write_gguf(base, None, tmp_path / "out.gguf", "f16").size_bytes
    assert written <= estimate <= 1.05 * written


def test_threads_do_not_change_a_byte(base: Path, tmp_path: Path) -> None:
    for threads in (1, 4):
        write_gguf(base, None, tmp_path / f"{threads}.gguf", "q8_0", threads=threads, name="same")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()


def test_several_types_in_one_pass_are_the_files_that_each_alone_is(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    kinds = ("f16", "q8_0", "q4_k_m", "q2_k")
    together = write_ggufs(base, tmp_path / "adapter", {kind: tmp_path / f"{kind}.gguf" for kind in kinds}, name="same")
    assert [report.file.stem for report in together] == list(kinds)
    for kind in kinds:
        write_gguf(base, tmp_path / "adapter", tmp_path / "alone.gguf", kind, name="same")
        assert (tmp_path / f"{kind}.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()
        (tmp_path / "alone.gguf").unlink()


def test_a_pass_that_fails_leaves_no_file(base: Path, tmp_path: Path) -> None:
    (tmp_path / "q8_0.gguf").touch()
    with pytest.raises(RecipeError):
        write_ggufs(base, None, {kind: tmp_path / f"{kind}.gguf" for kind in ("f16", "q8_0")})
    assert [file.name for file in tmp_path.glob("*.gguf")] == ["q8_0.gguf"]
    assert not list(tmp_path.glob(".*partial*"))


def refused(base: Path, out: Path, quantization: str = "q8_0") -> str:
    with pytest.raises(RecipeError) as caught:
        write_gguf(base, None, out, quantization)
    assert not list(out.parent.glob("*.gguf*"))
    assert not list(out.parent.glob(".*partial*"))
    return str(caught.value)


def test_an_unknown_quantization_is_refused_with_the_nearest(base: Path, tmp_path: Path) -> None:
    assert "(got q4_km); write q4_k_m" in refused(base, tmp_path / "out.gguf", "q4_km")


def test_an_unknown_architecture_is_refused_with_a_way_on(base: Path, tmp_path: Path) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | {"architectures": ["MambaForCausalLM"]})
    message = refused(base, tmp_path / "out.gguf")
    assert "MambaForCausalLM" in message
    assert "convert_hf_to_gguf.py" in message


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pre-tokenizer is not known"):
        pre_tokenizer({"pre_tokenizer": {"type": "Whitespace"}}, tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = read_json(base / "tokenizer.json")
    tokenizer["model"]["vocab"]["new"] = 300
    write_json(base / "tokenizer.json", tokenizer)
    assert "ids up to 300, the model's embedding only 300 rows" in refused(base, tmp_path / "out.gguf")


def test_a_file_that_llama_cpp_cannot_load_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(MachineError, match=r"bad\.gguf: cannot be loaded by llama\.cpp: "):
        GgufModel(tmp_path / "bad.gguf")


def test_generation_repeats_and_reuses_what_the_context_has_seen(base: Path, tmp_path: Path) -> None:
    write_gguf(base, None, tmp_path / "out.gguf", "f32")
    with GgufModel(tmp_path / "out.gguf", context_tokens=128) as model:
        prompt = model.tokenize("the quick brown")
        first = list(model.generate(prompt, 8))
        again = list(model.generate(prompt, 8))
        longer = list(model.generate([*prompt, *first[:4]], 4))
        forced = model.logits([*prompt, *first])
    assert first == again
    assert longer == first[4:8]
    # Greedy decoding token by token and one pass over all tokens agree.
    assert forced[len(prompt) - 1 : -1].argmax(axis=1).tolist() == first


def test_a_conversation_remembers_and_forgets(base: Path, tmp_path: Path) -> None:
    write_gguf(base, None, tmp_path / "out.gguf", "f32")
    with GgufModel(tmp_path / "out.gguf", context_tokens=256) as model:
        conversation = Conversation(model, Sampling(max_new_tokens=4), system="be brief")
        first = "".join(conversation.answer("what is the answer"))
        assert conversation.messages[-1] == {"role": "assistant", "content": first}
        conversation.reset()
        assert "".join(conversation.answer("what is the answer")) == first


@pytest.mark.parametrize("ends", [(), (2,), (50, 2)])
def test_a_file_stops_where_trained_answers_end(base: Path, tmp_path: Path, ends: tuple[int, ...]) -> None:
    """Token 50 stands for an end of turn that neither the base model nor llama.cpp knows as one."""
    write_gguf(base, None, tmp_path / "out.gguf", "f32", end_ids=ends)
    with GgufModel(tmp_path / "out.gguf", context_tokens=64) as model:
        assert model.eos == 2
        assert model.is_end(50) == (50 in ends)


def test_a_template_that_reaches_for_the_system_is_stopped() -> None:
    with pytest.raises(DataError, match="unsafe"):
        render_chat("{{ messages.__class__.__mro__[1].__subclasses__() }}", [], {})


def test_a_copy_of_a_base_with_a_missing_config_value_names_it(base: Path, tmp_path: Path) -> None:
    config = read_json(base / "config.json")
    del config["intermediate_size"]
    write_json(base / "config.json", config)
    with pytest.raises(MachineError, match="intermediate_size: is missing"):
        write_gguf(base, None, tmp_path / "out.gguf", "f16")


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("gemma3", {"sliding_window_pattern": 5}, "sliding_window_pattern"),
        ("gemma3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("gemma2", {"rope_theta": 1e6}, "rope_theta"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0,
                                    "original_max_position_embeddings": 64}}, "rope_parameters"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 1.5}}, "attention_factor"),
        ("llama", {"rope_scaling": YARN | {"extrapolation_factor": 0.5}}, "extrapolation_factor"),
        ("qwen3", {"rope_scaling": LLAMA3}, "rope_type"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layer_interval": 2}, "no_rope_layers"),
        ("smollm3", {"mlp_bias": True}, "mlp_bias"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("olmo2", {"head_dim": 32}, "head_dim"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    base, _ = write_family(tmp_path, name)
    write_json(base / "config.json", read_json(base / "config.json") | changes)
    with pytest.raises(RecipeError, match=rf"{named}: "):  # at the rehearsal, so before training
        estimate_gguf_bytes(base, None, "q8_0")
    assert f"{named}: " in refused(base, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    "name", ["Qwen3MoeForCausalLM", "Llama4ForCausalLM", "Gemma3nForCausalLM", "Gemma4ForCausalLM", "Olmo3ForCausalLM"]
)
def test_a_class_that_is_not_proven_is_refused_before_training(base: Path, name: str) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | {"architectures": [name]})
    with pytest.raises(RecipeError, match=rf"GGUF is not known for this model \(got {name}\)"):
        estimate_gguf_bytes(base, None, "q8_0")


def test_a_window_that_llama_cpp_does_not_have_is_named(tmp_path: Path) -> None:
    base, _ = write_family(tmp_path, "mistral")
    write_json(base / "config.json", read_json(base / "config.json") | {"sliding_window": 128})
    assert "beyond 128 tokens" in write_gguf(base, None, tmp_path / "out.gguf", "f16").notes[-1]


def test_layer_types_as_llama_cpp_has_them_are_written(tmp_path: Path) -> None:
    base, _ = write_family(tmp_path, "gemma2")
    kinds = ["sliding_attention", "full_attention"]
    write_json(base / "config.json", read_json(base / "config.json") | {"layer_types": kinds})
    assert write_gguf(base, None, tmp_path / "out.gguf", "f16").size_bytes > 0
