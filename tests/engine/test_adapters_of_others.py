"""Adapters in the layouts that other programs write, through merge, GGUF, the gate and chat.

Each begins as PEFT saves it (TRL, Unsloth, LLaMA-Factory, Axolotl and ms-swift all save with PEFT), and gets the names,
the configuration and the vocabulary that the program gives it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from fastft.commands.chat import ChatRequest, open_chat
from fastft.commands.export import ExportRequest, export
from fastft.inference.conversation import Sampling
from tests.exports.tiny import read_json, write_base, write_json

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and PEFT warn of each other's renames

Tensors = dict[str, Tensor]
PEFT = "base_model.model."
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS, ROWS = 308, 320


def same(folder: Path, tensors: Tensors) -> Tensors:
    return tensors


def torchtune(folder: Path, tensors: Tensors) -> Tensors:
    """Four keys of configuration, weights in bfloat16, no note of its base."""
    settings = read_json(folder / "adapter_config.json")
    kept = {key: settings[key] for key in ("r", "lora_alpha", "target_modules", "peft_type")}
    write_json(folder / "adapter_config.json", kept)
    return {name: weight.bfloat16() for name, weight in tensors.items()}


def axolotl(folder: Path, tensors: Tensors) -> Tensors:
    """A compiled model, and layers behind activation checkpointing."""
    named = {name.replace(PEFT, f"{PEFT}_orig_mod."): weight for name, weight in tensors.items()}
    return {name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): weight for name, weight in named.items()}


def unsloth(folder: Path, tensors: Tensors) -> Tensors:
    """The text part of a model that also sees, its layers named by one expression."""
    settings = read_json(folder / "adapter_config.json")
    settings["target_modules"] = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)"
    settings |= {"auto_mapping": {"base_model_class": "Gemma3ForConditionalGeneration"}, "task_type": "CAUSAL_LM"}
    write_json(folder / "adapter_config.json", settings)
    return {name.replace(f"{PEFT}model.", f"{PEFT}model.language_model."): weight for name, weight in tensors.items()}


def swift(folder: Path, tensors: Tensors) -> Tensors:
    """A file of its own beside PEFT's, and the adapter's name in those of the tensors."""
    write_json(folder / "additional_config.json", {"lora_dtype": None, "lorap_lr_ratio": None, "lorap_emb_lr": 1e-6})
    return {name.replace(".weight", ".default.weight", "lora_" in name): weight for name, weight in tensors.items()}


# What PEFT is asked for, rows that the vocabulary gets, and what the program makes of what PEFT saves.
PROGRAMS: dict[str, tuple[dict[str, Any], int, Callable[[Path, Tensors], Tensors]]] = {
    "torchtune": ({}, 0, torchtune),
    "Axolotl, compiled": ({"use_dora": True}, 0, axolotl),
    "Unsloth, a vision model": ({"use_rslora": True}, 0, unsloth),
    "ms-swift with new tokens": ({"modules_to_save": ["embed_tokens", "lm_head"]}, TOKENS, swift),
    "LLaMA-Factory, resize_vocab": ({"modules_to_save": ["embed_tokens", "lm_head"]}, ROWS, same),
    "TRL, a cloned chat template": ({"trainable_token_indices": {"embed_tokens": [300, 307]}}, ROWS, same),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_adapter_is_merged_proven_and_chats(tmp_path: Path, program: str) -> None:
    asked, rows, layout = PROGRAMS[program]
    base, folder = tmp_path / "base", tmp_path / "adapter"
    write_base(base)
    train(base, folder, asked, rows)
    tensors = layout(folder, load_file(folder / "adapter_model.safetensors"))
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, folder / "adapter_model.safetensors")

    done = export(folder, ExportRequest(("gguf", "merged_16bit"), ("f16",), base=str(base)), lambda _: None)

    assert [verdict.reasons for verdict in done.verdicts] == [(), ()]
    assert all(verdict.tensors and verdict.mean_kl < 0.01 * verdict.mean_kl_base_trained for verdict in done.verdicts)
    answers = []
    request = ChatRequest(base=str(base), sampling=Sampling(max_new_tokens=6))
    for place in (folder, *(artefact.path for artefact in done.artefacts)):
        with open_chat(place, request, lambda _: None) as [(_, conversation)]:
            answers.append("".join(conversation.answer("what is the answer")))
    assert answers[0]
    assert answers == answers[:1] * 3


def train(base: Path, folder: Path, asked: dict[str, Any], rows: int) -> None:
    """Save an adapter with random changes, and, where the vocabulary grows, its tokenizer."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=ALL, **asked))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.02 if "magnitude" in name else 0.1))
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(folder / "adapter_config.json", {**settings, "base_model_name_or_path": "org/model-bnb-4bit"})
    if not rows:
        return
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base / file, folder / file)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<tool_{number}>", special=True) for number in range(TOKENS - 300)])
    tokenizer.save(str(folder / "tokenizer.json"))
