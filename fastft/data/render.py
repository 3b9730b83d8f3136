"""A tokenizer and a chat template that fit each other, what the template writes around an answer, and prompts."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fastft.data.example import Example, Message
from fastft.data.template import ChatTemplate, Span
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, RecipeError, Where

TrainOn = Literal["assistant", "last", "all"]
Turns = Literal["auto", "whole", "split"]

TEMPLATE_FIELD = "data.chat_template"
# Words that no template changes and no real text contains, to find out how a template frames an answer.
_PROBE = ("fastftquestionone", "fastftanswerone", "fastftquestiontwo", "fastftanswertwo")
_PROBE_SYSTEM = "fastftsystem"
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "none", "parameters": {"type": "object", "properties": {}}},
}


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
    turns: Turns = "whole"
    # What the template may leave out of a row (data.may_drop).
    may_drop: frozenset[str] = frozenset()
    # The text that `add_generation_prompt` adds after a question.
    generation_prompt: str = ""
    # What the end of the generation prompt has that the template does not write before a given answer: a think block.
    asked_more: str = ""
    # What ends the last answer where the template ends an answer only with what follows it (GLM: "<|user|>").
    closing: str = ""
    # The ids of the generation prompt if they occur only before answers: it begins with a control token, which no
    # message may contain. Empty where the template marks the answers itself, or asks with more than it writes.
    prompt_ids: tuple[int, ...] = ()
    # The control tokens that frame turns and stand in no answer.
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
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokenizer's control tokens: what stands before one does not change the tokens after it."""
        return self.tokenizer.ids_of(self.tokenizer.special_tokens)

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """The words by which the template tells messages apart."""
        return self.template.markers if self.template else ()

    @cached_property
    def proven_shapes(self) -> set[object]:
        """The shapes of rows whose prompts were compared with their texts (fastft.data.parts); grows with the rows."""
        return set()

    @cached_property
    def proven_borders(self) -> set[str]:
        """The last characters of prompts, and the first of their answers, that share no token; grows with the rows."""
        return set()

    def missing_bos(self, text: str) -> str:
        """The BOS token where the model needs one and `text` does not begin with it, else ""."""
        bos = self.tokenizer.bos_token if self.tokenizer.adds_bos else None
        return "" if bos is None or text.startswith(bos) else bos

    @cached_property
    def prompt_bytes(self) -> bytes:
        """`prompt_ids` as the bytes of 32-bit integers."""
        return array("i", self.prompt_ids).tobytes()

    @cached_property
    def stop_bytes(self) -> tuple[bytes, ...]:
        """Each of `stop_ids` as the bytes of a 32-bit integer."""
        return tuple(array("i", [stop]).tobytes() for stop in self.stop_ids)


def make_renderer(
    template: ChatTemplate | None,
    tokenizer: TokenizerFacts,
    train_on: TrainOn,
    where: Where,
    turns: Turns = "whole",
    may_drop: Sequence[str] = (),
) -> Renderer:
    """The renderer for conversations, or for plain text when `template` is None.

    A template that ignores `add_generation_prompt` gets the text that it writes before answers as generation prompt.

    Raises:
        RecipeError: the template fails on a plain conversation, does not write each message once and in order, or
            writes no control token of this tokenizer after an answer, so that the model would never learn to stop.
    """
    if template is None:
        return Renderer(tokenizer, None, train_on, ())
    try:
        question, prompt, answered, whole = _probed(template, tokenizer, where)
    except DataError as error:
        problem = error.problems[0]
        raise RecipeError(Problem(where, TEMPLATE_FIELD, problem.wrong, "correct the template")) from error
    ends, closing = _end_tokens(whole, template.name, tokenizer, where)
    header = answered[len(question) : answered.index(_PROBE[1])] if answered.startswith(question) else ""
    if prompt == question and header.strip():
        template, prompt = template.with_generation_prompt(header), question + header
    added = prompt[len(question) :] if prompt.startswith(question) else ""
    shared = _shared_length(prompt, answered, tokenizer)
    asked_more = prompt[shared:] if _PROBE[0] in prompt[:shared] else ""
    inside = _tokens_inside(template, tokenizer, ends, where)
    special = tokenizer.special_tokens - {*ends, *inside}
    return Renderer(
        tokenizer,
        template,
        train_on,
        ends,
        turns,
        frozenset(may_drop),
        generation_prompt=added,
        asked_more=asked_more,
        closing=closing,
        frame_ids=tokenizer.ids_of(token for token in special if token in whole),
        prompt_ids=() if asked_more or template.marks_answers else _prompt_ids(added, tokenizer),
    )


def _probed(template: ChatTemplate, tokenizer: TokenizerFacts, where: Where) -> tuple[str, str, str, str]:
    """The text of a question, of the prompt for its answer, with the answer, and of two questions and answers.

    With a tool, or with a system text, where the template refuses conversations without.
    """
    turns = tuple(Message(role, text) for role, text in zip(("user", "assistant") * 2, _PROBE, strict=True))
    before: Sequence[Message] = ()
    tools: Sequence[dict[str, Any]] = ()

    def text(count: int, *, asked: bool = False) -> str:
        messages, tokens = (*before, *turns[:count]), tokenizer.template_tokens
        return template.render(messages, tokens, where=where, tools=tools, add_generation_prompt=asked)

    try:
        question = text(1)
    except DataError:
        tools = (_PROBE_TOOL,)
        try:
            question = text(1)
        except DataError:
            before, tools = (Message("system", _PROBE_SYSTEM),), ()
            question = text(1)
    return question, text(1, asked=True), text(2), text(4)


def _tokens_inside(
    template: ChatTemplate, tokenizer: TokenizerFacts, ends: tuple[str, ...], where: Where
) -> frozenset[str]:
    """The control tokens that the template itself writes inside an answer, such as channels and blocks of calls."""
    found: set[str] = set()
    tokens, tools = tokenizer.template_tokens, (_PROBE_TOOL,)
    call: dict[str, Any] = {"type": "function", "function": {"name": _PROBE[2], "arguments": {_PROBE[3]: 1}}}
    thought = {"reasoning_content": _PROBE[3]}
    for extra in ({}, thought, {"tool_calls": [call]}, {**thought, "tool_calls": [call]}):
        question, answer = Message("user", _PROBE[0]), Message("assistant", _PROBE[1], extra)
        try:
            prompt = template.render([question], tokens, where=where, tools=tools, add_generation_prompt=True)
            answered = template.render([question, answer], tokens, where=where, tools=tools)
        except DataError:
            continue  # a template without reasoning or calls; the row that has them says so
        block = answered[_shared_length(prompt, answered, tokenizer) :]
        end = max((block.rfind(token) for token in ends), default=-1)
        found |= {token for token in tokenizer.special_tokens if token in block[: max(end, 0)]}
    return frozenset(found)


def _shared_length(one: str, other: str, tokenizer: TokenizerFacts) -> int:
    """How many characters both texts begin with, up to whole control tokens."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for token in tokenizer.special_tokens:
        at = one.find(token, max(0, length - len(token) + 1))
        if 0 <= at < length < at + len(token):
            length = at
    return length


def _end_tokens(whole: str, name: str, tokenizer: TokenizerFacts, where: Where) -> tuple[tuple[str, ...], str]:
    """The control tokens that end answers: those that the template writes after the answers of _PROBE, and the model's.

    And the text that ends the last answer, where the template ends an answer only with the question that follows it.

    Raises:
        RecipeError: there is none after an answer, or `whole` does not hold each message once, in order.
    """
    question, answer, question_two, answer_two = _PROBE
    in_order = whole.find(question) < whole.find(answer) < whole.find(question_two)
    if not in_order or any(whole.count(text) != 1 for text in _PROBE):
        wrong = "the template does not write each message of a conversation once, in order"
        raise RecipeError(Problem(where, TEMPLATE_FIELD, wrong, "correct the template", got=name))
    tails = (whole.split(answer)[1].split(question_two)[0], whole.split(answer_two)[1])
    return _ends_of(tails, tokenizer, where)


def _ends_of(tails: tuple[str, str], tokenizer: TokenizerFacts, where: Where) -> tuple[tuple[str, ...], str]:
    """As `_end_tokens`, from what follows an earlier answer and the last one."""
    stops = [token for token in tokenizer.stop_tokens if token != tokenizer.bos_token]
    first, last = (_first_token(tail, tokenizer) for tail in tails)
    if first in stops and last is None:
        return tuple(dict.fromkeys((first, *stops))), tails[0][: tails[0].index(first) + len(first)]
    if first is None or last is None:
        raise RecipeError(_endless(tails[0] if first is None else tails[1], where))
    stop = _stopping(tails[0], tokenizer)
    if stop is not None and stop == _stopping(tails[1], tokenizer):  # the second one of <|END_TEXT|><|END_OF_TURN|>
        first = last = stop
    # Where only the last answer ends with a token that stops the model, earlier answers end with one that does not
    # (gpt-oss: <|return|> and <|end|>).
    found = (last,) if last in stops and first not in stops else (first, last)
    return tuple(dict.fromkeys((*found, *stops))), ""


def _endless(tail: str, where: Where) -> Problem:
    wrong = "the template writes no control token of this model after an answer, so the model would never stop"
    instead = 'use the model\'s own template ("model") or one that ends answers with a token of its tokenizer'
    got = repr(tail.strip()[:40]) if tail.strip() else "nothing"
    return Problem(where, TEMPLATE_FIELD, wrong, instead, got=got)


def _stopping(tail: str, tokenizer: TokenizerFacts) -> str | None:
    """The first of the control tokens that `tail` begins with that stops the model, if any does."""
    tail = tail.lstrip()
    while token := next((token for token in tokenizer.special_tokens if tail.startswith(token)), None):
        if token in tokenizer.stop_tokens:
            return token
        tail = tail.removeprefix(token)
    return None


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
    text = prompt_text(example, renderer, answers[-1])
    text = renderer.missing_bos(text) + text
    ids = facts.tokenizer.encode(text, add_special_tokens=False).ids
    return Prompt(text, ids, example.messages[answers[-1]].content, example.where)


def prompt_text(example: Example, renderer: Renderer, index: int) -> str:
    """The prompt that message `index` answers, as chat, exact match and serving write it."""
    return rendered(example, renderer, index, add_generation_prompt=True)


def rendered(example: Example, renderer: Renderer, count: int, *, add_generation_prompt: bool = False) -> str:
    """The first `count` messages as text."""
    assert renderer.template is not None  # noqa: S101 -- only called for conversations
    return renderer.template.render(
        example.messages[:count],
        renderer.tokenizer.template_tokens,
        where=example.where,
        tools=example.tools,
        add_generation_prompt=add_generation_prompt,
    )


def _prompt_ids(generation_prompt: str, facts: TokenizerFacts) -> tuple[int, ...]:
    if not generation_prompt.startswith(tuple(facts.special_tokens)):
        return ()
    return tuple(facts.tokenizer.encode(generation_prompt, add_special_tokens=False).ids)


def _first_token(text: str, facts: TokenizerFacts) -> str | None:
    """The first token in `text` that can stop the model: a control or added token, except BOS unless it is a stop."""
    added = {token.content for token in facts.tokenizer.get_added_tokens_decoder().values() if token.content.strip()}
    candidates = (added | facts.special_tokens) - ({facts.bos_token} - set(facts.stop_tokens))
    found = first_of(text, tuple(token for token in candidates if token), 0)
    return text[found[0] : found[1]] if found else None


def first_of(text: str, tokens: Sequence[str], start: int) -> Span | None:
    """The span of the first of `tokens` in `text` from `start` on, the longest where several begin at one place."""
    best: Span | None = None
    for token in tokens:
        at = text.find(token, start)
        if at >= 0 and (best is None or (at, -at - len(token)) < (best[0], -best[1])):
            best = (at, at + len(token))
    return best
