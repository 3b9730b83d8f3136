"""A conversation with a model: its chat template, history and sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fastft.data.example import Message
from fastft.data.template import ChatTemplate
from fastft.errors import FastftError, Problem, RecipeError, Where
from fastft.files.tensors import Floats

ChatMessage = dict[str, str]


class ChatModel(Protocol):
    """What a conversation needs from a model in any runtime (`llamacpp.GgufModel` is one)."""

    @property
    def source(self) -> Path:
        """The file or folder of the weights."""

    @property
    def chat_template(self) -> str | None:
        """The chat template that came with the weights."""

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token`."""

    def chat_tokens(self, rendered: str) -> list[int]:
        """The ids of a rendered prompt."""

    def generate(
        self, tokens: Sequence[int], max_new_tokens: int, temperature: float, top_p: float, seed: int | None
    ) -> Iterator[int]:
        """New tokens one by one, before the end token."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, without special ones; an incomplete character at the end is U+FFFD."""


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token."""

    temperature: float = 0.0
    """0 takes the likeliest token, which makes answers repeatable."""
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None


@dataclass
class Conversation:
    """The messages so far with one model; `answer` streams each answer and then adds it."""

    model: ChatModel
    sampling: Sampling = Sampling()
    system: str | None = None
    messages: list[ChatMessage] = field(default_factory=list)
    cut_off: bool = False
    """Whether the last answer ended at `max_new_tokens` instead of at an end token."""

    def reset(self) -> None:
        """Clear the messages and keep the system prompt."""
        self.messages.clear()

    @property
    def so_far(self) -> list[ChatMessage]:
        """The system prompt and all messages."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def answer(self, text: str) -> Iterator[str]:
        """The answer to `text` piece by piece; an interrupted answer stays in the history up to where it stopped.

        Raises:
            RecipeError: the weights have no chat template.
            DataError: the template refuses these messages.
            MachineError: the conversation does not fit the context.
        """
        self.cut_off = False
        template = self.model.chat_template
        if template is None:
            where = Where(str(self.model.source))
            raise RecipeError(Problem(where, "", "has no chat template", "export it with a chat template"))
        messages = [*self.so_far, {"role": "user", "content": text}]
        tokens = self.model.chat_tokens(render_chat(template, messages, self.model.special_tokens))
        sampling, new, written = self.sampling, [], ""
        try:
            for token in self.model.generate(
                tokens, sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.seed
            ):
                new.append(token)
                whole = self.model.text(new)
                if not whole.endswith("\ufffd"):
                    yield whole[len(written) :]
                    written = whole
            yield self.model.text(new)[len(written) :]
        finally:
            self.cut_off = len(new) >= sampling.max_new_tokens
            if new:
                answer = {"role": "assistant", "content": self.model.text(new)}
                self.messages += [{"role": "user", "content": text}, answer]


def next_token(logits: Floats, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """The next token, from (vocabulary,) logits: the likeliest at temperature 0, else drawn from the top `top_p`.

    Nucleus sampling as in Holtzman et al. 2020: from the smallest set of likeliest tokens with at least that share.
    """
    if temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    shares = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / temperature)
    shares /= shares.sum()
    kept = int(np.searchsorted(np.cumsum(shares), top_p)) + 1
    shares = shares[:kept] / shares[:kept].sum()
    return int(order[random.choice(len(shares), p=shares)])


def render_chat(template: str, messages: Sequence[ChatMessage], special_tokens: dict[str, str]) -> str:
    """The prompt that `template` makes of `messages`, up to the answer, rendered as in training.

    Raises:
        RecipeError: the template is not valid Jinja.
        DataError: the template refuses these messages.
    """
    turns = [Message(message["role"], message["content"]) for message in messages]
    chat = ChatTemplate("chat template", template)
    return chat.render(turns, special_tokens, where=Where("chat template"), add_generation_prompt=True)


def asks_for_reasoning(template: str) -> bool:
    """Whether `template` asks as with `enable_thinking` true when it gets no value, as in training and in a chat.

    llama.cpp always passes one. Also true where the template reads none, or refuses a plain question.
    """
    question = [{"role": "user", "content": "Question"}]
    switched = f"{{%- set enable_thinking = true %}}{template}"
    try:
        return render_chat(template, question, {}) == render_chat(switched, question, {})
    except FastftError:
        return True
