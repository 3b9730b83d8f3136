"""Fifty-five small chat templates, each with one behaviour of public ones, and nine kinds of rows for each.

`behaviours/expected.txt` has the outcome of every pair: `whole` or `split` where the row is trained, else the words of
the refusal. What is trained is judged here without the code that proves it: each answer stands behind the ids of the
prompt that the template asks with, all that the assistant says carries loss and nothing else does, and all that the row
says is in the text. `python tests/data/test_behaviours.py` writes the file, which is read and approved by eye.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fastft.data.content import final_text
from fastft.data.contract import check_encoded
from fastft.data.encode import NO_LOSS, Encoded, encode_batches
from fastft.data.example import Example, Message
from fastft.data.formats import to_example
from fastft.data.render import Renderer, make_renderer, render_prompt
from fastft.data.template import ChatTemplate
from fastft.data.tokenizer import TokenizerFacts, make_facts
from fastft.errors import FastftError, Problem, Where

FOLDER = Path(__file__).with_name("behaviours")
EXPECTED = FOLDER / "expected.txt"
HERE = Where("rows.jsonl", 1)
STOPS = ("<|im_end|>", "<|return|>", "<|call|>", "<|result|>", "<|user|>", "<|tool|>")
OTHERS = (
    *("<|im_start|>", "<|start|>", "<|end|>", "<|channel|>", "<|/channel|>", "<|message|>", "<|assistant|>"),
    *("<|system|>", "<|/user|>", "<|/result|>", "<|START_TEXT|>", "<|END_TEXT|>", "<|START_THINKING|>"),
    "<|END_THINKING|>",
)
ROOM = {"type": "string", "description": "which room"}
LAMP = {"name": "lamp", "description": "switch a lamp", "parameters": {"type": "object", "properties": {"room": ROOM}}}
TOOLS = [{"type": "function", "function": LAMP}]
SYSTEM = {"role": "system", "content": "Be brief and kind."}
RESULT = {"role": "tool", "content": '{"state": "lit"}', "tool_call_id": "call12345", "name": "lamp"}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, reasoning: str | None = None, *, calls: bool = False) -> dict[str, Any]:
    call = {"id": "call12345", "type": "function", "function": {"name": "lamp", "arguments": {"room": "attic"}}}
    extra = {**({"reasoning_content": reasoning} if reasoning else {}), **({"tool_calls": [call]} if calls else {})}
    return {"role": "assistant", "content": text, **extra}


PRIME = [asked("Is 91 prime?"), said("Surely not.", "7 times 13 is 91.")]
NUMBERS = [asked("Two and two?"), said("Four it is."), asked("And three more?"), said("Seven then.")]
LIGHT = asked("Light upstairs, please!")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"messages": NUMBERS[:2]},
    "system": {"messages": [SYSTEM, *NUMBERS[:2]]},
    "turns": {"messages": NUMBERS},
    "system_turns": {"messages": [SYSTEM, *NUMBERS]},
    "reasoning": {"messages": PRIME},
    "reasoning_turns": {"messages": [*PRIME, asked("And 97?"), said("Yes, it is.", "No divisor up to 9.")]},
    "tools": {"tools": TOOLS, "messages": [LIGHT, said("In which room?")]},
    "call": {"tools": TOOLS, "messages": [LIGHT, said("", calls=True), RESULT, said("Done and bright.")]},
    "call_text": {"tools": TOOLS, "messages": [LIGHT, said("I will.", calls=True), RESULT, said("Done and bright.")]},
}


def behaviour_facts() -> TokenizerFacts:
    """One token a byte, and one for each control token of the templates."""
    tokenizer = Tokenizer(
        models.BPE({one: at for at, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*STOPS, *OTHERS)])
    stops = tuple(tokenizer.token_to_id(stop) for stop in STOPS)
    return make_facts(tokenizer, eos_token="<|im_end|>", stop_ids=stops)


FACTS = behaviour_facts()


def outcome(template: str, row: dict[str, Any], turns: str = "auto") -> str:
    """`whole` or `split` for rows that are trained and right, else the words of the refusal."""
    source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    try:
        renderer = make_renderer(ChatTemplate(template, source), FACTS, "assistant", HERE, turns)  # type: ignore[arg-type]
    except FastftError as error:
        return error.problems[0].wrong
    example = to_example(row, "messages", HERE)
    ((made,),) = encode_batches([[example]], renderer)
    if isinstance(made, Problem):
        assert made.where == HERE
        assert made.instead
        return made.wrong
    trained: list[str] = []
    for part, encoded in made:
        assert check_encoded(encoded, renderer) is None
        trained += judge(part.example, encoded, renderer)
    assert trained == [message.content for message in example.messages if message.role == "assistant"]
    return "split" if len(made) > 1 else "whole"


def judge(example: Example, encoded: Encoded, renderer: Renderer) -> list[str]:
    """The contents of the trained answers of a row that is right in every respect."""
    whole = decoded(encoded.input_ids)
    template = renderer.template
    assert template is not None
    runs = [
        list(run)
        for carries, run in groupby(range(len(encoded.labels)), lambda at: encoded.labels[at] != NO_LOSS)
        if carries
    ]
    answers = [number for number in example.answers if example.messages[number].trained]
    assert len(runs) == len(answers)
    for run, number in zip(runs, answers, strict=True):
        prompt = template.render(
            example.messages[:number],
            FACTS.template_tokens,
            where=HERE,
            tools=example.tools,
            add_generation_prompt=True,
        )
        ids = FACTS.tokenizer.encode(prompt, add_special_tokens=False).ids
        assert ids == encoded.input_ids[: run[0]].tolist()
        answer = decoded(encoded.input_ids[run[0] : run[-1] + 1])
        assert all(stands(text, answer) for text in texts(example.messages[number]))
        assert not any(stands(m.content, answer) for m in example.messages if m.role != "assistant")
        assert answer.endswith(STOPS)
    for message in example.messages:
        assert stands(message.content, whole)
    if example.tools:
        assert all(word in whole for word in ("lamp", "switch a lamp", "room", "which room"))
    last = render_prompt(example, renderer)
    assert last.input_ids == encoded.input_ids[: runs[-1][0]].tolist()
    return [example.messages[number].content for number in answers]


def decoded(ids: Any) -> str:
    text: str = FACTS.tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def texts(message: Message) -> list[str]:
    calls = ["lamp", "room", "attic"] if message.extra.get("tool_calls") else []
    return [message.content, message.extra.get("reasoning_content", ""), *calls]


def stands(text: str, whole: str) -> bool:
    return text in whole or json.dumps(text)[1:-1] in whole


def templates() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def expected() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in EXPECTED.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            kinds = found.setdefault(line, {})
        else:
            kind, _, words = line.strip().partition(": ")
            kinds[kind] = words
    return found


@pytest.mark.parametrize("template", templates())
def test_every_kind_of_row_is_trained_right_or_refused_with_a_reason(template: str) -> None:
    assert {kind: outcome(template, row) for kind, row in KINDS.items()} == expected()[template]


def test_every_template_has_its_outcomes() -> None:
    assert list(expected()) == templates()
    assert len(templates()) >= 40


@pytest.mark.parametrize("template", templates())
def test_a_row_that_is_refused_whole_names_a_way_that_works(template: str) -> None:
    for kind, row in KINDS.items():
        if expected()[template][kind] == "split":
            source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
            renderer = make_renderer(ChatTemplate(template, source), FACTS, "assistant", HERE)
            ((made,),) = encode_batches([[to_example(row, "messages", HERE)]], renderer)
            assert isinstance(made, Problem)
            assert 'data.turns = "split"' in made.instead
            assert outcome(template, row, "split") == "split"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Up.", "Up."),
        ("<think>\n\n</think>\n\nUp.", "Up."),
        ("\n</think>\n\nUp.", "Up."),
        ("<|channel|>analysis<|message|>North.<|end|><|start|>assistant<|channel|>final<|message|>Up.", "Up."),
    ],
)
def test_exact_match_compares_the_text_after_the_reasoning(answer: str, text: str) -> None:
    assert final_text(answer) == text


if __name__ == "__main__":
    lines = []
    for name in templates():
        lines += [name, *(f"  {kind}: {outcome(name, row)}" for kind, row in KINDS.items())]
    EXPECTED.write_text("\n".join(lines) + "\n", encoding="utf-8")
