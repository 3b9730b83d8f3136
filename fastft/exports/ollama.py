"""Ollama's Modelfile: the end tokens, and the chat template in Go's language, proven equal to the Jinja one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastft.errors import FastftError
from fastft.exports.go_template import go_text, render_go
from fastft.inference.conversation import ChatMessage, render_chat

# Words that no template has, so that what stands around them is the template's.
_SYSTEM, _USER, _ANSWER, _AGAIN = "Qsystemz", "Quserz", "Qanswerz", "Qagainz"
# Ollama gives messages as they are; most templates trim them, so that these have no white space around them.
_TEXTS = ("Hello!", 'Two\nlines, \t{{ braces }} and "quotes"', "Größe 5 µm, 日本語 🦊", "<b>x</b> & y", "12 345", "?")


class _Render(Protocol):
    """The prompt of texts by turns, the first one a question."""

    def __call__(self, *texts: str, system: str | None = None) -> str: ...


@dataclass(frozen=True)
class _Pieces:
    """What a template writes around the texts of a conversation."""

    start: str
    """Before the first question, without a system text."""
    system: tuple[str, str] | None
    """Around the system text, from the start of the prompt or of the last question; None: the template refuses one."""
    system_is_last: bool
    """The system text moves with the last question."""
    to_answer: str
    to_question: str
    end: str
    """After the last question."""


def modelfile(gguf_name: str, stop_texts: tuple[str, ...], template: str | None) -> str:
    """Ollama's Modelfile for the GGUF file beside it, with a Go `template`; None: Ollama looks for one of its own."""
    lines = [f"FROM ./{gguf_name}", "PARAMETER temperature 0"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append(
            "# The chat template in the file has no form that Ollama knows: use fastft serve, or ask with raw prompts"
        )
    return "\n".join([*lines, *(f"PARAMETER stop {_quoted(text)}" for text in stop_texts)]) + "\n"


def go_template(jinja: str, special_tokens: Mapping[str, str], adds_bos: bool) -> str | None:
    """The Go template that writes what the chat template `jinja` writes; None where fastft can make none that does.

    Compared on conversations of one to three questions, with and without a system text. Without the beginning token
    where llama.cpp adds it (`adds_bos`). Tools are not part of it.
    """
    bos = special_tokens.get("bos_token", "") if adds_bos else ""

    def render(*texts: str, system: str | None = None) -> str:
        return render_chat(jinja, _conversation(texts, system), dict(special_tokens)).removeprefix(bos)

    try:
        pieces = _find_pieces(render)
        if pieces is None:
            return None
        source = _write(pieces)
        for count in (1, 3, 5):
            for system in (None, *(("Be brief.\nAnd kind.",) if pieces.system else ())):
                texts = [_TEXTS[(count + place) % len(_TEXTS)] for place in range(count)]
                if render_ollama(source, _conversation(texts, system)) != render(*texts, system=system):
                    return None
    except (FastftError, ValueError):  # a template that refuses plain questions, or looks into their text
        return None
    return source


def render_ollama(source: str, messages: Sequence[ChatMessage]) -> str:
    """The prompt that Ollama makes: `System` is all system texts, `Messages` has neighbours of one role joined.

    The rules: `collate` and `Execute` in Ollama's template/template.go.

    Raises:
        ValueError: as `render_go`.
    """
    joined: list[ChatMessage] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += "\n\n" + message["content"]
        else:
            joined.append(dict(message))
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    fields = [{"Role": message["role"], "Content": message["content"]} for message in joined]
    return render_go(source, {"System": system, "Messages": fields})


def _conversation(texts: Sequence[str], system: str | None) -> list[ChatMessage]:
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*start, *({"role": roles[place % 2], "content": text} for place, text in enumerate(texts))]


def _find_pieces(render: _Render) -> _Pieces | None:
    once, twice = render(_USER), render(_USER, _ANSWER, _AGAIN)
    if once.count(_USER) != 1 or any(twice.count(text) != 1 for text in (_USER, _ANSWER, _AGAIN)):
        return None
    start, end = once.split(_USER)
    head, rest = twice.split(_USER)
    to_answer, rest = rest.split(_ANSWER)
    to_question, tail = rest.split(_AGAIN)
    if (head, tail) != (start, end):
        return None
    try:
        with_system, later = render(_USER, system=_SYSTEM), render(_USER, _ANSWER, _AGAIN, system=_SYSTEM)
    except FastftError:  # such a template refuses system texts
        return _Pieces(start, None, False, to_answer, to_question, end)
    if with_system.count(_SYSTEM) != 1 or _USER not in with_system:
        return None
    before, rest = with_system.split(_SYSTEM)
    is_last = later.find(_SYSTEM) > later.find(_USER)
    around = (before[len(start) :] if is_last else before, rest.split(_USER)[0])
    return _Pieces(start, around, is_last, to_answer, to_question, end)


def _write(pieces: _Pieces) -> str:
    start, end = go_text(pieces.start), go_text(pieces.end)
    to_answer, to_question = go_text(pieces.to_answer), go_text(pieces.to_question)
    lead = ""
    if pieces.system is not None:
        before, after = map(go_text, pieces.system)
        if pieces.system_is_last:
            lead = f"{{{{ if and $last $.System }}}}{before}{{{{ $.System }}}}{after}{{{{ end }}}}"
        else:
            start = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{start}{{{{ end }}}}"
    question = f"{lead}{{{{ .Content }}}}{{{{ if $last }}}}{end}{{{{ else }}}}{to_answer}{{{{ end }}}}"
    answer = f"{{{{ .Content }}}}{{{{ if not $last }}}}{to_question}{{{{ end }}}}"
    question = f"{lead}{{{{ .Content }}}}{{{{ if $last }}}}{end}{{{{ else }}}}{to_answer}{{{{ end }}}}"
    answer = f"{{{{ .Content }}}}{{{{ if not $last }}}}{to_question}{{{{ end }}}}"
    return (
        f"{start}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
        f'{{{{ if eq .Role "user" }}}}{question}{{{{ else if eq .Role "assistant" }}}}{answer}'
        "{{ end }}{{ end }}"
    )


def _quoted(text: str) -> str:
    """A value of a Modelfile, whose quotes have no escapes."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'
