"""A model in torch that answers chats: an adapter on its base, the base alone, or a merged model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fastft.engine.model import Model, Tokenizer
from fastft.files.tensors import Floats
from fastft.inference.conversation import next_token


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of the beginning and the end token, as templates use them."""
    return {name: str(getattr(tokenizer, name) or "") for name in ("bos_token", "eos_token")}


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, a rendered chat for example, whose template writes the beginning token itself."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def prompt_ids(tokenizer: Tokenizer, rendered: str) -> list[int]:
    """The ids of a rendered chat as in training: with the beginning token that the tokenizer adds to a plain text."""
    bos = tokenizer.bos_token
    if bos and not rendered.startswith(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        rendered = bos + rendered
    return token_ids(tokenizer, rendered)


class TorchModel:
    """What a `Conversation` talks to; `adapted` False switches the adapter off, which leaves the base.

    `ends`: the tokens at which an answer ends.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, source: Path, ends: Sequence[int], *, adapted: bool = True
    ) -> None:
        self.source = source
        self._model, self._tokenizer, self._ends, self._adapted = model, tokenizer, frozenset(ends), adapted
        # Keys and values of the tokens in `_seen`; the next call computes only what differs.
        self._cache: Cache | None = None
        self._seen: list[int] = []

    @property
    def chat_template(self) -> str | None:
        """The template that came with the weights."""
        template = self._tokenizer.chat_template
        return template if isinstance(template, str) else None

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of the beginning and the end token, as templates use them."""
        return special_tokens(self._tokenizer)

    def chat_tokens(self, rendered: str) -> list[int]:
        """The ids of a rendered chat."""
        return prompt_ids(self._tokenizer, rendered)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without the special ones."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generate(
        self, tokens: Sequence[int], max_new_tokens: int, temperature: float, top_p: float, seed: int | None
    ) -> Iterator[int]:
        """New tokens after `tokens` one by one, up to the first end token, which is not among them.

        Keys and values of the tokens that the last call began with as well are not computed again.
        """
        random = np.random.default_rng(seed)
        self._keep(_common(self._seen, tokens[:-1]))
        pending = list(tokens[len(self._seen) :])
        for _ in range(max_new_tokens):
            token = next_token(self._logits(pending), temperature, top_p, random)
            if token in self._ends:
                return
            yield token
            pending = [token]

    def _logits(self, pending: list[int]) -> Floats:
        """(vocabulary,): the logits after `pending`, which comes after the tokens in the cache."""
        # Ctrl+C can leave some layers with the new tokens and others without: then there is no cache.
        cache, seen, self._cache, self._seen = self._cache, self._seen, None, []
        base = contextlib.nullcontext() if self._adapted else self._model.disable_adapter()
        with torch.inference_mode(), base:
            ids = torch.tensor([pending], device=self._model.device)
            out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._cache, self._seen = out.past_key_values, [*seen, *pending]
        logits: Floats = out.logits[0, -1].float().cpu().numpy()
        return logits

    def _keep(self, count: int) -> None:
        """Drop what the cache has after `count` tokens, or all of it where it cannot go back."""
        removed = len(self._seen) - count
        if self._cache is None or count == 0 or not _can_go_back(self._cache, removed):
            self._cache, self._seen = None, []
        elif removed:
            self._cache.crop(-removed)
            del self._seen[count:]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _can_go_back(cache: Cache, removed: int) -> bool:
    """Whether the last `removed` tokens can be taken out of every layer of a cache.

    A full sliding window has lost what came before it, and a recurrent state is a sum of all tokens.
    """
    for layer in cache.layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if removed and layer.get_seq_length() >= layer.sliding_window:
                return False
        elif type(layer) is not DynamicLayer:
            return False
    return True
