"""The gate lets good exports through and names what is wrong with six planted bad ones."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastft.engine.reference import check_folder, make_reference
from fastft.exports.gguf.writer import write_gguf
from fastft.exports.merged import write_merged
from fastft.exports.parity import Reference, Verdict, check_gguf
from tests.exports.tiny import CHAT_TEMPLATE, base_arrays, read_json, write_adapter, write_base, write_json

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and PEFT warn of each other's renames

CONVERSATIONS = [
    [{"role": "user", "content": "what is the answer?"}, {"role": "assistant", "content": "the quick brown fox"}],
    [{"role": "user", "content": "and order 48213?"}, {"role": "assistant", "content": "jumps over the lazy dog"}],
]
END = 2


@dataclass(frozen=True)
class Trained:
    base: Path
    adapter: Path
    reference: Reference


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    write_base(folder / "base")
    write_adapter(folder / "adapter")
    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "adapter")
    return Trained(folder / "base", folder / "adapter", make_reference(model, tokenizer, CONVERSATIONS, [END]))


def export(kind: str, base: Path, adapter: Path | None, out: Path, template: str | None = None) -> Path:
    if kind == "merged_16bit":
        return write_merged(base, adapter, out, chat_template=template).folder
    return write_gguf(base, adapter, out, kind, chat_template=template).file


def check(kind: str, artefact: Path, reference: Reference) -> Verdict:
    if kind == "merged_16bit":
        return check_folder(artefact, kind, reference)
    return check_gguf(artefact, kind, reference)


def changed_base(trained: Trained, folder: Path) -> Path:
    shutil.copytree(trained.base, folder)
    return folder


@pytest.mark.parametrize("kind", ["merged_16bit", "f32", "f16", "q8_0"])
def test_a_good_export_passes(trained: Trained, tmp_path: Path, kind: str) -> None:
    verdict = check(kind, export(kind, trained.base, trained.adapter, tmp_path / "out"), trained.reference)
    assert verdict.reasons == ()
    assert verdict.equal_prompts == verdict.prompts == 2
    # R13: a 16-bit export keeps within 20 % of the distance that training moved the model.
    assert verdict.mean_kl < 0.2 * verdict.mean_kl_base_trained


@pytest.mark.parametrize("kind", ["merged_16bit", "f16"])
def test_an_export_without_its_adapter_is_caught(trained: Trained, tmp_path: Path, kind: str) -> None:
    verdict = check(kind, export(kind, trained.base, None, tmp_path / "out"), trained.reference)
    assert any("nearer to the base" in reason for reason in verdict.reasons)


def test_half_an_adapter_whose_tokens_all_agree_is_caught(trained: Trained, tmp_path: Path) -> None:
    """The agreement of likeliest tokens alone does not see it."""
    write_adapter(tmp_path / "adapter", lora_alpha=4)
    verdict = check("f16", export("f16", trained.base, tmp_path / "adapter", tmp_path / "out"), trained.reference)
    assert any("0.0005 is the most" in reason or "5.0e-04 is the most" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("kind", ["merged_16bit", "f16"])
def test_a_wrong_template_is_caught(trained: Trained, tmp_path: Path, kind: str) -> None:
    wrong = CHAT_TEMPLATE.replace("<|im_start|>assistant", "### Answer:")
    verdict = check(kind, export(kind, trained.base, trained.adapter, tmp_path / "out", wrong), trained.reference)
    assert any("another chat template" in reason for reason in verdict.reasons)
    assert any("reads 2 of 2 prompts as other tokens" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("kind", ["merged_16bit", "f16"])
def test_a_doubled_beginning_token_is_caught(trained: Trained, tmp_path: Path, kind: str) -> None:
    doubled = "{{ bos_token }}" + CHAT_TEMPLATE
    verdict = check(kind, export(kind, trained.base, trained.adapter, tmp_path / "out", doubled), trained.reference)
    assert any("reads 2 of 2 prompts as other tokens" in reason for reason in verdict.reasons)


def test_a_beginning_token_that_only_llama_cpp_adds_is_caught(trained: Trained, tmp_path: Path) -> None:
    base = changed_base(trained, tmp_path / "base")
    tokenizer = read_json(base / "tokenizer.json")
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, text],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    write_json(base / "tokenizer.json", tokenizer)
    settings = read_json(base / "tokenizer_config.json") | {"bos_token": "<|endoftext|>"}
    write_json(base / "tokenizer_config.json", settings)
    verdict = check("f16", export("f16", base, trained.adapter, tmp_path / "out"), trained.reference)
    assert any("prompt 1 has token 0 at position 0, 1 in training" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("kind", ["merged_16bit", "f16"])
def test_a_wrong_end_token_is_caught(trained: Trained, tmp_path: Path, kind: str) -> None:
    base = changed_base(trained, tmp_path / "base")
    write_json(base / "generation_config.json", {"eos_token_id": 1})
    verdict = check(kind, export(kind, base, trained.adapter, tmp_path / "out"), trained.reference)
    assert any("has 1 as its end token, trained answers end with 2" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("kind", ["merged_16bit", "f16"])
def test_a_truncated_file_is_caught(trained: Trained, tmp_path: Path, kind: str) -> None:
    out = export(kind, trained.base, trained.adapter, tmp_path / "out")
    file = out / "model.safetensors" if out.is_dir() else out
    os.truncate(file, file.stat().st_size // 2)
    verdict = check(kind, out, trained.reference)
    assert any("cannot be read" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("kind", ["merged_16bit", "f16"])
def test_a_wrong_base_is_caught(trained: Trained, tmp_path: Path, kind: str) -> None:
    write_base(tmp_path / "base", base_arrays(seed=7))
    verdict = check(kind, export(kind, tmp_path / "base", trained.adapter, tmp_path / "out"), trained.reference)
    assert any("99% are needed" in reason for reason in verdict.reasons)
