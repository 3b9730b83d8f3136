"""Turn an example into the rows that are trained, each proven: nothing lost, and each answer behind its own prompt.

A conversation is one row where its text begins with the prompt that each trained answer is asked with. Where the
template writes earlier turns differently once the conversation goes on, it is one row for each answer ("split"), which
ends there: the model then sees exactly what it will be asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fastft.data.content import lost_of, ordered_texts, stands, strange_in, thought_and_text, tools_stand
from fastft.data.example import Example, Message
from fastft.data.render import Renderer, first_of, rendered
from fastft.data.starts import SPLIT, marked_starts, starts_of
from fastft.data.template import Span
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem

# What to do where the template leaves out a part of a row.
_INSTEAD = {
    "text": "change the row, or use a template that writes it",
    "calls": "use a template that writes calls as well, or put text and calls into two messages",
    "reasoning": 'use a template that writes reasoning_content, or allow it: data.may_drop = ["reasoning"]',
    "history_reasoning": f'{SPLIT}, or allow it: data.may_drop = ["history_reasoning"]',
    "tools": 'use a template that writes tools, or allow it: data.may_drop = ["tools"]',
    "system": "write it into the first question, or use a template with system texts",
}
_NAMES = {"calls": "a tool call", "history_reasoning": "the reasoning", "system": "the text"}


# What a row may lack, after "is" or "are": data.may_drop allows it, or the model is asked without it.
DROPPED = {
    "history_reasoning": "without the reasoning of earlier turns, which the chat template leaves out",
    "reasoning": "without reasoning, which the chat template does not write (data.may_drop)",
    "tools": "without tools, which the chat template does not write (data.may_drop)",
    "mask": "chats in a text column: all of their tokens carry loss, questions too",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One row: its example, its text, the spans of text that carry loss, and what the template left out as allowed."""

    example: Example
    text: str
    spans: Sequence[Span] = ()
    dropped: frozenset[str] = frozenset()
    # Whether each answer is what stands between a generation prompt and the first end token.
    plain: bool = False


def parts_of(example: Example, renderer: Renderer) -> list[Part]:
    """The rows that `example` becomes under the renderer's `train_on` and `turns`.

    Raises:
        DataError: the template refuses the example, leaves a part of it out, or asks for an answer with another prompt
            than it writes before it.
    """
    if example.text is not None:
        return [_with_bos(_plain_text(example, example.text, renderer), renderer)]
    if renderer.template is None:
        raise DataError(Problem(example.where, "", "a conversation needs a chat template", "set data.chat_template"))
    _refuse_control_tokens(example, renderer.tokenizer)
    if renderer.train_on == "all":
        return [_with_bos(_all_trained(example, renderer), renderer)]
    if renderer.train_on == "last":
        return [_row(example, example.answers[-1], renderer)]
    return _trained_parts(example, renderer)


def _plain_text(example: Example, text: str, renderer: Renderer) -> Part:
    """The text with the token that ends it. One with that token before its end is a chat, of which all is trained."""
    end = renderer.tokenizer.end_of_text
    if not end:
        return Part(example, text)
    ended = text.rstrip().endswith(end)
    dropped = frozenset({"mask"} if text.count(end) > ended else ())
    return Part(example, text if ended else text + end, dropped=dropped)


def _trained_parts(example: Example, renderer: Renderer) -> list[Part]:
    trained = [number for number in example.answers if example.messages[number].trained]
    if renderer.turns == "split" and len(trained) > 1:
        return split(example, renderer)
    try:
        return [_with_bos(_proven(example, renderer), renderer)]
    except DataError as error:
        if trained == [len(example.messages) - 1] and len(example.answers) == 1:
            raise
        parts = split(example, renderer)
        if renderer.turns == "auto":
            return parts
        problem = error.problems[0]
        raise DataError(problem if "may_drop" in problem.instead else replace(problem, instead=SPLIT)) from error


def split(example: Example, renderer: Renderer) -> list[Part]:
    """One row for each trained answer, which ends there."""
    return [_row(example, number, renderer) for number in example.answers if example.messages[number].trained]


def _row(example: Example, number: int, renderer: Renderer) -> Part:
    """The conversation up to answer `number`, of which only this answer is trained."""
    answer = example.messages[number]
    if not answer.trained:
        wrong = "the last answer has weight 0, and only the last one is trained"
        raise DataError(Problem(example.where, example.place(number), wrong, 'set data.train_on = "assistant"'))
    before = (replace(message, trained=False) for message in example.messages[:number])
    return _with_bos(_proven(replace(example, messages=(*before, answer)), renderer), renderer)


def _all_trained(example: Example, renderer: Renderer) -> Part:
    text = rendered(example, renderer, len(example.messages))
    dropped = _check_others(example, renderer, [text], [])
    return Part(example, text, dropped=frozenset(dropped))


def _proven(example: Example, renderer: Renderer) -> Part:
    """The example as one row, with the span of each trained answer; the words of no one else lie in a span."""
    trained = [number for number in example.answers if example.messages[number].trained]
    assert renderer.template is not None  # noqa: S101 -- parts_of has checked it
    if renderer.template.marks_answers:
        text, marked = renderer.template.render_marked(example, renderer.tokenizer.template_tokens)
        starts, limits = marked_starts(example, renderer, text, marked, trained)
        plain = False
    else:
        text = rendered(example, renderer, len(example.messages))
        text, starts, plain = starts_of(example, renderer, text, trained)
        limits = [*starts[1:], len(text)]
    spans: list[Span] = []
    dropped: set[str] = set()
    for number, start, limit in zip(trained, starts, limits, strict=True):
        first, end = _ends(example.messages[number], renderer, text, start, limit)
        if end is None and renderer.closing and number == len(example.messages) - 1:
            text = text.rstrip() + renderer.closing
            limit = len(text)
            first, end = _ends(example.messages[number], renderer, text, start, limit)
        if end is None or end > limit:
            raise DataError(_endless(example, renderer, number))
        plain = plain and first == end
        spans.append((start, end))
        dropped |= _lost(example, renderer, number, text[start:end])
        strange = strange_in(text[start:end], example.messages[number], example.messages)
        if strange is not None:
            wrong = f"the chat template writes the text of the {strange.role} message into this answer"
            raise DataError(Problem(example.where, example.place(number), wrong, "use another template"))
    pieces = [text[end:start] for end, start in zip((0, *(end for _, end in spans)), (*starts, None), strict=True)]
    dropped |= _check_others(example, renderer, pieces, trained)
    return Part(example, text, spans, frozenset(dropped), plain)


def _lost(example: Example, renderer: Renderer, number: int, piece: str) -> set[str]:
    """What the template left out, as allowed, of a trained message that should stand in `piece`.

    Reasoning that the template writes as long as the answer is the last one is left out on purpose.

    Raises:
        DataError: it left out something else.
    """
    lost = lost_of(example.messages[number], piece)
    if lost is None:
        return set()
    if lost == "reasoning" and number < len(example.messages) - 1:
        reasoning, _ = thought_and_text(example.messages[number])
        if stands(reasoning, rendered(example, renderer, number + 1)):
            return {_allowed("history_reasoning", example, renderer, number)}
    return {_allowed(lost, example, renderer, number)}


def _endless(example: Example, renderer: Renderer, number: int) -> Problem:
    field, stop = example.place(number), renderer.end_of_turn[0]
    if renderer.template is not None and renderer.template.marks_answers:
        wrong = f"the answer has no {stop} with loss: the model would not learn to stop"
        return Problem(example.where, field, wrong, "put it inside the {% generation %} block of the template")
    wrong = f"the template writes no {stop} after this answer: the model would not learn to stop"
    return Problem(example.where, field, wrong, "use a template that ends every answer")


def _ends(message: Message, renderer: Renderer, text: str, start: int, limit: int) -> tuple[int | None, int | None]:
    """Behind the first end token after `start`, and behind the first one after all that the answer holds."""
    cursor = start
    for part in ordered_texts(message):
        at = text.find(part, cursor, limit)
        at = text.find(part, start, limit) if at < 0 else at
        cursor = max(cursor, at + len(part)) if at >= 0 else cursor
    first = first_of(text, renderer.end_of_turn, start)
    end = first if first is None or first[0] >= cursor else first_of(text, renderer.end_of_turn, cursor)
    return first[1] if first else None, end[1] if end else None


def _check_others(example: Example, renderer: Renderer, pieces: list[str], trained: list[int]) -> set[str]:
    """What the template left out as allowed of all but the trained answers, which stand between `pieces`.

    Raises:
        DataError: it left out, or moved, something else.
    """
    dropped: set[str] = set()
    passed = 0
    for number, message in enumerate(example.messages):
        if passed < len(trained) and number == trained[passed]:
            passed += 1
            continue
        lost = lost_of(message, pieces[passed])
        if lost is None:
            continue
        if message.role == "system":
            if not any(stands(message.content, piece) for piece in pieces):
                dropped.add(_allowed("system", example, renderer, number))
        elif lost == "reasoning" and not message.trained:  # the model is asked without it too
            dropped.add("history_reasoning")
        else:
            dropped |= _lost(example, renderer, number, pieces[passed])
    if example.tools and not any(tools_stand(example.tools, piece) for piece in pieces):
        dropped.add(_allowed("tools", example, renderer, None))
    return dropped


def _allowed(lost: str, example: Example, renderer: Renderer, number: int | None) -> str:
    """`lost` where data.may_drop allows it.

    Raises:
        DataError: it does not.
    """
    if lost in renderer.may_drop:
        return lost
    of = "" if number is None else f" of this {example.messages[number].role} message"
    what = _NAMES.get(lost, f"the {lost}")
    name = renderer.template.name if renderer.template else ""
    where = "" if lost != "history_reasoning" else " once the conversation goes on"
    wrong = f"the chat template leaves out, or moves, {what}{of}{where}"
    field = lost if number is None else example.place(number)
    raise DataError(Problem(example.where, field, wrong, _INSTEAD[lost], got=name))


def _with_bos(part: Part, renderer: Renderer) -> Part:
    """The part with the BOS token where the model needs one and the text does not begin with it."""
    bos = renderer.missing_bos(part.text)
    if not bos:
        return part
    return replace(part, text=bos + part.text, spans=[(start + len(bos), end + len(bos)) for start, end in part.spans])


def _refuse_control_tokens(example: Example, facts: TokenizerFacts) -> None:
    """Raise DataError where the text of a message or tool would become a control token."""
    for number, message in enumerate(example.messages):
        _refuse_forged(message.content, example, facts, example.place(number))
        if message.extra:
            _refuse_forged(json.dumps(message.extra, ensure_ascii=False), example, facts, example.place(number))
    if example.tools:
        _refuse_forged(json.dumps(example.tools, ensure_ascii=False), example, facts, "tools")


def _refuse_forged(text: str, example: Example, facts: TokenizerFacts, field: str) -> None:
    if not _contains_any(text, facts.special_letters) or not _contains_any(text, facts.special_openings):
        return
    forged = first_of(text, tuple(facts.special_tokens.difference(facts.added)), 0)
    if forged is not None:
        wrong = f"the text contains {text[forged[0] : forged[1]]}, which this tokenizer reads as a control token"
        raise DataError(Problem(example.where, field, wrong, "remove it, or write it with a space inside"))


def _contains_any(text: str, parts: Iterable[str]) -> bool:
    # A loop, because any() over a generator takes three times as long, and this checks every message.
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False
