"""The memory forecast against what was published and measured: every row has its source in memory_cases.toml."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastft.planning.memory import MemorySettings, PeakMemory, _per_token, forecast_memory, most_tokens
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
    if kind in SETTINGS
    for table in tables
    for gigabytes, tokens in table["rows"]
]


ALLOCATED = [(table, tokens, allocated) for table in CASES["allocated"] for tokens, allocated in table["rows"]]


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


@pytest.mark.parametrize(("table", "tokens", "allocated"), ALLOCATED)
def test_the_peak_is_within_8_percent_of_what_a_gpu_allocated(
    table: dict[str, Any], tokens: int, allocated: int
) -> None:
    changes = {name: table[name] for name in ("load_in_4bit", "checkpointing", "optimizer")}
    model = replace(KNOWN["llama-3.2-1b"], ties_embeddings=False)
    memory = forecast_memory(model, replace(UNSLOTH, rank=16, **changes), tokens, 0)

    assert memory.peak_bytes - memory.framework_bytes == pytest.approx(allocated, rel=0.08)


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


@pytest.mark.parametrize(
    ("model", "tokens", "rows"),
    [
        # The sources' own figures: 512 rows at least (0.26 GB of Llama 3's logits), 4,096 or 2 GiB at most.
        ("llama-3.1-8b", 4096, 512),
        ("llama-3.1-8b", 65_536, 2048),
        ("llama-3.1-8b", 1_000_000, 4096),
        ("gemma-2-9b", 1_000_000, 2097),
        ("llama-3.2-1b", 256, 256),
    ],
)
def test_the_fused_loss_works_on_a_part_of_the_logits_of_any_batch(model: str, tokens: int, rows: int) -> None:
    # Without layers to work on beside it, the head is all that is left.
    sizes = replace(KNOWN[model], layers=0)
    with_loss, without = (
        forecast_memory(sizes, replace(UNSLOTH, fused_layers=fused), tokens, 0) for fused in (True, False)
    )
    spare = tokens * (max(_per_token(sizes, UNSLOTH)) - min(_per_token(sizes, UNSLOTH)))

    assert without.logits_bytes == 0
    assert with_loss.logits_bytes == pytest.approx(max(0, rows * KNOWN[model].vocabulary * 4 - spare), abs=1)


def test_a_short_micro_batch_of_a_small_model_pays_for_the_loss_and_a_long_one_does_not() -> None:
    short, long = (peak("unsloth", "llama-3.2-1b", tokens) for tokens in (512, 32_768))

    assert short.logits_bytes > 0.2 * GB
    assert long.logits_bytes == 0
