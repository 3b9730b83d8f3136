"""Convert a row of any format to an Example."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastft.data.calls import read_tools, without_padding
from fastft.data.columns import Columns
from fastft.data.content_parts import text_of
from fastft.data.example import Example, Message
from fastft.data.json_rows import json_kind
from fastft.data.preferences import read_pair, read_verdict
from fastft.data.turns import REASONING, Turns, read_turns
from fastft.data.unused import check_columns
from fastft.data.values import as_list, as_text, says_something
from fastft.errors import DataError, Problem, Where, nearest
from fastft.recipe.data_formats import ALL_FORMATS

if TYPE_CHECKING:
    from fastft.recipe.model import DataSection

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


@dataclass(frozen=True, slots=True)
class Rules:
    """What `[data]` says of the rows: whether the assistant may begin, which columns and keys have no effect on
    purpose, and whether every turn carries loss."""

    allow_assistant_first: bool = False
    ignored: frozenset[str] = frozenset()
    trains_all: bool = False


def rules_of(data: DataSection) -> Rules:
    """The rules of `[data]`."""
    return Rules(data.allow_assistant_first, frozenset(data.ignore), data.train_on == "all")


def to_example(row: Columns, data_format: str, where: Where, rules: Rules = Rules()) -> Example:
    """The Example of `row` in the format `data_format`.

    Raises:
        DataError: the row does not fit the format, says something that has no effect and changes what is learnt, or
            nothing can be learnt from it.
    """
    for name in ALL_FORMATS[data_format]:
        if name not in row:
            near = nearest(name, row)
            instead = f'did you mean "{near}"?' if near else f"every row of the {data_format} format needs it"
            raise DataError(Problem(where, name, "the column is missing", instead, got=", ".join(row) or "no column"))
    unused = check_columns(row, data_format, rules.ignored, where) if len(row) > 1 else set[str]()
    if data_format == "text":
        text = as_text(row["text"], where, "text")
        if not text.strip():
            raise DataError(Problem(where, "text", *EMPTY))
        return Example(where, text=text, unused=frozenset(unused))
    turns, tools = Turns(rules.ignored), read_tools(row.get("tools"), where)
    rejected: list[Message] = []
    is_bad = False
    if data_format == "preference":
        turns.messages, rejected = read_pair(row, where, turns)
        rejected = _conversation(rejected, row, where, tools, rules)
    elif data_format == "kto":
        turns.messages, is_good = read_verdict(row, where, turns)
        is_bad = not is_good
    else:
        _CONVERTERS[data_format](row, where, turns)
    messages = _conversation(turns.messages, row, where, tools, rules)
    unused |= {f"[].{key}" for key in turns.unused}
    return Example(where, tuple(messages), tools, None, frozenset(unused), tuple(rejected), is_bad)


def _conversation(
    messages: list[Message], row: Columns, where: Where, tools: Sequence[Mapping[str, Any]], rules: Rules
) -> list[Message]:
    """The messages of a row with its system text, checked."""
    messages = _with_system(messages, row, where)
    if tools:
        messages = [_without_padding(message, tools) for message in messages]
    _check_turns(messages, where, rules)
    if rules.allow_assistant_first and not rules.trains_all:
        messages = _without_loss_on_greeting(messages, where)
    return messages


def _with_system(messages: list[Message], row: Columns, where: Where) -> list[Message]:
    """The messages with the text of the `system` column first; an empty cell is none."""
    value = row.get("system")
    if not says_something(value):
        return messages
    system = Message("system", text_of(value, where, "system"))
    if messages and messages[0].role == "system":
        if messages[0].content.strip() != system.content.strip():
            wrong = "the row has two system texts, a column and a turn"
            raise DataError(Problem(where, "system", wrong, "keep one of them"))
        return messages
    return [system, *messages]


def _without_padding(message: Message, tools: Sequence[Mapping[str, Any]]) -> Message:
    calls = message.extra.get("tool_calls")
    return replace(message, extra={**message.extra, "tool_calls": without_padding(calls, tools)}) if calls else message


def _without_loss_on_greeting(messages: list[Message], where: Where) -> list[Message]:
    """The messages, with no loss on an assistant's turn that answers nobody.

    Raises:
        DataError: there is no other answer.
    """
    first = 1 if messages[0].role == "system" else 0
    if messages[first].role != "assistant":
        return messages
    if not any(message.trained for message in messages[first + 1 :] if message.role == "assistant"):
        raise DataError(Problem(where, "", "the only answer comes before any question", "add a question before it"))
    return [*messages[:first], replace(messages[first], trained=False), *messages[first + 1 :]]


def _from_messages(row: Columns, where: Where, turns: Turns) -> None:
    read_turns(row["messages"], where, "messages", turns)


def _from_sharegpt(row: Columns, where: Where, turns: Turns) -> None:
    read_turns(row["conversations"], where, "conversations", turns)


def _from_alpaca(row: Columns, where: Where, turns: Turns) -> None:
    turns.messages += _history(row, where)
    instruction = as_text(row["instruction"], where, "instruction")
    given = row.get("input")
    question = "\n".join(part for part in (instruction, as_text(given, where, "input") if given else "") if part)
    turns.messages += [Message("user", question), _answer(as_text(row["output"], where, "output"), row, where)]


def _history(row: Columns, where: Where) -> list[Message]:
    """The earlier questions and answers of the `history` column."""
    messages = []
    history = row.get("history") or []
    for index, pair in enumerate(as_list(history, where, "history")):
        field = f"history[{index}]"
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise DataError(Problem(where, field, "not a pair", 'write ["question", "answer"]', got=json_kind(pair)))
        messages.append(Message("user", as_text(pair[0], where, f"{field}[0]")))
        messages.append(Message("assistant", as_text(pair[1], where, f"{field}[1]")))
    return messages


def _answer(text: str, row: Columns, where: Where) -> Message:
    """The answer with the reasoning of its column, where the row has one."""
    texts = {as_text(row[name], where, name) for name in REASONING if says_something(row.get(name))}
    if len(texts) > 1:
        raise DataError(Problem(where, "reasoning", "the row has two reasoning texts", "keep one of the columns"))
    return Message("assistant", text, {"reasoning_content": texts.pop()} if texts else {})


def _from_belle(row: Columns, where: Where, turns: Turns) -> None:
    text = as_text(row["instruction"], where, "instruction")
    marks = list(BELLE_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        wrong = "does not begin with Human:"
        raise DataError(Problem(where, "instruction", wrong, "write Human:...\\nAssistant: or use the alpaca format"))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        said = text[mark.end() : following.start() if following else None].strip()
        if following is None and mark[1] == "Assistant" and not said:
            break
        turns.messages.append(Message("user" if mark[1] == "Human" else "assistant", said))
    turns.messages.append(Message("assistant", as_text(row["output"], where, "output")))


def _from_prompt_completion(row: Columns, where: Where, turns: Turns) -> None:
    turns.messages += _history(row, where)
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[name]
        if value is not None and not isinstance(value, str):
            read_turns(value, where, name, turns)
        elif role == "assistant":
            turns.messages.append(_answer(as_text(value, where, name), row, where))
        else:
            turns.messages.append(Message(role, as_text(value, where, name)))


def _from_classification(row: Columns, where: Where, turns: Turns) -> None:
    """The text is the question, the label is the answer; a whole number becomes text."""
    label = row["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    question, answer = as_text(row["text"], where, "text"), as_text(label, where, "label")
    turns.messages += [Message("user", question), Message("assistant", answer)]


_CONVERTERS: dict[str, Callable[[Columns, Where, Turns], None]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "belle": _from_belle,
    "prompt_completion": _from_prompt_completion,
    "classification": _from_classification,
}


def _check_turns(messages: Sequence[Message], where: Where, rules: Rules) -> None:
    """Check that every turn has text and may follow the turn before it, and that there is a trained answer.

    Raises:
        DataError: for the first turn that breaks a rule.
    """
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        role = message.role
        if role not in FOLLOWS[before] and not _is_greeting(role, before, rules):
            wrong = f"{role} follows {before}" if before else f"the conversation begins with {role}"
            instead = f"expected {' or '.join(FOLLOWS[before])} here: join or remove turns"
            if _is_greeting(role, before, Rules(allow_assistant_first=True)):
                instead += ", or set data.allow_assistant_first = true"
            raise DataError(Problem(where, f"message {number}", wrong, instead))
        if role in ("user", "assistant") and not message.content.strip() and not message.extra.get("tool_calls"):
            raise DataError(Problem(where, f"message {number} ({role})", *EMPTY))
        before = role
    _check_answers(messages, where, rules)


def _check_answers(messages: Sequence[Message], where: Where, rules: Rules) -> None:
    """Check that there is a trained answer.

    Raises:
        DataError: there is none, or one is kept out of the loss where every turn is trained.
    """
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise DataError(Problem(where, "", "there is no assistant turn to learn from", "add the answer"))
    if not any(answer.trained for answer in answers):
        raise DataError(Problem(where, "", "every assistant turn has weight 0", "leave one to learn from"))
    if rules.trains_all and not all(answer.trained for answer in answers):
        wrong = 'a turn is kept out of the loss, and data.train_on = "all" trains every turn'
        raise DataError(Problem(where, "", wrong, 'remove the mark, or write train_on = "assistant"'))


def _is_greeting(role: str, before: str | None, rules: Rules) -> bool:
    """Whether the assistant begins the conversation, and may."""
    return rules.allow_assistant_first and role == "assistant" and before in (None, "system")
