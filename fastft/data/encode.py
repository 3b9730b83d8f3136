"""Token ids and labels of examples, a batch at a time.

Rendering and tokenizing overlap: while the tokenizer's threads work on one batch, the next one is rendered.
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
# In the bytes of labels, the one of each token that holds the sign, and what it says: 1 where a token carries loss.
_SIGN_BYTES = slice(3 if sys.byteorder == "little" else 0, None, 4)
_CARRIES_LOSS = bytes(byte < 128 for byte in range(256))
# The text of an example and its spans with loss, or why it has none.
_Drawn = tuple[str, list[Span]] | Problem


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it. input_ids and labels: (length,), int32; labels are -100 where there is no loss.

    Arrays, which are cut, compared and searched without a Python object for each token.
    """

    input_ids: array[int]
    labels: array[int]
    where: Where

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss."""
        return carries_loss(self.labels).count(1)


def carries_loss(labels: array[int]) -> bytes:
    """One byte a token: 1 where a label is a token, 0 where it is below 0, as -100 is."""
    return labels.tobytes()[_SIGN_BYTES].translate(_CARRIES_LOSS)


def labels_with_loss_on(ids: array[int], runs: Iterable[Span]) -> array[int]:
    """The labels of a row whose tokens carry loss in `runs`, each (start, end), and nowhere else."""
    labels = _NO_LOSS_TOKEN * len(ids)
    for start, end in runs:
        labels[start:end] = ids[start:end]
    return labels


def encode(example: Example, renderer: Renderer) -> Encoded:
    """The ids and labels of one example.

    Raises:
        DataError: the example cannot be rendered, or its loss mask cannot be proven right.
    """
    made = encode_batch([example], renderer)[0]
    if isinstance(made, Problem):
        raise DataError(made)
    return made


def encode_batch(examples: Sequence[Example], renderer: Renderer) -> list[Encoded | Problem]:
    """The ids and labels of each example, or why it has none."""
    return next(encode_batches([examples], renderer))


def encode_batches(batches: Iterable[Sequence[Example]], renderer: Renderer) -> Iterator[list[Encoded | Problem]]:
    """As `encode_batch`, for batch after batch; a thousand examples each are fastest."""
    with ThreadPoolExecutor(1) as pool:
        before: tuple[Sequence[Example], list[_Drawn], Future[Iterator[Encoding]]] | None = None
        for examples in batches:
            drawn = [_draw(example, renderer, with_spans=not renderer.prompt_ids) for example in examples]
            encodings = pool.submit(_tokenize, drawn, renderer, with_offsets=not renderer.prompt_ids)
            if before is not None:
                yield _finish(before[0], before[1], before[2].result(), renderer)
            before = examples, drawn, encodings
        if before is not None:
            yield _finish(before[0], before[1], before[2].result(), renderer)


def _draw(example: Example, renderer: Renderer, *, with_spans: bool) -> _Drawn:
    try:
        return render(example, renderer, with_spans=with_spans)
    except DataError as error:
        return error.problems[0]


def _tokenize(drawn: Sequence[_Drawn], renderer: Renderer, *, with_offsets: bool) -> Iterator[Encoding]:
    texts = [entry[0] for entry in drawn if not isinstance(entry, Problem)]
    tokenizer = renderer.tokenizer.tokenizer
    # The fast form leaves out where each token stands in the text, and takes a quarter less time.
    work = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
    return iter(work(texts, add_special_tokens=False))


def _finish(
    examples: Sequence[Example], drawn: Sequence[_Drawn], encodings: Iterator[Encoding], renderer: Renderer
) -> list[Encoded | Problem]:
    made: list[Encoded | Problem] = []
    for example, entry in zip(examples, drawn, strict=True):
        if isinstance(entry, Problem):
            made.append(entry)
            continue
        encoding = next(encodings)
        if renderer.train_on == "all" or example.text is not None:
            ids = array("i", encoding.ids)
            made.append(Encoded(ids, ids, example.where))
        elif not renderer.prompt_ids:
            made.append(_labelled(example, renderer, encoding, entry[1]))
        else:
            ids = array("i", encoding.ids)
            runs = _answers_by_tokens(example, renderer, ids)
            if runs is None:
                made.append(_by_offsets(example, renderer))
            else:
                made.append(Encoded(ids, labels_with_loss_on(ids, runs), example.where))
    return made


def _answers_by_tokens(example: Example, renderer: Renderer, ids: array[int]) -> list[Span] | None:
    """The token runs of the trained answers, each from behind a generation prompt to the token that ends the turn.

    The ids of the generation prompt begin with a control token, so that they stand only where the template wrote it. If
    there is not one for each answer, for instance because an answer's first letters share a token with it, None: then
    the characters must tell.
    """
    row = ids.tobytes()
    prompt = renderer.prompt_bytes
    answers = [message for message in example.messages if message.role == "assistant"]
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
    """Where `tokens` stand first in `row` from token `start` on; the number of its tokens where they do not.

    Both are the bytes of 32-bit ids: searching them takes a tenth of the time of comparing Python integers.
    """
    at = row.find(tokens, 4 * start)
    while at >= 0 and at % 4:  # begins within a token
        at = row.find(tokens, at + 1)
    return at // 4 if at >= 0 else len(row) // 4


def _by_offsets(example: Example, renderer: Renderer) -> Encoded | Problem:
    """The same from the characters, for one example."""
    drawn = _draw(example, renderer, with_spans=True)
    if isinstance(drawn, Problem):
        return drawn
    encoding = next(_tokenize([drawn], renderer, with_offsets=True))
    return _labelled(example, renderer, encoding, drawn[1])


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
    """The token over the character at `position`, or over the next one towards `limit` that any token covers.

    Some tokenizers leave white space out of their offsets.
    """
    while position != limit:
        token: int | None = encoding.char_to_token(position)
        if token is not None:
            return token
        position += step
    return None
