"""Answers that the model really gives to held-out prompts, counted against the references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastft.data.content import final_text
from fastft.data.render import Prompt
from fastft.engine.model import Model, Tokenizer
from fastft.runs.held_out import Answers

# Prompts that are generated for at once. Sorted by length first, so that little is padding.
BATCH = 25


def answer(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    stop_asked: Callable[[], bool],
) -> Answers:
    """Greedy answers of `model` to `prompts`; each ends at the first of `stop_ids` or after `max_new_tokens`.

    Equality is that of the text, surrounding white space aside. Leaves the model in the mode it was in.

    Raises:
        KeyboardInterrupt: `stop_asked` said so.
    """
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].input_ids))
    was_training = model.training
    _inference_mode(model, on=True)
    try:
        for start in range(0, len(order), BATCH):
            if stop_asked():
                raise KeyboardInterrupt
            chosen = order[start : start + BATCH]
            answers = _generate(
                model, tokenizer, [prompts[index].input_ids for index in chosen], stop_ids, max_new_tokens
            )
            for index, text in zip(chosen, answers, strict=True):
                texts[index] = text
    finally:
        _inference_mode(model, on=not was_training)
    exact = sum(final_text(text) == final_text(prompt.reference) for text, prompt in zip(texts, prompts, strict=True))
    return Answers(tuple(texts), exact)


def _inference_mode(model: Model, *, on: bool) -> None:
    """Unsloth's models switch kernels and caches between the two modes; others only drop-out."""
    switch = getattr(model, "for_inference" if on else "for_training", None)
    if switch is not None:
        switch()
    else:
        model.train(not on)
        model.config.use_cache = on


def _generate(
    model: Model, tokenizer: Tokenizer, ids: Sequence[Sequence[int]], stop_ids: Sequence[int], limit: int
) -> list[str]:
    """The answers to one batch of prompts, padded on the left so that all end at the same place."""
    width = max(len(row) for row in ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    padded = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=padded,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=pad,
            use_cache=True,
        )
    return [_cut(row[width:].tolist(), stop_ids, tokenizer) for row in out]


def _cut(ids: list[int], stop_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    stop = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
    text: str = tokenizer.decode(ids[:stop], skip_special_tokens=False)
    return text
