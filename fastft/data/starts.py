"""Where each trained answer of a rendered example begins: behind the prompt that it will be asked with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise

from fastft.data.content import stands, thought_and_text
from fastft.data.example import Example, Message
from fastft.data.render import Renderer, prompt_text
from fastft.data.template import Span
from fastft.errors import DataError, Problem

# A prompt that ends in an opened think block, and one that ends in a closed one.
_OPENED = re.compile(r"([<\[◁][\w:]*think(?:ing)?[>\]▷]|<\|START_THINKING\|>)(\s*)$", re.IGNORECASE)
SPLIT = 'set data.turns = "split" (one row an answer), or data.train_on = "last"'
_CLOSED = re.compile(r"(?:[<\[◁]/[\w:]*think(?:ing)?[>\]▷]|thought\s*<[^<>]*>)\s*$", re.IGNORECASE)


def starts_of(example: Example, renderer: Renderer, text: str, trained: list[int]) -> tuple[str, list[int], bool]:
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
    if number < len(example.messages) - 1:
        raise DataError(_rewritten(example, renderer, prompt, text, number))
    more = renderer.asked_more
    question = example.messages[number - 1].content.strip()
    for asked in (question, json.dumps(question, ensure_ascii=False)[1:-1]):
        if asked not in prompt or asked not in text:
            continue
        behind = prompt[prompt.rfind(asked) + len(asked) :]
        answer = text[text.rfind(asked) + len(asked) :]
        if answer.startswith(behind):
            return prompt + answer.removeprefix(behind)
        if more and behind.endswith(more) and answer.startswith(behind.removesuffix(more)):
            return _behind_more(example, prompt, answer.removeprefix(behind.removesuffix(more)), number)
    wrong = "the template writes the text before this answer differently with and without it, so its start is unclear"
    instead = "use a template that writes a question in the same way with and without its answer"
    raise DataError(Problem(example.where, example.place(number), wrong, instead))


def _rewritten(example: Example, renderer: Renderer, prompt: str, text: str, number: int) -> Problem:
    wrong = "the template writes the text before this answer differently with and without it"
    if renderer.asked_more and prompt.endswith(renderer.asked_more):
        wrong = (
            f"the template asks for this answer with {renderer.asked_more!r}, which it does not write before an answer"
        )
    system = example.messages[0].content.strip() if example.messages[0].role == "system" else ""
    if system and prompt.find(system) != text.find(system):
        wrong += ", as it moves the system text to the last question"
    return Problem(example.where, example.place(number), f"{wrong}, so its start is unclear", SPLIT)


def _behind_more(example: Example, prompt: str, rest: str, number: int) -> str:
    """The text of a row whose prompt ends in a think block that the template leaves out before a given answer.

    The answer first closes the block, with its reasoning in it where it has some.
    """
    reasoning, _ = thought_and_text(example.messages[number])
    opened = _OPENED.search(prompt)
    if opened is None:
        if reasoning and _CLOSED.search(prompt):
            wrong = "the template asks for answers without reasoning, and this answer has some"
            instead = 'remove it, or use a template that asks for reasoning, such as chat_template = "qwen3"'
            raise DataError(Problem(example.where, example.place(number), wrong, instead))
        return prompt + rest.lstrip()
    begins = rest.lstrip()
    if begins.startswith(opened[1]):  # the template writes the block, with other white space
        return prompt + begins[len(opened[1]) :].lstrip("\n")
    if reasoning and stands(reasoning, rest):
        wrong = "the template writes this reasoning, but not behind the prompt that it asks with"
        raise DataError(Problem(example.where, example.place(number), wrong, "use another template"))
    line = "" if "\n" in opened[2] else "\n"
    if opened[1] == "<|START_THINKING|>":
        return f"{prompt}{reasoning}<|END_THINKING|>{begins}"
    return f"{prompt}{line}{reasoning}\n{opened[1][0]}/{opened[1][1:]}\n\n{begins}"


def marked_starts(
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
            raise DataError(Problem(example.where, example.place(number), wrong, "correct the template"))
        opens = start < asked and _OPENED.search(text[start:asked])
        if (start < asked and not opens) or text[asked:start].strip():
            shift = start - asked
            side = f"{-shift} characters before" if shift < 0 else f"{shift} characters after"
            wrong = f"the {{% generation %}} block begins {side} the end of its prompt"
            raise DataError(
                Problem(example.where, example.place(number), wrong, "begin it right after the generation prompt")
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
