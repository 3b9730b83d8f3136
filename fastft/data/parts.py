"""Turn an example into the rows that are trained, each proven: nothing lost, and each answer behind its own prompt.

A conversation is one row where its text begins with the prompt that each trained answer is asked with. Where the
template writes earlier turns differently once the conversation goes on, it is one row for each answer ("split"), which
ends there: the model then sees exactly what it will be asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fastft.data.content import lost_of, ordered_texts, stands, thought_and_text, tools_stand
from fastft.data.example import Example, Message
from fastft.data.render import Renderer, first_of, prompt_text, rendered
from fastft.data.template import Span
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem

# A prompt that ends in an opened think block.
_OPENED = re.compile(r"([<\[◁][\w:]*think(?:ing)?[>\]▷]|<\|START_THINKING\|>)(\s*)$", re.IGNORECASE)
SPLIT = 'set data.turns = "split" (one row an answer), or data.train_on = "last"'
# What to do where the template leaves out a part of a row.
_INSTEAD = {
    "text": "change the row, or use a template that writes it",
    "calls": "use a template that writes calls as well, or put text and calls into two messages",
    "reasoning": 'use a template that writes reasoning_content, or allow it: data.may_drop = ["reasoning"]',
    "history_reasoning": f'{SPLIT}, or allow it: data.may_drop = ["history_reasoning"]',
    "tools": 'use a template that writes tools, or allow it: data.may_drop = ["tools"]',
    "system": "write it into the first question, or use a template with system texts",
}
_NAMES = {"calls": "a tool call", "history_reasoning": "the reasoning", "reasoning": "the reasoning"}


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
        end = renderer.tokenizer.end_of_text
        text = example.text + (end if end and not example.text.endswith(end) else "")
        return [_with_bos(Part(example, text), renderer)]
    if renderer.template is None:
        raise DataError(Problem(example.where, "", "a conversation needs a chat template", "set data.chat_template"))
    _refuse_control_tokens(example, renderer.tokenizer)
    if renderer.train_on == "all":
        return [_with_bos(_all_trained(example, renderer), renderer)]
    if renderer.train_on == "last":
        return [_row(example, example.answers[-1], renderer)]
    return _trained_parts(example, renderer)


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
        raise DataError(Problem(example.where, _field(example, number), wrong, 'set data.train_on = "assistant"'))
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
        starts, limits = _marked_starts(example, renderer, text, marked, trained)
        plain = False
    else:
        text = rendered(example, renderer, len(example.messages))
        text, starts, plain = _starts(example, renderer, text, trained)
        limits = [*starts[1:], len(text)]
    spans: list[Span] = []
    dropped: set[str] = set()
    for number, start, limit in zip(trained, starts, limits, strict=True):
        first, end = _ends(example.messages[number], renderer, text, start, limit)
        if end is None and renderer.closing and number == len(example.messages) - 1:
            text = text.rstrip() + renderer.closing
            limit = len(text)
            first, end = _ends(example.messages[number], renderer, text, start, limit)
        plain = plain and first == end
        if end is None or end > limit:
            raise DataError(_endless(example, renderer, number))
        spans.append((start, end))
        lost = lost_of(example.messages[number], text[start:end])
        if lost is not None:
            dropped.add(_allowed(_lost_kind(example, renderer, number, lost), example, renderer, number))
    pieces = [text[end:start] for end, start in zip((0, *(end for _, end in spans)), (*starts, None), strict=True)]
    dropped |= _check_others(example, renderer, pieces, trained)
    return Part(example, text, spans, frozenset(dropped), plain)


def _endless(example: Example, renderer: Renderer, number: int) -> Problem:
    field, stop = _field(example, number), renderer.end_of_turn[0]
    if renderer.template is not None and renderer.template.marks_answers:
        wrong = f"the answer has no {stop} with loss: the model would not learn to stop"
        return Problem(example.where, field, wrong, "put it inside the {% generation %} block of the template")
    wrong = f"the template writes no {stop} after this answer: the model would not learn to stop"
    return Problem(example.where, field, wrong, "use a template that ends every answer")


def _lost_kind(example: Example, renderer: Renderer, number: int, lost: str) -> str:
    """Reasoning that the template writes as long as the answer is the last one is left out on purpose."""
    if lost != "reasoning" or number == len(example.messages) - 1:
        return lost
    alone = rendered(example, renderer, number + 1)
    reasoning, _ = thought_and_text(example.messages[number])
    return "history_reasoning" if stands(reasoning, alone) else lost


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
        if lost is None or (message.role == "system" and any(stands(message.content, piece) for piece in pieces)):
            continue
        if message.role != "assistant":
            dropped.add(_allowed(lost if message.role != "system" else "system", example, renderer, number))
        elif lost == "reasoning" and not message.trained:  # the model is asked without it too
            dropped.add("history_reasoning")
        else:
            dropped.add(_allowed(_lost_kind(example, renderer, number, lost), example, renderer, number))
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
    what = _NAMES.get(lost, f"the {lost}" if number is None or lost == "text" else f"the {lost} text")
    name = renderer.template.name if renderer.template else ""
    where = "" if lost != "history_reasoning" else " once the conversation goes on"
    wrong = f"the chat template leaves out, or moves, {what}{of}{where}"
    field = lost if number is None else _field(example, number)
    raise DataError(Problem(example.where, field, wrong, _INSTEAD[lost], got=name))


def _starts(example: Example, renderer: Renderer, text: str, trained: list[int]) -> tuple[str, list[int], bool]:
    """The text, where each trained answer begins in it, and whether that is behind each of its generation prompts.

    An answer begins where its prompt ends, and the text must begin with the prompt. Rendering each prompt costs as much
    as the row again: where the generation prompt is a control token that only the template can write, this is done for
    the first row of each shape, and the others are searched for the generation prompt.
    """
    found: list[int] = []
    shape = None
    if renderer.prompt_ids:
        at = text.find(renderer.generation_prompt)
        while at >= 0:
            found.append(at + len(renderer.generation_prompt))
            at = text.find(renderer.generation_prompt, found[-1])
        if len(found) == len(example.answers):
            shape = _shape(example, renderer)
            found = [at for at, number in zip(found, example.answers, strict=True) if number in trained]
            if shape in renderer.proven_shapes:
                return text, found, True
    starts = []
    for number in trained:
        prompt = prompt_text(example, renderer, number)
        if not text.startswith(prompt):
            text = _behind_prompt(example, renderer, prompt, text, number)
            shape = None
        starts.append(len(prompt))
    if shape is not None and starts == found:
        renderer.proven_shapes.add(shape)
        return text, starts, True
    return text, starts, False


def _behind_prompt(example: Example, renderer: Renderer, prompt: str, text: str, number: int) -> str:
    """The prompt, and the answer as `text` has it behind the last question.

    Raises:
        DataError: more follows the answer, or `text` has no such answer.
    """
    field, more = _field(example, number), renderer.asked_more
    if number < len(example.messages) - 1:
        if more and prompt.endswith(more):
            wrong = f"the template asks for this answer with {more!r}, which it does not write before an answer"
        else:
            wrong = "the template writes the text before this answer differently with and without it"
        system = example.messages[0].content.strip() if example.messages[0].role == "system" else ""
        if system and prompt.rfind(system) > text.find(system):
            wrong += ", as it moves the system text to the last question"
        raise DataError(Problem(example.where, field, f"{wrong}, so its start is unclear", SPLIT))
    question = example.messages[number - 1].content.strip()
    for asked in (question, json.dumps(question, ensure_ascii=False)[1:-1]):
        behind = prompt[prompt.rfind(asked) + len(asked) :]
        at = text.find(behind, text.rfind(asked) + len(asked)) if asked in prompt and asked in text else -1
        shared = behind.removesuffix(more) if more else behind
        if at < 0 and more and shared != behind:
            at = text.find(shared, text.rfind(asked) + len(asked))
            if at == text.rfind(asked) + len(asked):
                return _behind_more(example, prompt, text[at + len(shared) :], number)
        elif at >= 0 and at == text.rfind(asked) + len(asked):
            return prompt + text[at + len(behind) :]
    wrong = "the template writes the text before this answer differently with and without it, so its start is unclear"
    instead = "use a template that writes a question in the same way with and without its answer"
    raise DataError(Problem(example.where, field, wrong, instead))


def _behind_more(example: Example, prompt: str, rest: str, number: int) -> str:
    """The text of a row whose prompt ends in a think block that the template leaves out before a given answer.

    The answer first closes the block, with its reasoning in it where it has some.
    """
    reasoning, _ = thought_and_text(example.messages[number])
    opened = _OPENED.search(prompt)
    if opened is None:
        if reasoning:
            wrong = "the template asks for answers without reasoning, and this answer has some"
            instead = 'remove it, or use a template that asks for reasoning, such as chat_template = "qwen3"'
            raise DataError(Problem(example.where, _field(example, number), wrong, instead))
        return prompt + rest.lstrip()
    begins = rest.lstrip()
    if begins.startswith(opened[1]):  # the template writes the block, with other white space
        return prompt + begins[len(opened[1]) :].lstrip("\n")
    if reasoning and stands(reasoning, rest):
        wrong = "the template writes this reasoning, but not behind the prompt that it asks with"
        raise DataError(Problem(example.where, _field(example, number), wrong, "use another template"))
    line = "" if "\n" in opened[2] else "\n"
    if opened[1] == "<|START_THINKING|>":
        return f"{prompt}{reasoning}<|END_THINKING|>{begins}"
    return f"{prompt}{line}{reasoning}\n{opened[1][0]}/{opened[1][1:]}\n\n{begins}"


def _marked_starts(
    example: Example, renderer: Renderer, text: str, marked: list[Span], trained: list[int]
) -> tuple[list[int], list[int]]:
    """Where the template's own `{% generation %}` blocks of the trained answers begin and end.

    A block may begin after white space that the format puts before an answer.
    """
    if len(marked) != len(example.answers):
        wrong = f"the template marks {len(marked)} generated parts for {len(example.answers)} assistant turns"
        raise DataError(Problem(example.where, "", wrong, "put one {% generation %} block around each answer"))
    starts, limits = [], []
    for (start, end), number in zip(marked, example.answers, strict=True):
        if number not in trained:
            continue
        prompt = prompt_text(example, renderer, number)
        asked = len(prompt)
        if not text.startswith(prompt):
            _behind_prompt(example, renderer, prompt, text, number)
            wrong = "the template asks for this answer with another prompt than it writes before it"
            raise DataError(Problem(example.where, _field(example, number), wrong, "correct the template"))
        opens = start < asked and _OPENED.search(text[start:asked])
        if (start < asked and not opens) or text[asked:start].strip():
            shift = start - asked
            side = f"{-shift} characters before" if shift < 0 else f"{shift} characters after"
            wrong = f"the {{% generation %}} block begins {side} the end of its prompt"
            raise DataError(
                Problem(example.where, _field(example, number), wrong, "begin it right after the generation prompt")
            )
        starts.append(asked)
        limits.append(end)
    return starts, limits


def _shape(example: Example, renderer: Renderer) -> object:
    """What a template can see of a row besides the words: which kinds of messages follow which.

    Two rows of one shape are framed in the same way, so that one proof serves for both. Words that the template asks
    for, such as </think>, are part of the shape.
    """
    kinds = [_kind(message, renderer.markers) for message in example.messages]
    return frozenset(pairwise(kinds)), tuple(kinds[:2]), tuple(kinds[-2:]), bool(example.tools)


def _kind(message: Message, markers: Sequence[str]) -> object:
    words = tuple([marker for marker in markers if marker in message.content])
    extra = tuple([(name, bool(value)) for name, value in message.extra.items()]) if message.extra else ()
    return message.role, message.trained, not message.content, words, extra


def _field(example: Example, number: int) -> str:
    return f"message {number + 1} ({example.messages[number].role})"


def _with_bos(part: Part, renderer: Renderer) -> Part:
    """The part with the BOS token where the model needs one and the text does not begin with it."""
    bos = renderer.missing_bos(part.text)
    if not bos:
        return part
    return replace(part, text=bos + part.text, spans=[(start + len(bos), end + len(bos)) for start, end in part.spans])


def _refuse_control_tokens(example: Example, facts: TokenizerFacts) -> None:
    """Raise DataError where the text of a message or tool would become a control token."""
    for number, message in enumerate(example.messages):
        _refuse_forged(message.content, example, facts, _field(example, number))
        if message.extra:
            _refuse_forged(json.dumps(message.extra, ensure_ascii=False), example, facts, _field(example, number))
    if example.tools:
        _refuse_forged(json.dumps(example.tools, ensure_ascii=False), example, facts, "tools")


def _refuse_forged(text: str, example: Example, facts: TokenizerFacts, field: str) -> None:
    if not _contains_any(text, facts.special_letters) or not _contains_any(text, facts.special_openings):
        return
    forged = first_of(text, tuple(facts.special_tokens), 0)
    if forged is not None:
        wrong = f"the text contains {text[forged[0] : forged[1]]}, which this tokenizer reads as a control token"
        raise DataError(Problem(example.where, field, wrong, "remove it, or write it with a space inside"))


def _contains_any(text: str, parts: Iterable[str]) -> bool:
    # A loop, because any() over a generator takes three times as long, and this checks every message.
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False
