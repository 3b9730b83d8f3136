"""The memory forecast against what was published: every row has its source in memory_cases.toml."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from fastft.planning.memory import MemorySettings, PeakMemory, forecast_memory, most_tokens
from fastft.probe.architecture import KNOWN, PROJECTIONS, Architecture

GB = 1e9
CASES = tomllib.loads((Path(__file__).parent / "memory_cases.toml").read_text(encoding="utf-8"))
# The first Qwen generation, from its published config.json (whose intermediate_size counts both halves of the gate).
MODELS = KNOWN | {
    "qwen-1.8b": Architecture(24, 2048, 5504, 16, 16, 128, 151_936, False, has_attention_bias=True),
    "qwen-7b": Architecture(32, 4096, 11_008, 32, 32, 128, 151_936, False, has_attention_bias=True),
    "qwen-14b": Architecture(40, 5120, 13_696, 40, 40, 128, 152_064, False, has_attention_bias=True),
}
UNSLOTH = MemorySettings(
    load_in_4bit=True,
    full_finetuning=False,
    rank=32,
    targets=PROJECTIONS,
    optimizer="adamw_8bit",
    checkpointing="offload",
    head="fused",
    fused_layers=True,
    keeps_head_in_float32=False,
)
HUGGING_FACE = replace(UNSLOTH, checkpointing="keep", head="plain", fused_layers=False, keeps_head_in_float32=True)
QWEN = replace(HUGGING_FACE, load_in_4bit=False, rank=64, optimizer="adamw_torch", keeps_head_in_float32=False)
SETTINGS = {"unsloth": UNSLOTH, "hugging_face": HUGGING_FACE, "qwen": QWEN, "outside": QWEN}
ROWS = [
    (kind, table["model"], gigabytes, tokens)
    for kind, tables in CASES.items()
    for table in tables
    for gigabytes, tokens in table["rows"]
]


def peak(kind: str, model: str, tokens: int) -> PeakMemory:
    return forecast_memory(MODELS[model], SETTINGS[kind], tokens, 0)


def test_at_least_twenty_published_cases_are_compared() -> None:
    assert len([row for row in ROWS if row[0] != "outside"]) >= 20


@pytest.mark.parametrize(("kind", "model", "gigabytes", "tokens"), [row for row in ROWS if row[0] != "outside"])
def test_the_peak_is_within_a_tenth_of_the_published_one(kind: str, model: str, gigabytes: float, tokens: int) -> None:
    assert peak(kind, model, tokens).peak_bytes == pytest.approx(gigabytes * GB, rel=0.10)


@pytest.mark.parametrize(("kind", "model", "gigabytes", "tokens"), [row for row in ROWS if row[0] == "outside"])
def test_the_rows_that_are_further_off_are_still_within_a_fifth(
    kind: str, model: str, gigabytes: float, tokens: int
) -> None:
    assert peak(kind, model, tokens).peak_bytes == pytest.approx(gigabytes * GB, rel=0.20)


def test_the_parts_add_up_to_the_peak() -> None:
    memory = peak("unsloth", "llama-3.1-8b", 4096)

    assert sum(memory.parts.values()) == memory.peak_bytes
    assert set(memory.parts) == {
        "base_weights",
        "kept_weights",
        "adapter",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "workspace",
        "framework",
    }


def test_the_quantized_weights_carry_their_block_constants() -> None:
    # 6,979,321,856 weights of 4.127 bits.
    assert peak("unsloth", "llama-3.1-8b", 0).base_weights_bytes == pytest.approx(3.60 * GB, rel=0.001)


def test_what_fits_is_exactly_what_the_forecast_says_fits() -> None:
    model, limit = KNOWN["llama-3.1-8b"], 24 * GB
    tokens = most_tokens(model, UNSLOTH, limit)

    assert forecast_memory(model, UNSLOTH, tokens, int(limit)).fits
    assert not forecast_memory(model, UNSLOTH, tokens + 1, int(limit)).fits


def test_nothing_fits_where_the_weights_alone_are_too_large() -> None:
    assert most_tokens(KNOWN["llama-3.1-8b"], UNSLOTH, 4 * GB) == 0


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        (UNSLOTH, replace(UNSLOTH, checkpointing="keep")),
        (replace(UNSLOTH, checkpointing="keep"), replace(UNSLOTH, checkpointing="none")),
        (UNSLOTH, replace(UNSLOTH, head="plain")),
        (UNSLOTH, replace(UNSLOTH, load_in_4bit=False)),
        (UNSLOTH, replace(UNSLOTH, optimizer="adamw_torch")),
        (UNSLOTH, replace(UNSLOTH, rank=64)),
        (replace(UNSLOTH, load_in_4bit=False), replace(UNSLOTH, load_in_4bit=False, full_finetuning=True)),
    ],
)
def test_what_saves_memory_is_forecast_to_save_it(cheaper: MemorySettings, dearer: MemorySettings) -> None:
    model = KNOWN["llama-3.1-8b"]

    assert forecast_memory(model, cheaper, 8192, 0).peak_bytes < forecast_memory(model, dearer, 8192, 0).peak_bytes
