"""Convert a row of any format to an Example."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastft.data.columns import Columns
from fastft.data.example import Example, Message
from fastft.data.json_rows import json_kind
from fastft.errors import DataError, Problem, Where, nearest
from fastft.recipe.data_formats import DATA_FORMATS

# The four roles of chat templates, each with its names in real data sets.
_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model"),
    "tool": ("tool", "function", "ipython", "observation"),
}
ROLES = {name: role for role, names in _NAMES.items() for name in names}
# The keys that chat templates use besides role and content.
EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
_EXTRAS = frozenset(EXTRAS)
EMPTY = ("is empty", "write text, or remove the row")
# The roles that may follow each role; None is the beginning.
FOLLOWS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool", "user"),
}
# BELLE writes a whole conversation into `instruction`: Human:...\nAssistant:...\nHuman:...\nAssistant:
BELLE_TURN = re.compile(r"^(Human|Assistant)[:：]", re.MULTILINE)


def to_example(row: Columns, data_format: str, where: Where) -> Example:
    """The Example of `row` in the format `data_format`.

    Raises:
        DataError: the row does not fit the format, or nothing can be learnt from it.
    """
    for name in DATA_FORMATS[data_format]:
        if name not in row:
            near = nearest(name, row)
            instead = f'did you mean "{near}"?' if near else f"every row of the {data_format} format needs it"
            raise DataError(Problem(where, name, "the column is missing", instead, got=", ".join(row) or "no column"))
    if data_format == "text":
        text = _text(row["text"], where, "text")
        if not text.strip():
            raise DataError(Problem(where, "text", *EMPTY))
        return Example(where, text=text)
    messages = _CONVERTERS[data_format](row, where)
    _check_turns(messages, where)
    return Example(where, messages=tuple(messages), tools=_tools(row.get("tools"), where))


def _from_messages(row: Columns, where: Where) -> list[Message]:
    return _messages(row["messages"], where, "messages")


def _from_sharegpt(row: Columns, where: Where) -> list[Message]:
    return _system(row, where) + _messages(row["conversations"], where, "conversations")


def _from_alpaca(row: Columns, where: Where) -> list[Message]:
    messages = _system(row, where)
    for index, pair in enumerate(_list(row.get("history") or [], where, "history")):
        field = f"history[{index}]"
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise DataError(Problem(where, field, "not a pair", 'write ["question", "answer"]', got=json_kind(pair)))
        messages.append(Message("user", _text(pair[0], where, f"{field}[0]")))
        messages.append(Message("assistant", _text(pair[1], where, f"{field}[1]")))
    instruction = _text(row["instruction"], where, "instruction")
    given = row.get("input")
    question = "\n".join(part for part in (instruction, _text(given, where, "input") if given else "") if part)
    return [*messages, Message("user", question), Message("assistant", _text(row["output"], where, "output"))]


def _from_belle(row: Columns, where: Where) -> list[Message]:
    text = _text(row["instruction"], where, "instruction")
    marks = list(BELLE_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        wrong = "does not begin with Human:"
        raise DataError(Problem(where, "instruction", wrong, "write Human:...\\nAssistant: or use the alpaca format"))
    messages = _system(row, where)
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        said = text[mark.end() : following.start() if following else None].strip()
        if following is None and mark[1] == "Assistant" and not said:
            break
        messages.append(Message(ROLES["human" if mark[1] == "Human" else "assistant"], said))
    return [*messages, Message("assistant", _text(row["output"], where, "output"))]


def _from_prompt_completion(row: Columns, where: Where) -> list[Message]:
    messages = _system(row, where)
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[name]
        if isinstance(value, str):
            messages.append(Message(role, _text(value, where, name)))
        else:
            messages.extend(_messages(value, where, name))
    return messages


def _from_classification(row: Columns, where: Where) -> list[Message]:
    """The text is the question, the label is the answer; a whole number becomes text."""
    label = row["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    question, answer = _text(row["text"], where, "text"), _text(label, where, "label")
    return [*_system(row, where), Message("user", question), Message("assistant", answer)]


_CONVERTERS: dict[str, Callable[[Columns, Where], list[Message]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "belle": _from_belle,
    "prompt_completion": _from_prompt_completion,
    "classification": _from_classification,
}


def _messages(value: object, where: Where, field: str) -> list[Message]:
    """The turns of an OpenAI (`role`, `content`) or ShareGPT (`from`, `value`) list; CSV cells hold it as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _from_json(value, where, field)
    turns = _list(value, where, field)
    if not turns:
        raise DataError(Problem(where, field, "there are no messages", "write at least one question and one answer"))
    return [_message(turn, where, f"{field}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: object, where: Where, field: str) -> Message:
    if not isinstance(turn, (dict, Mapping)):  # the check for dict is ten times as fast
        instead = 'write {"role": "user", "content": "..."}'
        raise DataError(Problem(where, field, "not a message", instead, got=json_kind(turn)))
    role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    if role_key not in turn:
        instead = 'name the speaker: {"role": "user", "content": "..."}'
        raise DataError(Problem(where, field, 'no "role"', instead, got=", ".join(map(str, turn)) or "an empty object"))
    given = turn[role_key]
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise DataError(_unknown_role(given, where, f"{field}.{role_key}"))
    extra = {name: turn[name] for name in EXTRAS if turn.get(name) is not None} if not _EXTRAS.isdisjoint(turn) else {}
    calls = bool(extra.get("tool_calls"))
    if content_key not in turn and not calls:
        raise DataError(Problem(where, field, f'no "{content_key}"', "add the text of the message"))
    content = turn.get(content_key)
    text = "" if content is None and calls else _text(_joined(content, where, field), where, f"{field}.{content_key}")
    weight = turn.get("weight", 1)
    if weight not in (None, 0, 1):
        instead = "write 0 to keep it out of the loss"
        raise DataError(Problem(where, f"{field}.weight", "not 0 or 1", instead, str(weight)))
    return Message(role, text, extra, trained=weight != 0)


def _unknown_role(given: object, where: Where, field: str) -> Problem:
    near = nearest(given, ROLES) if isinstance(given, str) else None
    instead = f'did you mean "{near}"?' if near else "write system, user, assistant or tool"
    got = f'"{given}"' if isinstance(given, str) else json_kind(given)
    return Problem(where, field, "unknown role", instead, got=got)


def _joined(content: object, where: Where, field: str) -> object:
    """The joined text of OpenAI content parts; any other content unchanged."""
    if not isinstance(content, list):
        return content
    parts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            got = str(part.get("type")) if isinstance(part, Mapping) else json_kind(part)
            wrong, instead = "only text parts can be trained on", 'write {"type": "text", "text": "..."}'
            raise DataError(Problem(where, f"{field}.content[{index}]", wrong, instead, got))
        parts.append(part["text"])
    return "".join(parts)


def _system(row: Columns, where: Where) -> list[Message]:
    """The system turn of a `system` column; an empty cell is none."""
    value = row.get("system")
    return [Message("system", _text(value, where, "system"))] if value else []


def _tools(value: object, where: Where) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, str) and value.strip():
        value = _from_json(value, where, "tools")
    if not value:
        return ()
    tools = _list(value, where, "tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise DataError(Problem(where, f"tools[{index}]", "not a tool", "write a JSON schema", got=json_kind(tool)))
    return tuple(tools)


def _text(value: object, where: Where, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(Problem(where, field, "not text", "write a string", got=json_kind(value)))
    if "\x00" in value:
        raise DataError(Problem(where, field, "contains a NUL character", "remove it: the text is damaged"))
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            wrong = f"contains half a character at position {error.start}"
            instead = "write the whole character: a lone surrogate is not text"
            raise DataError(Problem(where, field, wrong, instead)) from error
    return value


def _from_json(text: str, where: Where, field: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise DataError(Problem(where, field, f"not valid JSON: {error}", "write a JSON list")) from error
    return value


def _list(value: object, where: Where, field: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise DataError(Problem(where, field, "not a list", "write a list", got=json_kind(value)))
    return value


def _check_turns(messages: Sequence[Message], where: Where) -> None:
    """Check that every turn has text and may follow the turn before it, and that there is a trained answer.

    Raises:
        DataError: for the first turn that breaks a rule.
    """
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        role = message.role
        if role not in FOLLOWS[before]:
            wrong = f"{role} follows {before}" if before else f"the conversation begins with {role}"
            instead = f"expected {' or '.join(FOLLOWS[before])} here: join or remove turns"
            raise DataError(Problem(where, f"message {number}", wrong, instead))
        if role in ("user", "assistant") and not message.content.strip() and not message.extra.get("tool_calls"):
            raise DataError(Problem(where, f"message {number} ({role})", *EMPTY))
        before = role
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise DataError(Problem(where, "", "there is no assistant turn to learn from", "add the answer"))
    if not any(answer.trained for answer in answers):
        raise DataError(Problem(where, "", "every assistant turn has weight 0", "leave one to learn from"))
