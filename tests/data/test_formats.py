from __future__ import annotations

from typing import Any

import pytest

from fastft.data.columns import detect, detect_or_fail, rename
from fastft.data.example import Message
from fastft.data.formats import to_example
from fastft.errors import DataError, Where

HERE = Where("rows.jsonl", 3)
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


def turns(row: dict[str, Any], data_format: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in to_example(row, data_format, HERE).messages]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["messages", "text"], "messages"),
        (["conversations"], "sharegpt"),
        (["instruction", "input", "output"], "alpaca"),
        (["prompt", "completion"], "prompt_completion"),
        (["text", "id"], "text"),
        (["question", "answer"], None),
    ],
)
def test_the_format_is_detected_from_the_columns(columns: list[str], expected: str | None) -> None:
    assert detect(dict.fromkeys(columns, "x")) == expected


@pytest.mark.parametrize(
    ("row", "data_format"),
    [
        ({"messages": [{"role": "system", "content": "be kind"}, USER, ANSWER]}, "messages"),
        ({"messages": '[{"role": "developer", "content": "be kind"},' + '{"role":"user","content":"hi"},'
          '{"role":"assistant","content":"hello"}]'}, "messages"),
        ({"system": "be kind", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
         "sharegpt"),
        ({"system": "be kind", "instruction": "hi", "input": "", "output": "hello"}, "alpaca"),
        ({"system": "be kind", "prompt": "hi", "completion": "hello"}, "prompt_completion"),
        ({"prompt": [{"role": "system", "content": "be kind"}, USER], "completion": [ANSWER]}, "prompt_completion"),
    ],
)  # fmt: skip
def test_every_format_becomes_the_same_messages(row: dict[str, Any], data_format: str) -> None:
    assert turns(row, data_format) == [("system", "be kind"), ("user", "hi"), ("assistant", "hello")]


def test_alpaca_joins_the_input_and_puts_the_history_first() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3", "history": [["hi", "hello"]]}
    assert turns(row, "alpaca") == [("user", "hi"), ("assistant", "hello"), ("user", "add\n1 2"), ("assistant", "3")]


def test_an_answer_of_nothing_but_a_tool_call_needs_no_content() -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    turns = [{"role": "user", "content": "Add"}, {"role": "assistant", "tool_calls": call}]
    example = to_example({"messages": turns}, "messages", HERE)
    assert example.messages[1] == Message("assistant", "", {"tool_calls": call})


def test_text_parts_are_joined_and_tool_calls_survive() -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
            {"role": "assistant", "content": None, "tool_calls": call},
            {"role": "tool", "content": "3", "tool_call_id": "x"},
            ANSWER,
        ],
        "tools": [{"type": "function"}],
    }
    example = to_example(row, "messages", HERE)
    assert example.messages[0].content == "hi"
    assert example.messages[1].extra == {"tool_calls": call}
    assert example.messages[2].as_template_value() == {"role": "tool", "content": "3", "tool_call_id": "x"}
    assert example.tools == ({"type": "function"},)


def test_an_answer_of_weight_0_is_kept_but_not_trained() -> None:
    messages = [USER, {**ANSWER, "weight": 0}, USER, ANSWER]
    trained = [m.trained for m in to_example({"messages": messages}, "messages", HERE).messages]
    assert trained == [True, False, True, True]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "messages: there are no messages"),
        (None, "messages: not a list (got null)"),
        ("hi", "messages: not a list (got a string)"),
        (["hi"], "messages[0]: not a message (got a string)"),
        ([{"content": "hi"}, ANSWER], 'messages[0]: no "role"'),
        ([{"role": "user"}, ANSWER], 'messages[0]: no "content"'),
        ([USER, {"role": "asistant", "content": "hello"}], 'unknown role (got "asistant"); did you mean "assistant"?'),
        ([USER, {"role": 3, "content": "hello"}], "unknown role (got a number)"),
        ([{"role": "user", "content": None}, ANSWER], "messages[0].content: not text (got null)"),
        ([{"role": "user", "content": 5}, ANSWER], "messages[0].content: not text (got a number)"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "only text parts"),
        ([{"role": "user", "content": "a\x00"}, ANSWER], "NUL"),
        ([{"role": "user", "content": "a\ud800"}, ANSWER], "half a character at position 1"),
        ([USER], "there is no assistant turn"),
        ([{"role": "user", "content": " \n"}, ANSWER], "message 1 (user): is empty"),
        ([USER, {"role": "assistant", "content": ""}], "message 2 (assistant): is empty"),
        ([ANSWER, USER, ANSWER], "the conversation begins with assistant"),
        ([USER, USER, ANSWER], "user follows user"),
        ([USER, ANSWER, ANSWER], "assistant follows assistant"),
        ([USER, {"role": "system", "content": "x"}, ANSWER], "system follows user"),
        ([USER, {**ANSWER, "weight": 0}], "every assistant turn has weight 0"),
        ([USER, {**ANSWER, "weight": 0.5}], "not 0 or 1"),
    ],
)
def test_a_row_that_cannot_be_trained_is_refused_at_its_line(messages: object, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example({"messages": messages}, "messages", HERE)
    assert str(caught.value).startswith("rows.jsonl:3: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, "", "  "])
def test_plain_text_must_be_text(value: object) -> None:
    with pytest.raises(DataError):
        to_example({"text": value}, "text", HERE)


def test_unknown_columns_list_what_would_fit() -> None:
    mapping = r"write columns = \{ prompt = .question., completion = .answer. \}"
    with pytest.raises(DataError, match=r"fit no known format \(got question, answer\); " + mapping):
        detect_or_fail({"question": "", "answer": ""}, HERE)
    with pytest.raises(DataError, match=r"fit no known format \(got a, b\); map them in data\.columns to one of"):
        detect_or_fail({"a": 1, "b": 2}, HERE)


def test_a_missing_column_names_the_nearest_one_and_the_format_that_would_fit() -> None:
    with pytest.raises(DataError, match=r'no column "conversations" for sharegpt .*did you mean "conversation"'):
        detect_or_fail({"conversation": []}, HERE, "sharegpt")
    with pytest.raises(DataError, match=r'The columns fit format = "text"'):
        detect_or_fail({"text": ""}, HERE, "messages")


def test_a_later_row_without_the_column_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3: messages: the column is missing \(got text\)"):
        to_example({"text": "x"}, "messages", HERE)


def test_belle_conversations_are_not_alpaca_rows_and_are_split_into_turns() -> None:
    row = {"instruction": "Human:hi\nAssistant:hello\nthere\nHuman: bye\nAssistant:", "input": "", "output": "goodbye"}
    assert detect(row) == "belle"
    assert turns(row, "belle") == [
        ("user", "hi"),
        ("assistant", "hello\nthere"),
        ("user", "bye"),
        ("assistant", "goodbye"),
    ]
    assert detect({**row, "instruction": "Who is Human: X?"}) == "alpaca"
    with pytest.raises(DataError, match="does not begin with Human:"):
        to_example({"instruction": "hi", "output": "hello"}, "belle", HERE)


def test_columns_are_read_under_the_names_that_the_recipe_gives() -> None:
    columns = {"prompt": "question", "completion": "answer"}
    row = rename({"question": "hi", "answer": "hello", "id": 3}, columns, HERE)
    assert turns(dict(row), "prompt_completion") == [("user", "hi"), ("assistant", "hello")]
    with pytest.raises(DataError, match=r'no column "question" \(got questions, answer\); did you mean "questions"\?'):
        rename({"questions": "hi", "answer": "hello"}, columns, HERE)


@pytest.mark.parametrize(("label", "answer"), [("positive", "positive"), (3, "3")])
def test_a_label_is_what_the_model_answers(label: object, answer: str) -> None:
    example = to_example({"text": "What a day!", "label": label}, "classification", HERE)

    assert [(message.role, message.content) for message in example.messages] == [
        ("user", "What a day!"),
        ("assistant", answer),
    ]


@pytest.mark.parametrize("label", [None, True, 0.5, ["a"], ""])
def test_a_label_that_is_no_word_or_number_is_refused(label: object) -> None:
    with pytest.raises(DataError):
        to_example({"text": "What a day!", "label": label}, "classification", HERE)
