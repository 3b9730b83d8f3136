"""Token ids and labels of examples, in batches.

Rendering and tokenizing overlap: this renders the next batch while the tokenizer's threads work on one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastft.data.example import Example
from fastft.data.parts import Part, parts_of, split
from fastft.data.render import Renderer
from fastft.data.starts import SPLIT
from fastft.data.template import Span
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

NO_LOSS = -100
_NO_LOSS_TOKEN = array("i", [NO_LOSS])
# More than any word that a template ends a prompt with.
BORDER_CHARACTERS = 16
# The byte of each 32-bit label that contains its sign, and the translation of that byte: 1 where a token carries loss.
_SIGN_BYTES = slice(3 if sys.byteorder == "little" else 0, None, 4)
_CARRIES_LOSS = bytes(byte < 128 for byte in range(256))


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it. input_ids and labels: (length,), int32; labels are -100 where there is no loss.

    Arrays, because they slice, compare and search without a Python object for each token.
    """

    input_ids: array[int]
    labels: array[int]
    where: Where
    rejected_from: int | None = None
    """Of a pair, where the conversation with the rejected answer begins, behind that with the chosen one; 0 where the
    one answer is bad; None where nothing is rejected."""

    @property
    def texts(self) -> tuple[Encoded, ...]:
        """What the model sees: the two texts of a pair, or the row itself."""
        if not self.rejected_from:
            return (self,)
        cut = self.rejected_from
        return (
            Encoded(self.input_ids[:cut], self.labels[:cut], self.where),
            Encoded(self.input_ids[cut:], self.labels[cut:], self.where, 0),
        )

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss."""
        return carries_loss(self.labels).count(1)


# The rows of an example as text, or why it has none.
_Rendered = list[Part] | Problem
# The rows of an example, each with the part of the example that it is, or why it has none.
Made = list[tuple[Part, Encoded]] | Problem


def carries_loss(labels: array[int]) -> bytes:
    """One byte a token: 1 where its label is a token, 0 where it is negative, as -100 is."""
    return labels.tobytes()[_SIGN_BYTES].translate(_CARRIES_LOSS)


def labels_with_loss_on(ids: array[int], runs: Iterable[Span]) -> array[int]:
    """The labels of a row with loss only in `runs`, each (start, end)."""
    labels = _NO_LOSS_TOKEN * len(ids)
    for start, end in runs:
        labels[start:end] = ids[start:end]
    return labels


def encode(example: Example, renderer: Renderer) -> Encoded:
    """The ids and labels of an example as one row.

    Raises:
        DataError: the example cannot be rendered, its loss mask cannot be proven, or its answers need a row each.
    """
    whole = renderer if renderer.turns == "whole" else replace(renderer, turns="whole")
    (made,) = next(encode_batches([[example]], whole))
    if isinstance(made, Problem):
        raise DataError(made)
    ((_, encoded),) = made
    return encoded


def encode_batches(batches: Iterable[Sequence[Example]], renderer: Renderer) -> Iterator[list[Made]]:
    """The rows of each example, or why it has none; batches of a thousand examples are fastest."""
    with ThreadPoolExecutor(1) as pool:
        before: tuple[list[_Rendered], Future[Iterator[Encoding]]] | None = None
        for examples in batches:
            rendered = [_render(example, renderer) for example in examples]
            parts = [part for made in rendered if not isinstance(made, Problem) for part in made]
            encodings = pool.submit(_tokenize, parts, renderer, with_offsets=not renderer.prompt_ids)
            if before is not None:
                yield _finish(before[0], before[1].result(), renderer)
            before = rendered, encodings
        if before is not None:
            yield _finish(before[0], before[1].result(), renderer)


def _render(example: Example, renderer: Renderer) -> _Rendered:
    try:
        if not example.rejected:
            return parts_of(example, renderer)
        return [_one_part(side, renderer) for side in (example, replace(example, messages=example.rejected))]
    except DataError as error:
        return error.problems[0]


def _one_part(example: Example, renderer: Renderer) -> Part:
    """One side of a pair as one row.

    Raises:
        DataError: the template needs several.
    """
    parts = parts_of(example, renderer)
    if len(parts) > 1:
        wrong = "this chat template needs a row for each of several answers, and a pair is one"
        raise DataError(Problem(example.where, "", wrong, "end both sides with the first answer that differs"))
    return parts[0]


def _tokenize(parts: Sequence[Part], renderer: Renderer, *, with_offsets: bool) -> Iterator[Encoding]:
    tokenizer = renderer.tokenizer.tokenizer
    # The fast form leaves out the offsets of the tokens and takes a quarter less time.
    work = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
    return iter(work([part.text for part in parts], add_special_tokens=False))


def _finish(rendered: Sequence[_Rendered], encodings: Iterator[Encoding], renderer: Renderer) -> list[Made]:
    return [
        made if isinstance(made, Problem) else _judged(_rows(made, [next(encodings) for _ in made], renderer))
        for made in rendered
    ]


def _judged(made: Made) -> Made:
    """The two texts of a pair as one row, and a bad answer marked as one."""
    if isinstance(made, Problem):
        return made
    part, encoded = made[0]
    if part.example.is_bad:
        return [(part, replace(row, rejected_from=0)) for part, row in made]
    if not part.example.rejected:
        return made
    rejected = made[1][1]
    start = _prompt_length(encoded)
    if start != _prompt_length(rejected) or encoded.input_ids[:start] != rejected.input_ids[:start]:
        wrong = "the chat template writes another prompt before the rejected answer than before the chosen one"
        return Problem(encoded.where, "rejected", wrong, "use another template")
    ids, labels = encoded.input_ids + rejected.input_ids, encoded.labels + rejected.labels
    dropped = part.dropped | made[1][0].dropped
    return [(replace(part, dropped=dropped), Encoded(ids, labels, encoded.where, len(encoded.input_ids)))]


def _prompt_length(row: Encoded) -> int:
    """How many tokens stand before the first one with loss."""
    return carries_loss(row.labels).find(1)


def _rows(parts: list[Part], encodings: Sequence[Encoding], renderer: Renderer) -> Made:
    try:
        return [(part, _row(part, encoding, renderer)) for part, encoding in zip(parts, encodings, strict=True)]
    except DataError as error:
        example = parts[0].example
        if len(parts) > 1 or renderer.turns != "auto" or example.text is not None or len(parts[0].spans) < 2:
            return error.problems[0]
        parts = split(example, renderer)
        return _rows(parts, list(_tokenize(parts, renderer, with_offsets=True)), renderer)


def _row(part: Part, encoding: Encoding, renderer: Renderer) -> Encoded:
    """The ids and labels of one part.

    Raises:
        DataError: an answer has no token to itself, or shares one with its prompt.
    """
    ids = array("i", encoding.ids)
    where = part.example.where
    if renderer.train_on == "all" or part.example.text is not None:
        return Encoded(ids, ids, where)
    if renderer.prompt_ids:
        runs = _answers_by_tokens(part.example, renderer, ids) if part.plain else None
        if runs is not None:
            return Encoded(ids, labels_with_loss_on(ids, runs), where)
        encoding = next(_tokenize([part], renderer, with_offsets=True))
    return _labelled(part, renderer, encoding)


def _answers_by_tokens(example: Example, renderer: Renderer, ids: array[int]) -> list[Span] | None:
    """The token runs of the trained answers, each from the end of a generation prompt to the token that ends the turn.

    The ids of the generation prompt begin with a control token, so that they occur only where the template wrote it.
    None when the row does not have one for each answer, for example because an answer's first letters share a token
    with it; `_labelled` then finds the answers by their characters.
    """
    row = ids.tobytes()
    prompt = renderer.prompt_bytes
    answers = [example.messages[number] for number in example.answers]
    starts: list[int] = []
    at = _find(row, prompt, 0)
    while at < len(ids):
        starts.append(at + len(renderer.prompt_ids))
        at = _find(row, prompt, at + 1)
    if len(starts) != len(answers):
        return None
    runs = []
    for start, limit, message in zip(starts, [*starts[1:], len(ids)], answers, strict=True):
        end = min(_find(row, stop, start) for stop in renderer.stop_bytes)
        if end >= limit:
            return None
        if message.trained:
            runs.append((start, end + 1))
    return runs


def _find(row: bytes, tokens: bytes, start: int) -> int:
    """The position of the first `tokens` in `row` from token `start` on; the number of its tokens if there is none.

    Both are the bytes of 32-bit ids: a search in bytes takes a tenth of the time of comparing Python integers.
    """
    at = row.find(tokens, 4 * start)
    while at >= 0 and at % 4:  # begins within a token
        at = row.find(tokens, at + 1)
    return at // 4 if at >= 0 else len(row) // 4


def _labelled(part: Part, renderer: Renderer, encoding: Encoding) -> Encoded:
    """The ids and labels of one part, whose answers are found by their characters.

    Raises:
        DataError: a trained answer has no end token, or shares a token with its prompt.
    """
    ids, where = array("i", encoding.ids), part.example.where
    runs = []
    for start, end in part.spans:
        first, last = _token_at(encoding, start, 1, end), _token_at(encoding, end - 1, -1, start)
        if first is None or last is None or renderer.stop_ids.isdisjoint(ids[first : last + 1]):
            wrong = f"a trained answer has no {renderer.end_of_turn[0]} with loss: the model would not learn to stop"
            raise DataError(Problem(where, "", wrong, "put it inside the {% generation %} block of the template"))
        if not _begins_as_asked(part.text, encoding, ids, (first, start), renderer):
            return _joined(part, renderer)
        runs.append((first, last + 1))
    return Encoded(ids, labels_with_loss_on(ids, runs), where)


def _begins_as_asked(text: str, encoding: Encoding, ids: array[int], answer: Span, renderer: Renderer) -> bool:
    """Whether the prompt before `answer`, (its first token, its first character), alone has the tokens it has here.

    What joins two texts into one token stands near their border, so that one comparison serves for equal ones.
    """
    first, start = answer
    place = encoding.token_to_chars(first)
    border = text[max(0, start - BORDER_CHARACTERS) : start + 2]
    if place is not None and place[0] == start and border in renderer.proven_borders:
        return True
    at = first - 1
    while at >= 0 and ids[at] not in renderer.special_ids:
        at -= 1
    before = encoding.token_to_chars(at) if at >= 0 else None
    begin = before[0] if before else 0
    tail = renderer.tokenizer.tokenizer.encode(text[begin:start], add_special_tokens=False).ids
    same: bool = ids[max(at, 0) : first].tolist() == tail
    if same:
        renderer.proven_borders.add(border)
    return same


def _joined(part: Part, renderer: Renderer) -> Encoded:
    """The ids and labels of a part with one trained answer: those of its prompt, then those of its answer.

    Raises:
        DataError: the part has more answers, or its answer alone has other text.
    """
    ((start, end), *others), tokenizer = part.spans, renderer.tokenizer.tokenizer
    wrong = "the white space between prompt and answer shares a token with the answer, which no model is asked with"
    if others:
        raise DataError(Problem(part.example.where, "", wrong, SPLIT))
    pieces = (part.text[:start], part.text[start:end], part.text[end:])
    prompt, answer, rest = (tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces)
    ids = array("i", [*prompt, *answer, *rest])
    if tokenizer.decode(ids.tolist(), skip_special_tokens=False) != _decoded_whole(part.text, tokenizer):
        raise DataError(Problem(part.example.where, "", wrong, "remove white space from the beginning of the answer"))
    run = (len(prompt), len(prompt) + len(answer))
    return Encoded(ids, labels_with_loss_on(ids, [run]), part.example.where)


def _decoded_whole(text: str, tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    decoded: str = tokenizer.decode(ids, skip_special_tokens=False)
    return decoded


def _token_at(encoding: Encoding, position: int, step: int, limit: int) -> int | None:
    """The token at the character `position`, or at the next character towards `limit` that has one.

    Some tokenizers leave white space out of their offsets.
    """
    while position != limit:
        token: int | None = encoding.char_to_token(position)
        if token is not None:
            return token
        position += step
    return None
