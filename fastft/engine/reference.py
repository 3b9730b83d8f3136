"""The torch side of the parity gate: the logits of the trained model, and those of a folder in transformers."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastft.engine.model import Model, Tokenizer
from fastft.engine.torch_model import prompt_ids, special_tokens, token_ids
from fastft.errors import FastftError, MachineError, Problem, RecipeError, Where
from fastft.exports.adapter import vocabulary_rows, write_as_peft_does
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
        instead = "set data.eval or eval_fraction"
        raise RecipeError(Problem(Where("export"), "", "no held-out rows to compare on", instead))
    if not isinstance(tokenizer.chat_template, str):
        raise RecipeError(Problem(Where("export"), "", "the tokenizer has no chat template", "set data.chat_template"))
    passages = tuple(_passage(tokenizer, conversation, end_tokens) for conversation in conversations)
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
    is_rounded = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters())
    special, ends = special_tokens(tokenizer), tuple(end_tokens)
    return Reference(passages, trained, base, tokenizer.chat_template, special, ends, is_rounded)


def load_to_ask(weights: Path, adapter: Path | None, dtype: Any) -> Any:
    """A model that is only asked, with `adapter` in PEFT: on the GPU, and in memory what has no room there."""
    where = "auto" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype, use_safetensors=True, device_map=where)
    if adapter is not None:
        from peft import PeftModel

        rows = vocabulary_rows(adapter)
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        # PEFT passes over names that it does not look for, and the adapter would not be in the model.
        with tempfile.TemporaryDirectory() as folder:
            write_as_peft_does(adapter, weights, Path(folder))
            model = PeftModel.from_pretrained(model, folder)
    return model.eval()


def check_folder(folder: Path, kind: str, reference: Reference, base: Path | None = None) -> Verdict:
    """Load a merged `folder`, or the adapter in it onto `base`, as a user would, and judge it."""
    start = time.monotonic()
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = load_to_ask(base or folder, None if base is None else folder, "auto")
        except Exception as error:  # a library may raise anything on a damaged folder
            wrong = f"transformers cannot load it: {' '.join(str(error).split())[:300]}"
            raise MachineError(Problem(Where(str(folder)), "", wrong, "export it again")) from error
        # An adapter brings no generation settings: where it stops is up to the base's.
        ends = _stops(folder, model) if base is None else list(reference.end_ids)
        reading = _read_folder(model, tokenizer, reference, ends)
    except FastftError as error:
        return unreadable(folder.name, kind, error)
    return judge(folder.name, kind, reference, reading, time.monotonic() - start)


def _stops(folder: Path, model: Model) -> list[int]:
    file = folder / "generation_config.json"
    ends = stopping_ids(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
    return ends or stopping_ids({"eos_token_id": model.generation_config.eos_token_id})


def _read_folder(model: Model, tokenizer: Tokenizer, reference: Reference, ends: Sequence[int]) -> Reading:
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    special = special_tokens(tokenizer)
    prompts = tuple(
        tuple(prompt_ids(tokenizer, render_chat(template, passage.messages[:-1], special)))
        for passage in reference.passages
    )
    logits = tuple(
        _logits(model, passage, len(trained))
        for passage, trained in zip(reference.passages, reference.trained, strict=True)
    )
    stops = frozenset(token for token in reference.end_ids if token in ends)
    return Reading(prompts, logits, template or None, ends[0] if ends else -1, stops)


def _passage(tokenizer: Tokenizer, conversation: ChatMessages, end_tokens: Sequence[int]) -> Passage:
    rendered = render_chat(tokenizer.chat_template, conversation[:-1], special_tokens(tokenizer))
    prompt = prompt_ids(tokenizer, rendered)
    answer = [*token_ids(tokenizer, conversation[-1]["content"]), *end_tokens[:1]]
    return Passage(tuple(dict(message) for message in conversation), (*prompt, *answer), len(prompt))


def _logits(model: Model, passage: Passage, most: int) -> Floats:
    """(answer tokens up to `most`, vocabulary) of the next token's logits in float32."""
    tokens = torch.tensor([passage.tokens], device=next(model.parameters()).device)
    with torch.inference_mode():
        rows = model(input_ids=tokens, use_cache=False).logits[0, passage.positions][:most]
    values: Floats = rows.float().cpu().numpy().astype(np.float32, copy=False)
    return values
