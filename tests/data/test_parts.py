"""What a row loses, behind which prompt its answers stand, and how many rows it becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fastft.data.encode import NO_LOSS, Encoded, encode, encode_batches
from fastft.data.example import Example, Message
from fastft.data.parts import DROPPED, Part
from fastft.data.prepare import Prepared, prepare
from fastft.data.render import Renderer, make_renderer, render_prompt
from fastft.data.template import ChatTemplate, load_template
from fastft.data.tokenizer import TokenizerFacts, make_facts
from fastft.errors import DataError, Problem, Where
from fastft.recipe.model import DataSection
from fastft.report.rows import account

Locate = Callable[[str], Where]
Conversation = Callable[..., Example]
HERE = Where("recipe.toml", 7)
QWEN3 = load_template("qwen3", Path(), None, HERE)
THOUGHT = {"reasoning_content": "7 times 13 is 91."}
PRIME = (Message("user", "Is 91 prime?"), Message("assistant", "No.", THOUGHT))
PRIMES = (*PRIME, Message("user", "And 97?"), Message("assistant", "Yes.", {"reasoning_content": "No divisor."}))
TOOL = {"type": "function", "function": {"name": "lamp", "description": "switch a lamp", "parameters": {}}}


def renderer(template: ChatTemplate | str, facts: TokenizerFacts, **choices: Any) -> Renderer:
    chosen = ChatTemplate("mine.jinja", template) if isinstance(template, str) else template
    return make_renderer(chosen, facts, choices.pop("train_on", "assistant"), HERE, **choices)


def rows_of(example: Example, with_renderer: Renderer) -> list[tuple[Part, Encoded]]:
    ((made,),) = encode_batches([[example]], with_renderer)
    if isinstance(made, Problem):
        raise DataError(made)
    return made


def trained(encoded: Encoded, facts: TokenizerFacts) -> str:
    ids = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != NO_LOSS]
    text: str = facts.tokenizer.decode(ids, skip_special_tokens=False)
    return text


def prepared(folder: Path, locate: Locate, facts: TokenizerFacts, rows: list[dict[str, Any]], **keys: Any) -> Prepared:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(train="rows.jsonl", **keys)
    return prepare(data, facts, max_seq_length=300, seed=7, recipe_dir=folder, locate=locate, refuse_broken=False)


def test_reasoning_that_the_template_drops_is_refused_with_a_way_out(chatml: TokenizerFacts) -> None:
    with pytest.raises(DataError, match=r"the reasoning of this assistant message.*may_drop = \[\"reasoning\"\]"):
        rows_of(Example(HERE, PRIME), renderer("".join(chatml.chat_template or ""), chatml))
    allowed = renderer(str(chatml.chat_template), chatml, may_drop=("reasoning",))
    ((part, _),) = rows_of(Example(HERE, PRIME), allowed)
    assert part.dropped == {"reasoning"}


def test_tools_that_the_template_drops_are_refused_with_a_way_out(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    example = replace(conversation("Light?", "Which room?"), tools=(TOOL,))
    with pytest.raises(DataError, match=r"tools: .*leaves out, or moves, the tools.*may_drop"):
        rows_of(example, renderer(str(chatml.chat_template), chatml))
    ((part, _),) = rows_of(example, renderer(str(chatml.chat_template), chatml, may_drop=("tools",)))
    assert part.dropped == {"tools"}


@pytest.mark.parametrize("inline", [True, False])
def test_a_template_that_drops_earlier_reasoning_trains_one_row_an_answer(chatml: TokenizerFacts, inline: bool) -> None:
    first, second = PRIMES[1], PRIMES[3]
    if inline:
        first = Message("assistant", "<think>\n7 times 13 is 91.\n</think>\n\nNo.")
        second = Message("assistant", "<think>\nNo divisor.\n</think>\n\nYes.")
    example = Example(HERE, (PRIMES[0], first, PRIMES[2], second))
    rows = rows_of(example, renderer(QWEN3, chatml, turns="auto"))
    texts = [trained(encoded, chatml) for _, encoded in rows]
    assert texts == [
        "<think>\n7 times 13 is 91.\n</think>\n\nNo.<|im_end|>",
        "<think>\nNo divisor.\n</think>\n\nYes.<|im_end|>",
    ]
    assert [sorted(part.dropped) for part, _ in rows] == [[], ["history_reasoning"]]
    with pytest.raises(DataError, match=r"the reasoning of this assistant message once.*data.turns = .split."):
        rows_of(example, renderer(QWEN3, chatml, turns="whole"))
    ((part, _),) = rows_of(example, renderer(QWEN3, chatml, turns="whole", may_drop=("history_reasoning",)))
    assert part.dropped == {"history_reasoning"}


def test_only_the_last_answer_is_trained_when_asked(chatml: TokenizerFacts, conversation: Conversation) -> None:
    last = renderer(str(chatml.chat_template), chatml, train_on="last")
    ((_, encoded),) = rows_of(conversation("Hi", "Hello", "Bye", "Goodbye"), last)
    assert trained(encoded, chatml) == "Goodbye<|im_end|>"
    kept_out = Example(HERE, (Message("user", "Hi"), Message("assistant", "Hello", trained=False)))
    with pytest.raises(DataError, match="the last answer has weight 0"):
        rows_of(kept_out, last)


def test_a_conversation_is_split_into_one_row_an_answer_when_asked(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    split = renderer(str(chatml.chat_template), chatml, turns="split")
    rows = rows_of(conversation("Hi", "Hello", "Bye", "Goodbye"), split)
    assert [trained(encoded, chatml) for _, encoded in rows] == ["Hello<|im_end|>", "Goodbye<|im_end|>"]
    assert [len(part.example.messages) for part, _ in rows] == [2, 4]


def test_split_rows_are_counted_with_their_extra_tokens(tmp_path: Path, locate: Locate, chatml: TokenizerFacts) -> None:
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    made = prepared(tmp_path, locate, chatml, [{"messages": turns}, {"messages": turns[:2]}], turns="split")
    assert [(one.where.line, one.rows) for one in made.train.split] == [(1, 2)]
    assert made.train.split[0].extra_tokens == len(made.train.rows[0].input_ids)
    notes = account("training", made.train, made.format)[1]
    extra = len(made.train.rows[0].input_ids)
    assert notes == [f"1 training row is split into 2, one an answer, with {extra} tokens more (data.turns)"]


def test_what_rows_lose_is_counted_and_kept_in_the_cache(
    tmp_path: Path, locate: Locate, chatml: TokenizerFacts
) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **THOUGHT}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = DataSection(train="rows.jsonl", may_drop=("reasoning",))
    for _ in range(2):
        made = prepare(
            data, chatml, max_seq_length=500, seed=7, recipe_dir=tmp_path, locate=locate, cache_dir=tmp_path / "cache"
        )
        assert made.train.dropped == {"reasoning": 1}
        assert account("training", made.train, made.format)[1] == [f"1 training row is {DROPPED['reasoning']}"]


def test_a_template_that_ignores_the_generation_prompt_gets_one_that_everyone_asks_with(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    source = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}\n"
    made = renderer(source, chatml)
    assert made.template is not None
    asked = made.template.render(conversation("Hi").messages, {}, where=HERE, add_generation_prompt=True)
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    answered = conversation("Hi", "Hello").messages
    assert made.template.render(answered, {}, where=HERE) == ChatTemplate("x", source).render(answered, {}, where=HERE)


def merging_facts() -> TokenizerFacts:
    """A byte tokenizer that joins two line breaks into one token, as those of Qwen and Llama do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)} | {"ĊĊ": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return make_facts(tokenizer, eos_token="<|im_end|>")


@pytest.mark.parametrize("name", ["chatml", "qwen3.5"])
def test_white_space_between_prompt_and_answer_has_the_tokens_that_are_asked_with(
    name: str, conversation: Conversation
) -> None:
    facts = merging_facts()
    made = renderer(load_template(name, Path(), None, HERE), facts, turns="auto")
    rows = rows_of(conversation("Hi", "\nHello", "Bye", "\nGoodbye"), made)
    assert len(rows) == 2
    for part, encoded in rows:
        prompt = render_prompt(part.example, made).input_ids
        assert encoded.input_ids[: len(prompt)].tolist() == prompt
        first = next(at for at, label in enumerate(encoded.labels) if label != NO_LOSS)
        assert first == len(prompt)
        whole = facts.tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False)
        assert whole == part.text


def test_white_space_that_joins_prompt_and_answer_is_refused_whole(conversation: Conversation) -> None:
    made = renderer(load_template("chatml", Path(), None, HERE), merging_facts())
    with pytest.raises(DataError, match="shares a token with the answer"):
        encode(conversation("Hi", "\nHello", "Bye", "\nGoodbye"), made)


def test_the_date_of_a_template_is_fixed(tmp_path: Path, locate: Locate, chatml: TokenizerFacts) -> None:
    source = "{{ '<|im_start|>' ~ strftime_now('%d %b %Y') ~ '<|im_end|>' }}" + str(chatml.chat_template)
    (tmp_path / "mine.jinja").write_text(source)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    texts = []
    for keys in ({}, {"template_date": "2026-01-31"}):
        made = prepared(tmp_path, locate, chatml, [row], chat_template="mine.jinja", **keys)
        texts.append(chatml.tokenizer.decode(made.train.rows[0].input_ids.tolist()))
    assert "26 Jul 2024" in texts[0]
    assert "31 Jan 2026" in texts[1]


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n"])
def test_a_text_ends_once(end: str, chatml: TokenizerFacts) -> None:
    encoded = encode(Example(HERE, text=f"Four.{end}"), make_renderer(None, chatml, "assistant", HERE))
    text = chatml.tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False)
    assert text == f"Four.{end or '<|im_end|>'}"


def test_a_chat_in_a_text_column_is_noted(tmp_path: Path, locate: Locate, chatml: TokenizerFacts) -> None:
    chat = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
    made = prepared(tmp_path, locate, chatml, [{"text": chat}, {"text": "Once."}])
    assert account("training", made.train, made.format)[1] == [f"1 training row is {DROPPED['mask']}"]


def test_a_proof_for_one_shape_serves_only_rows_of_that_shape(chatml: TokenizerFacts) -> None:
    # The template moves the system text of a conversation whose last question has a mark.
    source = (
        "{%- set moved = '<<' in messages[-1].content or (messages | length > 1 and '<<' in messages[-2].content) %}"
        "{%- for m in messages %}{% if m.role != 'system' %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{{- messages[0].content if moved and m.role == 'user' and loop.revindex0 <= 1 }}"
        "{{- m.content ~ '<|im_end|>\n' }}{% elif not moved %}{{ m.content }}{% endif %}{% endfor %}"
        "{{- '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    made = renderer(source, chatml, turns="auto")

    def rows(question: str) -> int:
        texts = ("Be brief, please.", "Hi", "Hello", question, "Goodbye")
        roles = ("system", "user", "assistant", "user", "assistant")
        turns = tuple(Message(role, text) for role, text in zip(roles, texts, strict=True))
        return len(rows_of(Example(HERE, turns), made))

    assert [rows("Bye"), rows("Bye then"), rows("Bye << then"), rows("Bye")] == [1, 1, 2, 1]


CASES: dict[str, tuple[str, Any, str]] = {
    "01_prompt_mismatch": ("deepseek-r1-distill", {"messages": [["user", "North?"], ["assistant", "Up."]]}, "1 row"),
    "03_reasoning_dropped": (
        "llama-3.1",
        {"messages": [["user", "Is 91 prime?"], ["assistant", "No.", THOUGHT]]},
        "leaves out, or moves, the reasoning",
    ),
    "05_tools_dropped": (
        "llama-3",
        {"tools": [TOOL], "messages": [["user", "Light?"], ["assistant", "Which attic?"]]},
        "leaves out, or moves, the tools",
    ),
    "06_call_dropped": ("llama-3", "call", "leaves out, or moves, a tool call"),
    "07_text_dropped": ("llama-3.1", "call", "leaves out, or moves, the text"),
    "09_result_in_turn": ("gemma-4", "call", "2 rows"),
    "15_channels": ("gpt-oss", {"messages": [["user", "2+2?"], ["assistant", "Four."]]}, "1 row"),
    "18_system_moves": (
        "mistral-nemo",
        {"messages": [["system", "Be short."], *[["user", "2+2?"], ["assistant", "Four."]] * 2]},
        "2 rows",
    ),
    "19_history": ("qwen3.5", {"messages": [["user", "2+2?"], ["assistant", "Four."]] * 2}, "2 rows"),
}
LAMP_CALL = {"tool_calls": [{"id": "call12345", "function": {"name": "lamp", "arguments": {"room": "attic"}}}]}
CALL_ROW = {
    "tools": [TOOL],
    "messages": [
        ["user", "Light in the attic, please."],
        ["assistant", "I will do it.", LAMP_CALL],
        ["tool", "It is on now.", {"tool_call_id": "call12345", "name": "lamp"}],
        ["assistant", "The attic is lit."],
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_that_public_templates_lose_in_silence_is_right_or_refused(
    case: str, every_token: TokenizerFacts
) -> None:
    name, given, expected = CASES[case]
    row = CALL_ROW if given == "call" else given
    messages = tuple(Message(*turn) for turn in row["messages"])
    made = renderer(load_template(name, Path(), None, HERE), every_token, turns="auto")
    ((rows,),) = encode_batches([[Example(HERE, messages, tuple(row.get("tools", ())))]], made)
    if isinstance(rows, Problem):
        assert expected in rows.wrong
    else:
        assert expected == f"{len(rows)} row{'s' * (len(rows) > 1)}"
        assert not any("It is on now" in trained(encoded, every_token) for _, encoded in rows)


def test_a_system_text_that_moves_is_named_with_the_way_out(every_token: TokenizerFacts) -> None:
    _, row, _ = CASES["18_system_moves"]
    example = Example(HERE, tuple(Message(*turn) for turn in row["messages"]))
    made = renderer(load_template("mistral-nemo", Path(), None, HERE), every_token)
    with pytest.raises(DataError, match=r"moves the system text to the last question.*data.turns = .split."):
        rows_of(example, made)


def test_near_repeats_are_looked_for_between_conversations_not_between_their_rows(
    tmp_path: Path, locate: Locate, chatml: TokenizerFacts
) -> None:
    texts = ["word " * 40, "one", "and", "two"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    made = prepared(tmp_path, locate, chatml, [{"messages": turns}] * 2, turns="split", deduplicate="near")
    assert [row.where.line for row in made.train.rows] == [1, 1]
    assert [(str(row.line), str(first.line)) for row, first in made.train.repeated] == [("2", "1")]


def test_a_split_row_that_is_too_long_never_trains_a_part_without_its_answer(
    tmp_path: Path, locate: Locate, chatml: TokenizerFacts
) -> None:
    texts = ["a" * 200, "one", "b" * 200, "two"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    made = prepared(tmp_path, locate, chatml, [{"messages": turns}], turns="split", overlong="split")
    assert made.train.rejected == []
    assert [trained(row, chatml) for row in made.train.rows] == ["one<|im_end|>", "two<|im_end|>"]
