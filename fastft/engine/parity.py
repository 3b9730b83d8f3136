"""The torch side of the parity gate: what the trained model says, and what a merged folder says in transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastft.errors import FastftError, MachineError, Problem, RecipeError, Where
from fastft.export.chat import render_chat
from fastft.export.gguf.vocabulary import end_ids
from fastft.export.parity import Passage, Reading, Reference, Verdict, judge, unreadable
from fastft.export.tensors import Floats

# Logits of answers are kept in float32 for three models; this many bytes each bound what the gate needs.
LOGITS_BYTES = 256 * 2**20


def make_reference(
    model: Any, tokenizer: Any, conversations: Sequence[Sequence[dict[str, str]]], end_tokens: Sequence[int]
) -> Reference:
    """Run the trained PEFT `model`, and its base with the adapter switched off, over held-out conversations.

    `conversations` end with an answer each; `end_tokens` are the ids at which trained answers end.

    Raises:
        RecipeError: no conversations, or the tokenizer has no chat template.
    """
    if not conversations:
        raise RecipeError(
            Problem(Where("export"), "", "no held-out rows to compare on", "set data.eval or eval_fraction")
        )
    if not isinstance(tokenizer.chat_template, str):
        raise RecipeError(Problem(Where("export"), "", "the tokenizer has no chat template", "set data.chat_template"))
    special = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    passages = tuple(_passage(tokenizer, conversation, special, end_tokens) for conversation in conversations)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    each = max(1, LOGITS_BYTES // (4 * vocabulary * len(passages)))
    was_training = model.training
    model.eval()
    try:
        trained = tuple(_logits(model, passage, each) for passage in passages)
        with model.disable_adapter():
            base = tuple(_logits(model, passage, each) for passage in passages)
    finally:
        model.train(was_training)
    return Reference(passages, trained, base, tokenizer.chat_template, special, tuple(end_tokens))


def check_merged(folder: Path, reference: Reference, device: str = "cpu") -> Verdict:
    """Load the merged `folder` with transformers, as a user would, and judge it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = time.monotonic()
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).to(device)
        except Exception as error:  # whatever a library raises on a damaged folder is the verdict
            wrong = f"transformers cannot load it: {error}"
            raise MachineError(Problem(Where(str(folder)), "", wrong, "export it again")) from error
        reading = _read_merged(folder, model.eval(), tokenizer, reference)
    except FastftError as error:
        return unreadable(folder.name, "merged_16bit", error)
    return judge(folder.name, "merged_16bit", reference, reading, time.monotonic() - start)


def _read_merged(folder: Path, model: Any, tokenizer: Any, reference: Reference) -> Reading:
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    special = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    prompts = tuple(
        tuple(_ids(tokenizer, render_chat(template, passage.messages[:-1], special))) for passage in reference.passages
    )
    file = folder / "generation_config.json"
    ends = end_ids(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
    ends = ends or [model.generation_config.eos_token_id]
    logits = tuple(
        _logits(model, passage, len(trained))
        for passage, trained in zip(reference.passages, reference.trained, strict=True)
    )
    stops = frozenset(token for token in reference.end_ids if token in ends)
    return Reading(prompts, logits, template or None, ends[0], stops)


def _passage(
    tokenizer: Any, conversation: Sequence[dict[str, str]], special: dict[str, str], end_tokens: Sequence[int]
) -> Passage:
    prompt = _ids(tokenizer, render_chat(tokenizer.chat_template, conversation[:-1], special))
    answer = [*_ids(tokenizer, conversation[-1]["content"]), *list(end_tokens)[:1]]
    return Passage(tuple(dict(message) for message in conversation), (*prompt, *answer), len(prompt))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _logits(model: Any, passage: Passage, most: int) -> Floats:
    """(answer tokens up to `most`, vocabulary) of the next token's logits in float32."""
    tokens = torch.tensor([passage.tokens], device=next(model.parameters()).device)
    with torch.inference_mode():
        rows = model(input_ids=tokens, use_cache=False).logits[0, passage.positions][:most]
    values: Floats = rows.float().cpu().numpy().astype(np.float32, copy=False)
    return values
