"""Drop, truncate or split a row that is longer than max_seq_length, without ever cutting an answer in two."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fastft.data.encode import NO_LOSS, Encoded, encode
from fastft.data.example import Example
from fastft.data.render import Renderer
from fastft.errors import DataError

OverlongChoice = Literal["drop", "truncate", "split", "error"]


def fit(example: Example, encoded: Encoded, renderer: Renderer, limit: int, choice: OverlongChoice) -> list[Encoded]:
    """The rows of at most `limit` tokens that replace `encoded`, which has more; none when it is dropped."""
    if choice == "truncate":
        return _truncated(example, encoded, renderer, limit)
    if choice == "split" and example.text is not None:
        return [_cut(encoded, start, start + limit) for start in range(0, len(encoded.input_ids), limit)]
    return _split_turns(example, renderer, limit) if choice == "split" else []


def _cut(encoded: Encoded, start: int, end: int) -> Encoded:
    return Encoded(encoded.input_ids[start:end], encoded.labels[start:end], encoded.where)


def _truncated(example: Example, encoded: Encoded, renderer: Renderer, limit: int) -> list[Encoded]:
    """The row up to the last end of an answer that fits; plain text up to the limit."""
    if example.text is not None:
        return [_cut(encoded, 0, limit)]
    for position in reversed(range(limit)):
        if encoded.input_ids[position] in renderer.stop_ids and encoded.labels[position] != NO_LOSS:
            return [_cut(encoded, 0, position + 1)]
    return []


def _split_turns(example: Example, renderer: Renderer, limit: int) -> list[Encoded]:
    """Rows of whole exchanges, each with the system turn first; leaves out an exchange that is too long by itself."""
    system = [message for message in example.messages[:1] if message.role == "system"]
    turns = example.messages[len(system) :]
    starts = [index for index, message in enumerate(turns) if message.role == "user"]
    exchanges = [turns[start:end] for start, end in zip(starts, [*starts[1:], len(turns)], strict=True)]
    made: list[Encoded] = []
    waiting: tuple[Encoded, list[int]] | None = None
    for number in range(len(exchanges)):
        for first in (waiting[1][0], number) if waiting else (number,):
            chosen = list(range(first, number + 1))
            part = _encoded_part(example, [*system, *(m for n in chosen for m in exchanges[n])], renderer)
            if part is not None and len(part.input_ids) <= limit:
                waiting = (part, chosen)
                break
            if waiting is not None:
                made.append(waiting[0])
                waiting = None
    return [*made, waiting[0]] if waiting is not None else made


def _encoded_part(example: Example, messages: list, renderer: Renderer) -> Encoded | None:  # type: ignore[type-arg]
    if renderer.train_on != "all" and not any(message.role == "assistant" and message.trained for message in messages):
        return None  # nothing in this part carries loss
    try:
        return encode(replace(example, messages=tuple(messages)), renderer)
    except DataError:
        return None
