"""Token ids and labels of examples, in batches.

Rendering and tokenizing overlap: this renders the next batch while the tokenizer's threads work on one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastft.data.example import Example
from fastft.data.render import Renderer, render
from fastft.data.template import Span
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from tokenizers import Encoding

NO_LOSS = -100
_NO_LOSS_TOKEN = array("i", [NO_LOSS])
# The byte of each 32-bit label that contains its sign, and the translation of that byte: 1 where a token carries loss.
_SIGN_BYTES = slice(3 if sys.byteorder == "little" else 0, None, 4)
_CARRIES_LOSS = bytes(byte < 128 for byte in range(256))
# The text of an example and its spans with loss, or why it has none.
_Rendered = tuple[str, list[Span]] | Problem


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it. input_ids and labels: (length,), int32; labels are -100 where there is no loss.

    Arrays, because they slice, compare and search without a Python object for each token.
    """

    input_ids: array[int]
    labels: array[int]
    where: Where

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss."""
        return carries_loss(self.labels).count(1)


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
    """The ids and labels of one example.

    Raises:
        DataError: the example cannot be rendered, or its loss mask cannot be proven.
    """
    (made,) = next(encode_batches([[example]], renderer))
    if isinstance(made, Problem):
        raise DataError(made)
    return made


def encode_batches(batches: Iterable[Sequence[Example]], renderer: Renderer) -> Iterator[list[Encoded | Problem]]:
    """The ids and labels of each example, or why it has none; batches of a thousand examples are fastest."""
    with ThreadPoolExecutor(1) as pool:
        before: tuple[Sequence[Example], list[_Rendered], Future[Iterator[Encoding]]] | None = None
        for examples in batches:
            rendered = [_render(example, renderer, with_spans=not renderer.prompt_ids) for example in examples]
            encodings = pool.submit(_tokenize, rendered, renderer, with_offsets=not renderer.prompt_ids)
            if before is not None:
                yield _finish(before[0], before[1], before[2].result(), renderer)
            before = examples, rendered, encodings
        if before is not None:
            yield _finish(before[0], before[1], before[2].result(), renderer)


def _render(example: Example, renderer: Renderer, *, with_spans: bool) -> _Rendered:
    try:
        return render(example, renderer, with_spans=with_spans)
    except DataError as error:
        return error.problems[0]


def _tokenize(rendered: Sequence[_Rendered], renderer: Renderer, *, with_offsets: bool) -> Iterator[Encoding]:
    texts = [entry[0] for entry in rendered if not isinstance(entry, Problem)]
    tokenizer = renderer.tokenizer.tokenizer
    # The fast form leaves out the offsets of the tokens and takes a quarter less time.
    work = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
    return iter(work(texts, add_special_tokens=False))


def _finish(
    examples: Sequence[Example], rendered: Sequence[_Rendered], encodings: Iterator[Encoding], renderer: Renderer
) -> list[Encoded | Problem]:
    made: list[Encoded | Problem] = []
    for example, entry in zip(examples, rendered, strict=True):
        if isinstance(entry, Problem):
            made.append(entry)
            continue
        encoding = next(encodings)
        ids = array("i", encoding.ids)
        if renderer.train_on == "all" or example.text is not None:
            made.append(Encoded(ids, ids, example.where))
        elif not renderer.prompt_ids:
            made.append(_labelled(example, renderer, encoding, entry[1]))
        elif (runs := _answers_by_tokens(example, renderer, ids)) is None:
            made.append(_by_offsets(example, renderer))
        else:
            made.append(Encoded(ids, labels_with_loss_on(ids, runs), example.where))
    return made


def _answers_by_tokens(example: Example, renderer: Renderer, ids: array[int]) -> list[Span] | None:
    """The token runs of the trained answers, each from the end of a generation prompt to the token that ends the turn.

    The ids of the generation prompt begin with a control token, so that they occur only where the template wrote it.
    None when the row does not have one for each answer, for example because an answer's first letters share a token
    with it; `_by_offsets` then finds the answers by their characters.
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


def _by_offsets(example: Example, renderer: Renderer) -> Encoded | Problem:
    """One example with its answers found by their characters."""
    rendered = _render(example, renderer, with_spans=True)
    if isinstance(rendered, Problem):
        return rendered
    encoding = next(_tokenize([rendered], renderer, with_offsets=True))
    return _labelled(example, renderer, encoding, rendered[1])


def _labelled(example: Example, renderer: Renderer, encoding: Encoding, spans: list[Span]) -> Encoded | Problem:
    ids = array("i", encoding.ids)
    runs = []
    for start, end in spans:
        first, last = _token_at(encoding, start, 1, end), _token_at(encoding, end - 1, -1, start)
        if first is None or last is None or renderer.stop_ids.isdisjoint(ids[first : last + 1]):
            wrong = f"a trained answer has no {renderer.end_of_turn[0]} with loss: the model would not learn to stop"
            return Problem(example.where, "", wrong, "put it inside the {% generation %} block of the template")
        runs.append((first, last + 1))
    return Encoded(ids, labels_with_loss_on(ids, runs), example.where)


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
