"""The torch side of the parity gate: what the trained model says, and what a merged folder says in transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastft.engine.model import Model, Tokenizer
from fastft.errors import FastftError, MachineError, Problem, RecipeError, Where
from fastft.exports.merged import stopping_ids
from fastft.exports.parity import ChatMessages, Passage, Reading, Reference, Verdict, judge, unreadable
from fastft.files.tensors import Floats
from fastft.inference.conversation import render_chat

# Logits of answers are kept in float32 for three models; this many bytes each bound what the gate needs.
LOGITS_BYTES = 256 * 2**20


def make_reference(
    model: Model, tokenizer: Tokenizer, conversations: Sequence[ChatMessages], end_tokens: Sequence[int]
) -> Reference:
    """Run the trained `model` over held-out conversations and, where it is a PEFT one, its base without the adapter.

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
        base = None
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                base = tuple(_logits(model, passage, each) for passage in passages)
    finally:
        model.train(was_training)
    return Reference(passages, trained, base, tokenizer.chat_template, special, tuple(end_tokens))


def device_map() -> str:
    """Where a model goes that is only asked: to the GPU, and what has no room there to memory."""
    return "auto" if torch.cuda.is_available() else "cpu"


def check_merged(folder: Path, kind: str, reference: Reference) -> Verdict:
    """Load the merged `folder` with transformers, as a user would, and judge it."""

    def load() -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, device_map=device_map())

    return _check_folder(folder, kind, reference, load)


def check_adapter(base: Path, folder: Path, reference: Reference) -> Verdict:
    """Load the adapter in `folder` onto `base` with PEFT, as a user would, and judge it."""

    def load() -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", use_safetensors=True, device_map=device_map())
        return PeftModel.from_pretrained(model, str(folder))

    return _check_folder(folder, "adapter", reference, load)


def _check_folder(folder: Path, kind: str, reference: Reference, load: Callable[[], Any]) -> Verdict:
    from transformers import AutoTokenizer

    start = time.monotonic()
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = load()
        except Exception as error:  # whatever a library raises on a damaged folder is the verdict
            wrong = f"transformers cannot load it: {' '.join(str(error).split())[:300]}"
            raise MachineError(Problem(Where(str(folder)), "", wrong, "export it again")) from error
        # An adapter brings no generation settings: where it stops is up to the base's.
        ends = list(reference.end_ids) if kind == "adapter" else _stops(folder, model)
        reading = _read_folder(model.eval(), tokenizer, reference, ends)
    except FastftError as error:
        return unreadable(folder.name, kind, error)
    return judge(folder.name, kind, reference, reading, time.monotonic() - start)


def _stops(folder: Path, model: Model) -> list[int]:
    file = folder / "generation_config.json"
    ends = stopping_ids(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
    return ends or stopping_ids({"eos_token_id": model.generation_config.eos_token_id})


def _read_folder(model: Model, tokenizer: Tokenizer, reference: Reference, ends: Sequence[int]) -> Reading:
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    special = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    prompts = tuple(
        tuple(_ids(tokenizer, render_chat(template, passage.messages[:-1], special))) for passage in reference.passages
    )
    logits = tuple(
        _logits(model, passage, len(trained))
        for passage, trained in zip(reference.passages, reference.trained, strict=True)
    )
    stops = frozenset(token for token in reference.end_ids if token in ends)
    return Reading(prompts, logits, template or None, ends[0] if ends else -1, stops)


def _passage(
    tokenizer: Tokenizer, conversation: ChatMessages, special: dict[str, str], end_tokens: Sequence[int]
) -> Passage:
    prompt = _ids(tokenizer, render_chat(tokenizer.chat_template, conversation[:-1], special))
    answer = [*_ids(tokenizer, conversation[-1]["content"]), *list(end_tokens)[:1]]
    return Passage(tuple(dict(message) for message in conversation), (*prompt, *answer), len(prompt))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _logits(model: Model, passage: Passage, most: int) -> Floats:
    """(answer tokens up to `most`, vocabulary) of the next token's logits in float32."""
    tokens = torch.tensor([passage.tokens], device=next(model.parameters()).device)
    with torch.inference_mode():
        rows = model(input_ids=tokens, use_cache=False).logits[0, passage.positions][:most]
    values: Floats = rows.float().cpu().numpy().astype(np.float32, copy=False)
    return values
