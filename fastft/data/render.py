"""Render an Example as text with the spans that carry loss; `encode` tokenizes it.

The spans of the answers are the template's `{% generation %}` blocks where it has them. Where it has none, an answer
begins at the end of the text rendered up to its generation prompt, which must be a prefix of the whole text, and ends
with the first control token that the template writes after an answer.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fastft.data.example import Example, Message
from fastft.data.template import ChatTemplate, Span
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, RecipeError, Where

TrainOn = Literal["assistant", "all"]

TEMPLATE_FIELD = "data.chat_template"
# Words that no template changes and no real text contains, to find out how a template frames an answer.
_PROBE = ("fastftquestionone", "fastftanswerone", "fastftquestiontwo", "fastftanswertwo")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a conversation up to its last answer, and that answer as the reference."""

    text: str
    input_ids: list[int]
    reference: str
    where: Where


@dataclass(frozen=True)
class Renderer:
    """A tokenizer and a chat template that fit each other (`make_renderer` proves it), or no template for text."""

    tokenizer: TokenizerFacts
    template: ChatTemplate | None
    train_on: TrainOn
    # The control tokens that end an answer under this template, the usual one first.
    end_of_turn: tuple[str, ...]
    # The text that the template writes between a question and its answer.
    header: str = ""
    # The text that `add_generation_prompt` adds after a question.
    generation_prompt: str = ""
    # The ids of the generation prompt if they occur only before answers: it begins with a control token, which no
    # message may contain. Empty where the template marks the answers itself.
    prompt_ids: tuple[int, ...] = ()
    # The control tokens that frame turns without ending them: no answer may contain one.
    frame_ids: frozenset[int] = frozenset()

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids of `end_of_turn`."""
        return self.tokenizer.ids_of(self.end_of_turn)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The control tokens that frame or end turns: an answer has none of them before its last token."""
        return self.stop_ids | self.frame_ids

    @cached_property
    def prompt_bytes(self) -> bytes:
        """`prompt_ids` as the bytes of 32-bit integers."""
        return array("i", self.prompt_ids).tobytes()

    @cached_property
    def stop_bytes(self) -> tuple[bytes, ...]:
        """Each of `stop_ids` as the bytes of a 32-bit integer."""
        return tuple(array("i", [stop]).tobytes() for stop in self.stop_ids)


def make_renderer(
    template: ChatTemplate | None, tokenizer: TokenizerFacts, train_on: TrainOn, where: Where
) -> Renderer:
    """The renderer for conversations, or for plain text when `template` is None.

    Raises:
        RecipeError: the template fails on a plain conversation, does not write each message once and in order, or
            writes no control token of this tokenizer after an answer, so that the model would never learn to stop.
    """
    if template is None:
        return Renderer(tokenizer, None, train_on, ())
    turns = tuple(Message(role, text) for role, text in zip(("user", "assistant") * 2, _PROBE, strict=True))
    tokens = tokenizer.template_tokens
    try:
        first_question = template.render(turns[:1], tokens, where=where)
        first_answer = template.render(turns[:2], tokens, where=where)
        prompt = template.render(turns[:1], tokens, where=where, add_generation_prompt=True)
        whole = template.render(turns, tokens, where=where)
    except DataError as error:
        problem = error.problems[0]
        raise RecipeError(Problem(where, TEMPLATE_FIELD, problem.wrong, "correct the template")) from error
    found = _end_tokens(whole, template.name, tokenizer, where)
    header = first_answer[len(first_question) : first_answer.index(_PROBE[1])]
    if not first_answer.startswith(first_question):
        header = ""
    stops = [token for token in tokenizer.stop_tokens if token != tokenizer.bos_token]
    added = prompt[len(first_question) :] if prompt.startswith(first_question) else ""
    return Renderer(
        tokenizer,
        template,
        train_on,
        end_of_turn=tuple(dict.fromkeys(found + stops)),
        header=header,
        generation_prompt=added,
        frame_ids=tokenizer.ids_of(token for token in tokenizer.special_tokens - {*found, *stops} if token in whole),
        prompt_ids=_prompt_ids(added, tokenizer) if header.startswith(added) and not template.marks_answers else (),
    )


def _end_tokens(whole: str, name: str, tokenizer: TokenizerFacts, where: Where) -> list[str]:
    """The control token after each answer of the rendered _PROBE.

    Raises:
        RecipeError: there is none, or `whole` does not hold each message once, in order.
    """
    question, answer, question_two, answer_two = _PROBE
    in_order = whole.find(question) < whole.find(answer) < whole.find(question_two)
    if not in_order or any(whole.count(text) != 1 for text in _PROBE):
        wrong = "the template does not write each message of a conversation once, in order"
        raise RecipeError(Problem(where, TEMPLATE_FIELD, wrong, "correct the template", got=name))
    found = []
    for tail in (whole.split(answer)[1].split(question_two)[0], whole.split(answer_two)[1]):
        end = _first_token(tail, tokenizer)
        if end is None:
            wrong = "the template writes no control token of this model after an answer, so the model would never stop"
            instead = 'use the model\'s own template ("model") or one that ends answers with a token of its tokenizer'
            got = repr(tail.strip()[:40]) if tail.strip() else "nothing"
            raise RecipeError(Problem(where, TEMPLATE_FIELD, wrong, instead, got=got))
        found.append(end)
    return found


def render(example: Example, renderer: Renderer, *, with_spans: bool = True) -> tuple[str, list[Span]]:
    """The text of an example, with the BOS token first where the model needs one, and its spans that carry loss.

    No spans for plain text, where every token carries loss, or without `with_spans`.

    Raises:
        DataError: the template refuses the example, or a span cannot be proven.
    """
    facts = renderer.tokenizer
    spans: list[Span] = []
    if example.text is not None:
        text = example.text
        if facts.end_of_text and not text.endswith(facts.end_of_text):
            text += facts.end_of_text
    elif renderer.template is None:
        raise DataError(Problem(example.where, "", "a conversation needs a chat template", "set data.chat_template"))
    else:
        _refuse_control_tokens(example, facts)
        with_spans = with_spans and renderer.train_on == "assistant"
        if renderer.template.marks_answers and with_spans:
            text, spans = renderer.template.render_marked(example, facts.template_tokens)
            spans = _proven_spans(example, renderer, text, spans)
        else:
            text = _rendered(example, renderer, len(example.messages), add_generation_prompt=False)
            spans = _derived_spans(example, renderer, text) if with_spans else []
    bos = _missing_bos(text, facts)
    return bos + text, [(start + len(bos), end + len(bos)) for start, end in spans]


def render_prompt(example: Example, renderer: Renderer) -> Prompt:
    """The prompt before the last assistant turn, and the answer of that turn.

    Raises:
        DataError: the example has no assistant turn, or the template refuses it.
    """
    answers = example.answers
    if not answers or renderer.template is None:
        wrong = "there is no question and answer to compare with"
        raise DataError(Problem(example.where, "", wrong, "exact match needs conversations"))
    facts = renderer.tokenizer
    text = _prompt_text(example, renderer, answers[-1])
    text = _missing_bos(text, facts) + text
    ids = facts.tokenizer.encode(text, add_special_tokens=False).ids
    return Prompt(text, ids, example.messages[answers[-1]].content, example.where)


def _missing_bos(text: str, facts: TokenizerFacts) -> str:
    """The BOS token where the model needs one and `text` does not begin with it, else ""."""
    bos = facts.bos_token if facts.adds_bos and facts.bos_token else ""
    return "" if text.startswith(bos) else bos


def _derived_spans(example: Example, renderer: Renderer, text: str) -> list[Span]:
    """The character span of each trained answer with its end-of-turn token in the rendered `text`."""
    where, answers = example.where, example.answers
    starts = [_answer_start(example, renderer, text, index) for index in answers]
    spans = []
    for start, index, limit in zip(starts, answers, [*starts[1:], len(text)], strict=True):
        field = f"message {index + 1} (assistant)"
        first = _first_of(text, renderer.end_of_turn, start)
        if first is None or first[1] > limit:
            end = renderer.end_of_turn[0]
            wrong = f"the template writes no {end} after this answer: the model would not learn to stop"
            raise DataError(Problem(where, field, wrong, "use a template that ends every answer"))
        if not text[start : first[0]].strip():
            raise DataError(Problem(where, field, "the template leaves nothing of this answer", "change the row"))
        if example.messages[index].trained:
            spans.append((start, first[1]))
    return spans


def _answer_start(example: Example, renderer: Renderer, text: str, index: int) -> int:
    """Where answer `index` begins in `text`: at the end of its prompt, which must be a prefix."""
    prompt = _prompt_text(example, renderer, index)
    if text.startswith(prompt):
        return len(prompt)
    history = _rendered(example, renderer, index, add_generation_prompt=False)
    if renderer.header and text.startswith(history + renderer.header):
        return len(history) + len(renderer.header)
    wrong = "the template writes the text before this answer differently with and without it, so its start is unclear"
    instead = 'put {% generation %} marks into the template, or set data.train_on = "all"'
    raise DataError(Problem(example.where, f"message {index + 1} (assistant)", wrong, instead))


def _proven_spans(example: Example, renderer: Renderer, text: str, marked: list[Span]) -> list[Span]:
    """The template's own spans of the trained answers, each checked against its prompt and ended at its end token.

    A span may begin after white space that the format puts before an answer.
    """
    where, answers = example.where, example.answers
    if len(marked) != len(answers):
        wrong = f"the template marks {len(marked)} generated parts for {len(answers)} assistant turns"
        raise DataError(Problem(where, "", wrong, "put one {% generation %} block around each answer"))
    spans = []
    for (start, end), index in zip(marked, answers, strict=True):
        prompt = _prompt_text(example, renderer, index)
        if text.startswith(prompt) and (start < len(prompt) or text[len(prompt) : start].strip()):
            shift = start - len(prompt)
            side = f"{-shift} characters before" if shift < 0 else f"{shift} characters after"
            wrong = f"the {{% generation %}} block begins {side} the end of its prompt"
            field = f"message {index + 1} (assistant)"
            raise DataError(Problem(where, field, wrong, "begin it right after the generation prompt"))
        stop = _first_of(text, renderer.end_of_turn, start)
        if stop is not None and stop[1] < end and not text[stop[1] : end].strip():
            end = stop[1]
        if example.messages[index].trained:
            spans.append((start, end))
    return spans


def _prompt_text(example: Example, renderer: Renderer, index: int) -> str:
    """The prompt of answer `index`, with the header for templates that ignore `add_generation_prompt`."""
    text = _rendered(example, renderer, index, add_generation_prompt=True)
    return text if renderer.generation_prompt or not renderer.header.strip() else text + renderer.header


def _rendered(example: Example, renderer: Renderer, count: int, *, add_generation_prompt: bool) -> str:
    """The first `count` messages as text."""
    assert renderer.template is not None  # noqa: S101 -- only called for conversations
    return renderer.template.render(
        example.messages[:count],
        renderer.tokenizer.template_tokens,
        where=example.where,
        tools=example.tools,
        add_generation_prompt=add_generation_prompt,
    )


def _refuse_control_tokens(example: Example, facts: TokenizerFacts) -> None:
    """Raise DataError where the text of a message or tool would become a control token."""
    for number, message in enumerate(example.messages, start=1):
        _refuse_forged(message.content, example, facts, number)
        if message.extra:
            _refuse_forged(json.dumps(message.extra, ensure_ascii=False), example, facts, number)
    if example.tools:
        _refuse_forged(json.dumps(example.tools, ensure_ascii=False), example, facts)


def _refuse_forged(text: str, example: Example, facts: TokenizerFacts, number: int | None = None) -> None:
    if not _contains_any(text, facts.special_letters) or not _contains_any(text, facts.special_openings):
        return
    forged = _first_of(text, tuple(facts.special_tokens), 0)
    if forged is not None:
        field = "tools" if number is None else f"message {number} ({example.messages[number - 1].role})"
        wrong = f"the text contains {text[forged[0] : forged[1]]}, which this tokenizer reads as a control token"
        raise DataError(Problem(example.where, field, wrong, "remove it, or write it with a space inside"))


def _contains_any(text: str, parts: frozenset[str]) -> bool:
    # A loop, because any() over a generator takes three times as long, and this checks every message.
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False


def _prompt_ids(generation_prompt: str, facts: TokenizerFacts) -> tuple[int, ...]:
    if not generation_prompt.startswith(tuple(facts.special_tokens)):
        return ()
    return tuple(facts.tokenizer.encode(generation_prompt, add_special_tokens=False).ids)


def _first_token(text: str, facts: TokenizerFacts) -> str | None:
    """The first token in `text` that can stop the model: a control or added token, except BOS unless it is a stop."""
    added = {token.content for token in facts.tokenizer.get_added_tokens_decoder().values() if token.content.strip()}
    candidates = (added | facts.special_tokens) - ({facts.bos_token} - set(facts.stop_tokens))
    found = _first_of(text, tuple(token for token in candidates if token), 0)
    return text[found[0] : found[1]] if found else None


def _first_of(text: str, tokens: Sequence[str], start: int) -> Span | None:
    """The span of the first of `tokens` in `text` from `start` on, the longest where several begin at one place."""
    best: Span | None = None
    for token in tokens:
        at = text.find(token, start)
        if at >= 0 and (best is None or (at, -at - len(token)) < (best[0], -best[1])):
            best = (at, at + len(token))
    return best
