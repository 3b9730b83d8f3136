"""A run that exports: rehearsed before the first step, written after the last, and held against the trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fastft.errors import FastftError
from tests.engine.tiny import make_rows, run, write_recipe, write_rows


def recipe_with(folder: Path, model: Path, formats: list[str]) -> Path:
    write_rows(folder / "held_out.jsonl", make_rows(6, seed=9))
    return write_recipe(folder, model, {"data.eval": "held_out.jsonl", "export.formats": formats})


def test_merged_weights_say_what_the_trained_model_says(model: Path, tmp_path: Path) -> None:
    ran = run(recipe_with(tmp_path, model, ["adapter", "merged_16bit"]))

    record = json.loads((ran.folder.exports / "export.json").read_text(encoding="utf-8"))
    parity = record["artefacts"][0]["parity"]
    merged = AutoModelForCausalLM.from_pretrained(ran.folder.exports / "merged_16bit", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert parity["passed"] is True
    assert parity["top1_agreement"] >= 0.99
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)
    assert ran.result["exports"][0]["kind"] == "merged_16bit"


def test_an_export_that_cannot_be_made_is_refused_before_the_first_step(model: Path, tmp_path: Path) -> None:
    # The tiny tokenizer cuts text in a way that llama.cpp has no name for.
    with pytest.raises(FastftError, match="pre-tokenizer|tokenizer"):
        run(recipe_with(tmp_path, model, ["adapter", "gguf"]))

    assert list((tmp_path / "runs").glob("*")) == []
