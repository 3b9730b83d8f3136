"""A run that exports: rehearsed before the first step, written after the last, and compared with the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from fastft.commands.export import ExportRequest, export
from fastft.errors import ExportError, FastftError
from fastft.inference.conversation import render_chat
from fastft.inference.gguf_header import read_gguf_header
from fastft.inference.server import serve
from fastft.runs.directory import RunDir
from tests.engine.tiny import make_rows, run, write_recipe, write_rows
from tests.exports.tiny import read_json, write_base


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


def test_a_run_in_4_bits_is_compared_with_its_adapter_on_the_16_bit_base(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4-bit training needs a GPU (tests/gpu); here the loaded model claims to be in 4 bits."""
    monkeypatch.setattr(LlamaForCausalLM, "is_loaded_in_4bit", True, raising=False)

    ran = run(recipe_with(tmp_path, model, ["adapter", "merged_16bit"]))

    assert "loading the 16-bit base, which exports are made of and compared with" in ran.shown
    assert ran.result["exports"][0]["kind"] == "merged_16bit"


def test_a_whole_model_that_was_trained_is_exported_to_gguf(tmp_path: Path) -> None:
    write_base(tmp_path / "base", max_position_embeddings=512)
    changes = {
        "model.full_finetuning": True,
        "lora.r": None,
        "lora.lora_alpha": None,
        "train.learning_rate": 1e-3,
        "export.formats": ["merged_16bit", "gguf"],
        "export.quantization": ["f16"],
    }
    ran = run(write_recipe(tmp_path, tmp_path / "base", changes))

    entry = read_json(ran.folder.exports / "export.json")["artefacts"][0]
    assert (entry["kind"], entry["path"], entry["parity"]["passed"]) == ("f16", "gguf/tiny-f16.gguf", True)


def test_training_is_kept_when_an_export_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: a merge that leaves the adapter out, planted in the arithmetic of the merge."""
    write_base(tmp_path / "base", max_position_embeddings=512)
    write_rows(tmp_path / "held_out.jsonl", make_rows(6, seed=9))
    recipe = write_recipe(
        tmp_path, tmp_path / "base", {"data.eval": "held_out.jsonl", "export.formats": ["merged_16bit"]}
    )
    monkeypatch.setattr("fastft.exports.trained._add", lambda values, *_: values)

    with pytest.raises(ExportError, match="nearer to the base"):
        run(recipe)

    folder = RunDir(tmp_path / "runs/tiny")
    assert folder.is_finished
    assert (folder.exports / "merged_16bit.FAILED").is_dir()
    monkeypatch.undo()
    done = export(folder.path, ExportRequest(("merged_16bit",)), lambda _: None)
    assert done.verdicts[0].passed


def test_an_export_that_cannot_be_made_is_refused_before_the_first_step(model: Path, tmp_path: Path) -> None:
    # The tiny tokenizer cuts text in a way that llama.cpp has no name for.
    with pytest.raises(FastftError, match=r"pre-tokenizer|tokenizer"):
        run(recipe_with(tmp_path, model, ["adapter", "gguf"]))

    assert list((tmp_path / "runs").glob("*")) == []


OWN = (
    "{{ strftime_now('%d.%m.%Y') }}{% for m in messages %}<|im_start|>{{ m.role }}"
    "{{ ' quick' if m.role == 'assistant' and quick is defined and quick }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def test_every_artefact_asks_with_the_template_date_and_values_that_were_trained(tmp_path: Path) -> None:
    """Only a whole run shows the way of a template into adapter, merged weights and GGUF, and out of `fastft serve`."""
    write_base(tmp_path / "base", max_position_embeddings=512)
    (tmp_path / "own.jinja").write_text(OWN, encoding="utf-8")
    write_rows(tmp_path / "held_out.jsonl", make_rows(6, seed=9))
    changes = {
        "data.eval": "held_out.jsonl",
        "data.chat_template": "own.jinja",
        "data.template_date": "2011-03-04",
        "data.chat_template_kwargs.quick": True,
        "export.formats": ["adapter", "merged_16bit", "gguf"],
        "export.quantization": ["f16"],
    }
    ran = run(write_recipe(tmp_path, tmp_path / "base", changes))

    (file,) = (ran.folder.exports / "gguf").glob("*.gguf")
    merged = ran.folder.exports / "merged_16bit"
    written = {read_gguf_header(file).chat_template}
    written |= {AutoTokenizer.from_pretrained(folder).chat_template for folder in (ran.folder.adapter, merged)}
    (template,) = written
    question = [{"role": "user", "content": "Which?"}]
    prompt = "04.03.2011<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant quick\n"
    asked = AutoTokenizer.from_pretrained(merged).apply_chat_template(
        question, tokenize=False, add_generation_prompt=True, quick=False
    )
    assert asked == render_chat(template, question, {}) == prompt
    with serve(file, port=0) as address:
        served = httpx.post(f"{address}/apply-template", json={"messages": question}, timeout=60).json()["prompt"]
    assert served == prompt
    assert all(one["passed"] is True for one in (record["parity"] for record in exported(ran.folder)))


def exported(folder: RunDir) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = read_json(folder.exports / "export.json")["artefacts"]
    return records
