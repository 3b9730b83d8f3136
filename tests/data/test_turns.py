from __future__ import annotations

import json
from typing import Any

import pytest

from fastft.data.example import Example
from fastft.data.formats import Rules, to_example
from fastft.data.template import ChatTemplate
from fastft.errors import DataError, Where

HERE = Where("rows.jsonl", 3)
USER = {"role": "user", "content": "Light on"}
ANSWER = {"role": "assistant", "content": "Done."}
CALL = {"type": "function", "function": {"name": "lamp", "arguments": {"room": "attic"}}}
RESULT = {"role": "tool", "content": "on"}
READ_CALL = [("user", "Light on", {}), ("assistant", "", {"tool_calls": [CALL]}), ("tool", "on", {})]
TOOL = {"name": "lamp", "description": "switch", "parameters": {"type": "object", "properties": {"room": {}}}}


def read(*turns: object, rules: Rules = Rules(), **columns: Any) -> Example:  # noqa: B008 -- frozen
    return to_example({"messages": list(turns), **columns}, "messages", HERE, rules)


def said(example: Example) -> list[tuple[str, str, dict[str, Any]]]:
    return [(message.role, message.content, dict(message.extra)) for message in example.messages]


def refusal(*turns: object, rules: Rules = Rules(), **columns: Any) -> str:  # noqa: B008 -- frozen
    with pytest.raises(DataError) as caught:
        read(*turns, rules=rules, **columns)
    assert str(caught.value).startswith("rows.jsonl:3: ")
    return str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"name": "lamp", "arguments": {"room": "attic"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "lamp", "arguments": '{"room": "attic"}'}}]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": "", "function_call": {"name": "lamp", "arguments": '{"room": "attic"}'}},
        {"from": "function_call", "value": '{"name": "lamp", "arguments": {"room": "attic"}}'},
        {"role": "tool_call", "content": '[{"name": "lamp", "arguments": {"room": "attic"}}]'},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "lamp", "input": {"room": "attic"}}]},
        {"role": "assistant", "content": [{"toolUse": {"name": "lamp", "input": {"room": "attic"}}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "lamp", "args": {"room": "attic"}}}]},
    ],
)
def test_a_call_of_a_tool_is_read_from_every_dialect(call: dict[str, Any]) -> None:
    assert said(read(USER, call, RESULT, ANSWER))[:3] == READ_CALL


@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "content": "on"},
        {"from": "observation", "value": "on"},
        {"role": "tool_response", "content": [{"text": "on"}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "on"}]},
        {"role": "user", "content": [{"toolResult": {"content": [{"text": "on"}]}}]},
        {"role": "user", "parts": [{"functionResponse": {"response": "on"}}]},
    ],
)
def test_a_result_of_a_tool_is_a_turn_of_the_tool(result: dict[str, Any]) -> None:
    assert said(read(USER, {"role": "assistant", "tool_calls": [CALL]}, result, ANSWER))[:3] == READ_CALL


@pytest.mark.parametrize(
    "written", ["{{ '(' + a + ')' }}", "({{ a | tojson }})", "({{ a if a is string else a | tojson }})"]
)
def test_templates_write_arguments_as_json_whether_they_expect_an_object_or_text(written: str) -> None:
    source = "{% set a = messages[1].tool_calls[0].function.arguments %}" + written
    messages = read(USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT, ANSWER).messages
    assert ChatTemplate("x", source).render(messages, {}, where=HERE) == '({"room": "attic"})'


def test_calls_that_are_turns_of_their_own_are_one_turn_with_what_was_said_before() -> None:
    one, two = ({"role": "tool_call", "content": json.dumps({"name": name})} for name in "ab")
    example = read(USER, {"role": "assistant", "content": "I look."}, one, two, RESULT, ANSWER)
    assert [role for role, _, _ in said(example)] == ["user", "assistant", "tool", "assistant"]
    assert [call["function"]["name"] for call in example.messages[1].extra["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize(
    "turn",
    [
        {**ANSWER, "reasoning_content": "Easy."},
        {**ANSWER, "reasoning": "Easy."},
        {**ANSWER, "thinking": "Easy.", "reasoning_content": "Easy."},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Easy."}, {"type": "text", "text": "Done."}],
        },
        {
            "role": "assistant",
            "content": [{"reasoningContent": {"reasoningText": {"text": "Easy."}}}, {"text": "Done."}],
        },
        {"role": "assistant", "content": [{"type": "reasoning", "value": "Easy."}, {"type": "text", "value": "Done."}]},
    ],
)
def test_reasoning_is_read_under_every_name(turn: dict[str, Any]) -> None:
    assert said(read(USER, turn))[1] == ("assistant", "Done.", {"reasoning_content": "Easy."})


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"loss_weight": 0.0}, {"trainable": False}]
)
def test_every_mark_keeps_a_turn_out_of_the_loss(mark: dict[str, Any]) -> None:
    example = read(USER, {**ANSWER, **mark}, USER, ANSWER)
    assert [message.trained for message in example.messages] == [True, False, True, True]
    assert not read(USER, {"role": "assistant", "content": [{"text": "a", **mark}]}, USER, ANSWER).messages[1].trained
    assert "trains every turn" in refusal(USER, {**ANSWER, **mark}, USER, ANSWER, rules=Rules(trains_all=True))


@pytest.mark.parametrize("content", ["Done.", ["Do", "ne."], [{"text": "Do"}, {"type": "output_text", "text": "ne."}]])
def test_text_is_text_in_every_kind_of_part(content: object) -> None:
    assert said(read(USER, {"role": "assistant", "content": content}))[1] == ("assistant", "Done.", {})


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({**ANSWER, "weight": 0.5}, "messages[1].weight: not 0 or 1"),
        ({**ANSWER, "loss_weight": 0.3}, "messages[1].loss_weight: not 0 or 1"),
        ({**ANSWER, "train": True, "loss": False}, "marks ask for loss on the turn and for none (got train, loss)"),
        ({"role": "assistant", "content": [{"text": "a", "train": False}, {"text": "b"}]}, "kept out of the loss"),
        ({**ANSWER, "images": ["1.jpg"]}, "messages[1].images: cannot be trained"),
        ({**ANSWER, "thought": "Easy."}, 'did you mean "reasoning_content"?'),
        ({**ANSWER, "reasoning": "Easy.", "thinking": "Hard."}, "two reasoning texts (got reasoning, thinking)"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}, 'the call has no "name"'),
        ({"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{room: 1"}]}, "arguments: not valid JSON"),
        (
            {"role": "assistant", "tool_calls": [{"name": "a", "arguments": [1]}]},
            "arguments: not an object (got a list)",
        ),
        ({"role": "function_call", "content": "lamp on"}, "not valid JSON"),
        ({"role": "assistant", "content": [{"type": "tool_use", "name": "a"}, {"text": "b"}]}, "text after a call"),
        ({"role": "assistant", "content": [{"type": "text", "txt": "b"}]}, 'did you mean "txt"?'),
    ],
)
def test_what_no_message_can_hold_is_refused(turn: dict[str, Any], expected: str) -> None:
    assert expected in refusal(USER, turn)


def test_a_question_can_not_be_marked_for_loss() -> None:
    assert "asks for loss on a turn of the user" in refusal({**USER, "train": True}, ANSWER)
    assert read({**USER, "train": False, "weight": 1 - 1}, ANSWER).messages[1].trained


def test_keys_that_describe_a_turn_are_named_and_empty_ones_are_not() -> None:
    example = read(
        {**USER, "timestamp": 3, "images": [], "refusal": None}, {**ANSWER, "model": "x", "tool_calls": None}
    )
    assert example.unused == {"[].timestamp", "[].model"}
    assert read({**USER, "from": "Bob"}, {**ANSWER, "from": "gpt"}).unused == {"[].from"}
    assert read({**USER, "timestamp": 3}, ANSWER, rules=Rules(ignored=frozenset({"timestamp"}))).unused == set()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"system_prompt": "Be kind."}, 'write columns = { system = "system_prompt" }'),
        ({"functions": [TOOL]}, 'write columns = { tools = "functions" }'),
        ({"label": False}, "preferences are not trained"),
        ({"chosen": "a", "rejected": "b"}, "preferences are not trained"),
        ({"images": ["1.jpg"]}, "invent what it does not see"),
        ({"loss_weight": 0.5}, "weights of rows have no effect"),
        ({"reasoning": "Easy."}, 'write it as "reasoning_content"'),
        ({"history": [["a", "b"]]}, "history: has no effect in the messages format"),
    ],
)
def test_columns_that_change_what_is_learnt_are_refused_unless_ignored(columns: dict[str, Any], expected: str) -> None:
    assert expected in refusal(USER, ANSWER, **columns)
    assert read(USER, ANSWER, rules=Rules(ignored=frozenset(columns)), **columns).unused == set()
    assert read(USER, ANSWER, **dict.fromkeys(columns)).unused == set()


def test_other_columns_are_named() -> None:
    assert read(USER, ANSWER, id=7, source="x", note="").unused == {"id", "source"}


def test_the_system_column_is_used_beside_messages() -> None:
    assert said(read(USER, ANSWER, system="Be kind."))[0] == ("system", "Be kind.", {})
    assert said(read(USER, ANSWER, system=[{"text": "Be kind."}]))[0] == ("system", "Be kind.", {})
    system = {"role": "system", "content": "Be kind."}
    assert len(read(system, USER, ANSWER, system="Be kind.").messages) == 3
    assert "two system texts" in refusal(system, USER, ANSWER, system="Be strict.")


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": TOOL}],
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{"name": "lamp", "description": "switch", "input_schema": TOOL["parameters"]}],
        [{**TOOL, "parameters": json.dumps(TOOL["parameters"])}],
        [{**TOOL, "parameters": {"type": "object", "properties": {"room": {}, "city": None}}}],
    ],
)
def test_tools_are_read_from_every_form(tools: object) -> None:
    assert read(USER, ANSWER, tools=tools).tools == ({"type": "function", "function": TOOL},)


def test_null_arguments_that_the_tool_does_not_have_come_from_arrow_and_disappear() -> None:
    given = {"name": "lamp", "arguments": {"room": None, "city": None}}
    example = read(USER, {"role": "assistant", "tool_calls": [given]}, RESULT, ANSWER, tools=[TOOL])
    assert example.messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"room": None}


def test_the_assistant_may_begin_when_the_recipe_says_so_and_its_greeting_is_not_trained() -> None:
    greeting = {"role": "assistant", "content": "Hello!"}
    assert "data.allow_assistant_first" in refusal(greeting, USER, ANSWER)
    rules = Rules(allow_assistant_first=True)
    assert [message.trained for message in read(greeting, USER, ANSWER, rules=rules).messages] == [False, True, True]
    assert "before any question" in refusal(greeting, USER, rules=rules)
    assert "user follows user" in refusal(greeting, USER, USER, ANSWER, rules=rules)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_reasoning_column_belongs_to_the_answer_of_a_row_with_one(name: str) -> None:
    for row, data_format in (
        ({"prompt": "2+2?", "completion": "4"}, "prompt_completion"),
        ({"instruction": "2+2?", "output": "4"}, "alpaca"),
    ):
        example = to_example({**row, name: "Easy."}, data_format, HERE)
        assert said(example)[1] == ("assistant", "4", {"reasoning_content": "Easy."})


def test_an_input_or_history_that_the_format_does_not_read_is_not_lost() -> None:
    row = {"prompt": "add", "completion": "3", "history": [["hi", "hello"]]}
    assert [role for role, _, _ in said(to_example(row, "prompt_completion", HERE))] == ["user", "assistant"] * 2
    with pytest.raises(DataError, match="input: has no effect in the prompt_completion format"):
        to_example({**row, "input": "1 2"}, "prompt_completion", HERE)
