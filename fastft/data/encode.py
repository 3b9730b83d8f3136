"""Token ids and labels of examples, a batch at a time.

Rendering and tokenizing overlap: while the tokenizer's threads work on one batch, the next one is rendered.
"""

from __future__ import annotations

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
# The text of an example and its spans with loss, or why it has none.
_Drawn = tuple[str, list[Span]] | Problem


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it. input_ids and labels: (length,), labels are -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]
    where: Where

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss."""
        return len(self.labels) - self.labels.count(NO_LOSS)


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
            made.append(Encoded(encoding.ids, encoding.ids, example.where))
        elif not renderer.prompt_ids:
            made.append(_labelled(example, renderer, encoding, entry[1]))
        else:
            ids: list[int] = encoding.ids
            runs = _answers_by_tokens(example, renderer, ids)
            made.append(_by_offsets(example, renderer) if runs is None else _with_loss_on(ids, runs, example.where))
    return made


def _answers_by_tokens(example: Example, renderer: Renderer, ids: list[int]) -> list[Span] | None:
    """The token runs of the trained answers, each from behind a generation prompt to the token that ends the turn.

    The ids of the generation prompt begin with a control token, so that they stand only where the template wrote it. If
    there is not one for each answer, for instance because an answer's first letters share a token with it, None: then
    the characters must tell.
    """
    prompt = list(renderer.prompt_ids)
    answers = [message for message in example.messages if message.role == "assistant"]
    starts: list[int] = []
    at = _index(ids, prompt[0], 0)
    while at < len(ids):
        if ids[at : at + len(prompt)] == prompt:
            starts.append(at + len(prompt))
        at = _index(ids, prompt[0], at + 1)
    if len(starts) != len(answers):
        return None
    stops = [renderer.tokenizer.id_of(token) for token in renderer.end_of_turn]
    runs = []
    for start, limit, message in zip(starts, [*starts[1:], len(ids)], answers, strict=True):
        end = min(_index(ids, stop, start) for stop in stops if stop is not None)
        if end >= limit:
            return None
        if message.trained:
            runs.append((start, end + 1))
    return runs


def _index(ids: list[int], token: int, start: int) -> int:
    """Where `token` stands first from `start` on; the length of `ids` where it does not."""
    try:
        return ids.index(token, start)
    except ValueError:
        return len(ids)


def _by_offsets(example: Example, renderer: Renderer) -> Encoded | Problem:
    """The same from the characters, for one example."""
    drawn = _draw(example, renderer, with_spans=True)
    if isinstance(drawn, Problem):
        return drawn
    encoding = next(_tokenize([drawn], renderer, with_offsets=True))
    return _labelled(example, renderer, encoding, drawn[1])


def _labelled(example: Example, renderer: Renderer, encoding: Encoding, spans: list[Span]) -> Encoded | Problem:
    ids: list[int] = encoding.ids
    stops = {renderer.tokenizer.id_of(token) for token in renderer.end_of_turn}
    runs = []
    for start, end in spans:
        first, last = _token_at(encoding, start, 1, end), _token_at(encoding, end - 1, -1, start)
        if first is None or last is None or stops.isdisjoint(ids[first : last + 1]):
            wrong = f"a trained answer has no {renderer.end_of_turn[0]} with loss: the model would not learn to stop"
            return Problem(example.where, "", wrong, "put it inside the {% generation %} block of the template")
        runs.append((first, last + 1))
    return _with_loss_on(ids, runs, example.where)


def _with_loss_on(ids: list[int], runs: Sequence[Span], where: Where) -> Encoded:
    labels = [NO_LOSS] * len(ids)
    for start, end in runs:
        labels[start:end] = ids[start:end]
    return Encoded(ids, labels, where)


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
