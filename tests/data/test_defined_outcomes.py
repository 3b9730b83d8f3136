"""Keys and columns of real files that change what is learnt: each is read, or refused with what to write instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastft.data.columns import detect_or_fail
from fastft.data.formats import to_example
from fastft.data.readers import read_rows
from fastft.errors import DataError, Where

HERE = Where("rows.jsonl", 1)
ASKED: dict[str, Any] = {"role": "user", "content": "Hi?"}
SAID: dict[str, Any] = {"role": "assistant", "content": "Yes."}
CALL = {"type": "function", "function": {"name": "lamp", "arguments": "{}"}}


def chat(*turns: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (chat(ASKED, SAID, chat_template_kwargs={"x": 1}), "data.chat_template_kwargs"),
        (chat(ASKED, SAID, enable_thinking=False), "data.chat_template_kwargs"),
        (chat(ASKED, SAID, desirable=False), "preferences are not trained"),
        (chat(ASKED, SAID, kto_tag=True), "preferences are not trained"),
        (chat(ASKED, {**SAID, "training": False}), '"weight": 0'),
        (chat(ASKED, {**SAID, "masked": True}), '"weight": 0'),
        (chat(ASKED, {**SAID, "reasoning_details": [{"text": "hm"}]}), "reasoning_content"),
        ({"prompt": "Hi?", "completion": "Yes.", "cot": "hm"}, 'reasoning_content = "cot"'),
        ({"prompt": "Hi?", "completion": None}, "completion: not text"),
        ({"conversation": [{"human": "Hi?", "assistant": "Yes."}]}, "pairs of human and assistant"),
        ({"messages": [["user", "Hi?"], ["assistant", "Yes."]]}, "not a message"),
        (chat({"Role": "user", "Content": "Hi?"}), 'write "role" for "Role"'),
        (chat({"role": "user", "content": [{"type": "text", "text": []}]}, SAID), 'write {"type": "text"'),
    ],
)
def test_what_changes_the_lesson_and_is_not_read_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, detect_or_fail(row, HERE), HERE)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        chat(ASKED, {**SAID, "training": True, "masked": False}, desirable=1),
        {"conversations": [{"from": "user", "value": "Hi?"}, {"from": "ai", "value": "Yes."}]},
    ],
)
def test_what_says_nothing_else_is_accepted(row: dict[str, Any]) -> None:
    example = to_example(row, detect_or_fail(row, HERE), HERE)

    assert [message.content for message in example.messages] == ["Hi?", "Yes."]


def test_a_result_that_is_an_object_is_read_as_json() -> None:
    result = {"role": "tool", "content": {"lit": True, "room": "ä"}}
    example = to_example(
        chat(ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, result, SAID), "messages", HERE
    )

    assert json.loads(example.messages[2].content) == {"lit": True, "room": "ä"}


def test_links_and_folders_without_rows_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "folder").mkdir()

    for name, words in (("link.jsonl", "a link that leads to no file"), ("folder", "the folder has no file of rows")):
        with pytest.raises(DataError, match=words):
            next(read_rows(name, tmp_path))
