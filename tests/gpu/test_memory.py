"""The memory forecast against what six real runs allocated: batch, length, 4-bit weights, checkpointing, optimizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.engine.memory import free_memory
from tests.engine.tiny import run, write_recipe, write_rows
from tests.gpu.conftest import ON_CPU
from tests.gpu.shapes import make_shape

# name -> batch, tokens of a row, 4-bit, checkpointing, optimizer
CASES: dict[str, tuple[int, int, bool, Any, str]] = {
    "4-bit, batch 2 x 2048, Unsloth's checkpointing": (2, 2048, True, "unsloth", "adamw_8bit"),
    "4-bit, batch 8 x 2048, Unsloth's checkpointing": (8, 2048, True, "unsloth", "adamw_8bit"),
    "4-bit, batch 4 x 1024, no checkpointing": (4, 1024, True, False, "adamw_8bit"),
    "16-bit, batch 4 x 2048, no checkpointing": (4, 2048, False, False, "adamw_8bit"),
    "16-bit, batch 8 x 1024, plain checkpointing": (8, 1024, False, True, "adamw_torch"),
    "16-bit, batch 1 x 2048, no checkpointing": (1, 2048, False, False, "adamw_torch"),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Llama-3.2-1B with its vocabulary, so that weights, layers and logits all count."""
    folder = tmp_path_factory.mktemp("large")
    if ON_CPU:
        return make_shape(folder, hidden=64, inner=128, layers=2, heads=4, key_value_heads=2)
    return make_shape(folder, hidden=2048, inner=8192, layers=16, heads=32, key_value_heads=8, vocabulary=128256)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_forecast_is_within_8_percent_of_what_was_allocated(large: Path, tmp_path: Path, name: str) -> None:
    """Only real steps on a real GPU allocate. What an earlier test may still hold is taken off."""
    batch, length, in_4bit, checkpointing, optimizer = CASES[name]
    write_rows(tmp_path / "train.jsonl", [{"text": f"{number} " + "a" * 2 * length} for number in range(2 * batch)])
    changes = {
        "model.max_seq_length": length,
        "model.load_in_4bit": in_4bit and not ON_CPU,
        "lora.r": 16,
        "data.overlong": "split",
        "train.per_device_train_batch_size": batch,
        "train.gradient_accumulation_steps": 2,
        "train.num_train_epochs": None,
        "train.max_steps": 2,
        "train.optim": optimizer,
        "train.gradient_checkpointing": checkpointing,
        "train.save_strategy": "no",
        "train.save_steps": None,
        "train.save_total_limit": None,
    }
    free_memory()
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    ran = run(write_recipe(tmp_path, large, changes))
    memory = json.loads((ran.folder.path / "plan.json").read_text(encoding="utf-8"))["memory"]

    # torch counts what it hands out; the context and the libraries beside it are the forecast's framework bytes.
    forecast = memory["peak_bytes"] - memory["framework_bytes"]
    figures = {key: value for key, value in memory.items() if key.endswith("_bytes")}
    allocated = ran.result["peak_memory_bytes"] - held
    print(json.dumps({"case": name, "allocated": allocated, "forecast": forecast, **figures}))
    if not ON_CPU:
        assert forecast == pytest.approx(allocated, rel=0.08)
