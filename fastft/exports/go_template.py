"""Go's text/template, as far as Ollama's chat templates need it: parsed and rendered, so that one can be proven.

The rules: https://pkg.go.dev/text/template. Here are text, `if`, `else if`, `else`, `range $i, $m :=`, variables,
fields, texts and numbers, parentheses, `and`, `or`, `not`, `eq`, `ne`, `len` and `slice`. Anything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STRING = r"\"(?:[^\"\\\n]|\\.)*\""
_ACTION = re.compile(r"\{\{(?P<left>-(?=\s))?\s*(?P<code>(?:" + _STRING + r"|(?!\}\}).)*?)\s*(?P<right>(?<=\s)-)?\}\}")
_WORD = re.compile(r"\s*(" + _STRING + r"|[()]|\d+|\$?\w*(?:\.\w+)*\.?)")
_RANGE = re.compile(r"range\s+(\$\w+)\s*,\s*(\$\w+)\s*:=\s*(.+)")
_SET = re.compile(r"(\$\w+)\s*:=\s*(.+)")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Shown:
    code: str
    variable: str | None = None
    """Set it, and show nothing."""


@dataclass(frozen=True)
class _If:
    branches: tuple[tuple[str, _Nodes], ...]
    """(condition, what is shown); the condition of `else` is "true"."""


@dataclass(frozen=True)
class _Range:
    index: str
    item: str
    code: str
    body: _Nodes


_Nodes = Sequence["_Text | _Shown | _If | _Range"]


def render_go(source: str, values: Values) -> str:
    """What Go's text/template makes of `source` and the fields in `values`: texts, lists, tables.

    Raises:
        ValueError: it uses something that is not known here.
    """
    nodes, end, _ = _parse(list(_pieces(source)), 0)
    if end is not None:
        raise ValueError(f"{end} without a beginning")
    return _render(nodes, values, {"$": values})


def go_text(text: str) -> str:
    """`text` as a template writes it: as it is, or as a Go string where that would be read otherwise."""
    plain = all(letter.isprintable() or letter in "\n\t" for letter in text)
    if plain and "{{" not in text and not text.endswith("{") and '"""' not in text:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    # A Modelfile loses what Go does not print, such as a space of fixed width.
    seen = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in quoted)
    return f"{{{{ {seen} }}}}"


def _pieces(source: str) -> Iterator[tuple[bool, str]]:
    """(whether it is an action, its code or the text), with the white space gone that `{{-` and `-}}` take."""
    at, strip = 0, False
    for match in _ACTION.finditer(source):
        text = source[at : match.start()]
        text = text.lstrip() if strip else text
        yield False, text.rstrip() if match["left"] else text
        yield True, match["code"].strip()
        at, strip = match.end(), match["right"] is not None
    text = source[at:]
    if "{{" in text:
        raise ValueError("an action does not end")
    yield False, text.lstrip() if strip else text


def _parse(pieces: Sequence[tuple[bool, str]], at: int) -> tuple[_Nodes, str | None, int]:
    """(nodes up to an `else` or `end`, that one or None, the place after it)."""
    nodes: list[_Text | _Shown | _If | _Range] = []
    while at < len(pieces):
        is_action, code = pieces[at]
        at += 1
        if not is_action:
            nodes.append(_Text(code))
        elif code == "end" or code.split(" ")[0] == "else":
            return nodes, code, at
        elif code.startswith("if "):
            found, at = _parse_if(code[3:], pieces, at)
            nodes.append(found)
        elif found_range := _RANGE.fullmatch(code):
            body, end, at = _parse(pieces, at)
            if end != "end":
                raise ValueError("a range does not end")
            nodes.append(_Range(found_range[1], found_range[2], found_range[3], body))
        elif setting := _SET.fullmatch(code):
            nodes.append(_Shown(setting[2], setting[1]))
        else:
            nodes.append(_Shown(code))
    return nodes, None, at


def _parse_if(condition: str, pieces: Sequence[tuple[bool, str]], at: int) -> tuple[_If, int]:
    branches: list[tuple[str, _Nodes]] = []
    while True:
        body, end, at = _parse(pieces, at)
        branches.append((condition, body))
        if end == "end":
            return _If(tuple(branches)), at
        if end is None:
            raise ValueError("an if does not end")
        condition = end.removeprefix("else").strip().removeprefix("if ") or "true"


def _render(nodes: _Nodes, dot: Any, variables: dict[str, Any]) -> str:
    shown = []
    inner = dict(variables)  # a variable lives to the end of its block
    for node in nodes:
        if isinstance(node, _Text):
            shown.append(node.text)
        elif isinstance(node, _If):
            chosen = next((body for code, body in node.branches if _evaluate(code, dot, inner)), ())
            shown.append(_render(chosen, dot, inner))
        elif isinstance(node, _Range):
            for index, item in enumerate(_evaluate(node.code, dot, inner) or ()):
                shown.append(_render(node.body, item, {**inner, node.index: index, node.item: item}))
        elif node.variable is not None:
            inner[node.variable] = _evaluate(node.code, dot, inner)
        else:
            value = _evaluate(node.code, dot, inner)
            shown.append({True: "true", False: "false"}[value] if isinstance(value, bool) else str(value))
    return "".join(shown)


def _evaluate(code: str, dot: Any, variables: Mapping[str, Any]) -> Any:
    words, at = [], 0
    while at < len(code):
        match = _WORD.match(code, at)
        if match is None or not match[1]:
            raise ValueError(f"not known here: {code}")
        words.append(match[1])
        at = match.end()
    value, rest = _command(words, dot, variables)
    if rest:
        raise ValueError(f"not known here: {code}")
    return value


def _command(words: list[str], dot: Any, variables: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """(the value of an operand or of a function with its arguments, the words after it)."""
    if words and words[0] in _FUNCTIONS:
        name, rest, arguments = words[0], words[1:], []
        while rest and rest[0] != ")":
            value, rest = _operand(rest, dot, variables)
            arguments.append(value)
        return _FUNCTIONS[name](arguments), rest
    return _operand(words, dot, variables)


def _operand(words: list[str], dot: Any, variables: Mapping[str, Any]) -> tuple[Any, list[str]]:
    if not words:
        raise ValueError("an operand is missing")
    word, rest = words[0], words[1:]
    if word == "(":
        value, rest = _command(rest, dot, variables)
        if not rest or rest[0] != ")":
            raise ValueError("a parenthesis does not end")
        return value, rest[1:]
    if word[0] == '"':
        return json.loads(word), rest
    if word.isdigit():
        return int(word), rest
    if word in ("true", "false"):
        return word == "true", rest
    root, *fields = word.split(".")
    if word == ".":
        return dot, rest
    if root and root not in variables:
        raise ValueError(f"not known here: {word}")
    value = variables[root] if root else dot
    for field in fields:
        value = value[field]
    return value, rest


def _any(arguments: Sequence[Any], stops_at: bool) -> Any:
    """Go's `and` and `or`: the first argument that decides, else the last."""
    return next((value for value in arguments if bool(value) is stops_at), arguments[-1])


_FUNCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "and": lambda arguments: _any(arguments, stops_at=False),
    "or": lambda arguments: _any(arguments, stops_at=True),
    "not": lambda arguments: not arguments[0],
    "eq": lambda arguments: any(arguments[0] == other for other in arguments[1:]),
    "ne": lambda arguments: arguments[0] != arguments[1],
    "len": lambda arguments: len(arguments[0]),
    "slice": lambda arguments: arguments[0][slice(*arguments[1:]) if len(arguments) > 2 else slice(arguments[1], None)],
}
