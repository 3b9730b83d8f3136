"""Generated answers to held-out prompts, compared with the references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch

from fastft.data.content import final_text
from fastft.data.render import Prompt
from fastft.engine.model import Model, Tokenizer
from fastft.runs.held_out import Answers

# Prompts of one generation, sorted by length so that little is padding: more where prompt and answer are short. On two
# cores the quickstart's 50 answers took 173 s one by one, 17.5 s by 25 and 15.9 s by 50.
BATCH, SHORT_BATCH, SHORT_TOKENS = 25, 50, 128


def answer(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    stop_asked: Callable[[], bool],
) -> Answers:
    """Greedy answers of `model` to `prompts`; each ends at the first of `stop_ids` or after `max_new_tokens`.

    Equality is that of the text, surrounding white space aside; `prompts` is not empty. Leaves the model in the mode it
    was in.

    Raises:
        KeyboardInterrupt: `stop_asked` said so.
    """
    given = [("", 0, False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].input_ids))
    was_training = model.training
    _inference_mode(model, on=True)
    try:
        while order:
            if stop_asked():
                raise KeyboardInterrupt
            longest = len(prompts[order[:SHORT_BATCH][-1]].input_ids)
            rows = SHORT_BATCH if longest + max_new_tokens <= SHORT_TOKENS else BATCH
            chosen, order = order[:rows], order[rows:]
            ids = [prompts[index].input_ids for index in chosen]
            answers = _generate(model, tokenizer, ids, stop_ids, max_new_tokens)
            for index, each in zip(chosen, answers, strict=True):
                given[index] = each
    finally:
        _inference_mode(model, on=not was_training)
    pairs = zip(given, prompts, strict=True)
    exact = sum(final_text(text) == final_text(prompt.reference) for (text, _, _), prompt in pairs)
    texts, tokens, stopped = zip(*given, strict=True)
    return Answers(texts, exact, tokens, stopped)


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
) -> list[tuple[str, int, bool]]:
    """(text, tokens, whether it ended by itself) of the answers to one batch of prompts, padded on the left so that all
    end at the same place.
    """
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
    made = []
    for row in out[:, width:].tolist():
        answer = list(takewhile(lambda token: token not in stop_ids, row))
        made.append((tokenizer.decode(answer, skip_special_tokens=False), len(answer), len(answer) < len(row)))
    return made
