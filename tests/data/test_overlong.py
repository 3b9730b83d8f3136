from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from fastft.data.contract import check_encoded
from fastft.data.encode import Encoded, encode
from fastft.data.example import Example
from fastft.data.overlong import fit
from fastft.data.render import Renderer, make_renderer
from fastft.data.template import load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import Where

Conversation = Callable[..., Example]
HERE = Where("rows.jsonl", 1)


@pytest.fixture(scope="module")
def renderer(chatml: TokenizerFacts) -> Renderer:
    return make_renderer(load_template("model", Path(), chatml.chat_template, HERE), chatml, "assistant", HERE)


def fitted(example: Example, renderer: Renderer, limit: int, choice: Literal["drop", "truncate", "split"]) -> list[str]:
    encoded = encode(example, renderer)
    assert len(encoded.input_ids) > limit
    made = fit(example, encoded, renderer, limit, choice)
    assert all(len(row.input_ids) <= limit for row in made)
    assert all(check_encoded(row, renderer, plain_text=example.text is not None) is None for row in made)
    return [renderer.tokenizer.tokenizer.decode(row.input_ids, skip_special_tokens=False) for row in made]


def exchange(question: str, answer: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


def test_drop_keeps_nothing(renderer: Renderer, conversation: Conversation) -> None:
    assert fitted(conversation("a" * 99, "b"), renderer, 90, "drop") == []


def test_truncate_ends_after_the_last_answer_that_fits(renderer: Renderer, conversation: Conversation) -> None:
    made = fitted(conversation("one", "first", "two", "second" * 20), renderer, 90, "truncate")
    assert made == [exchange("one", "first")]


def test_truncate_drops_a_row_whose_first_answer_does_not_fit(renderer: Renderer, conversation: Conversation) -> None:
    assert fitted(conversation("one", "first" * 20), renderer, 90, "truncate") == []


def test_split_keeps_every_whole_exchange_and_repeats_the_system_turn(
    renderer: Renderer, conversation: Conversation
) -> None:
    example = conversation("q1", "a1", "q2", "a2", "q3", "a3" * 99, "q4", "a4", system="S")
    system = "<|im_start|>system\nS<|im_end|>\n"
    assert fitted(example, renderer, 70, "split") == [
        system + exchange("q1", "a1") + "\n" + exchange("q2", "a2") + "\n",
        system + exchange("q4", "a4") + "\n",
    ]


def test_plain_text_is_cut_or_split_without_losing_a_token(chatml: TokenizerFacts) -> None:
    plain = make_renderer(None, chatml, "assistant", HERE)
    example = Example(HERE, text="".join(chr(97 + n % 26) for n in range(250)))
    whole = encode(example, plain)
    assert fitted(example, plain, 100, "truncate") == [example.text[:100] if example.text else ""]
    parts: list[Encoded] = fit(example, whole, plain, 100, "split")
    assert [len(part.input_ids) for part in parts] == [100, 100, 51]
    assert [token for part in parts for token in part.input_ids] == whole.input_ids.tolist()
