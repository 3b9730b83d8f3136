from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastft.data.personal import kinds_of
from fastft.data.traits import is_cut, script_of
from fastft.recipe.model import DataSection
from tests.data.conftest import byte_tokenizer

pytest.importorskip("datasketch", reason="near repeats need the hygiene extra")
from fastft.data.hygiene import Hygiene, examine


def report(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Hygiene:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return examine(DataSection(train="rows.jsonl"), folder, **keys)


def chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to ann.lee@mail.co.uk today", {"e-mail address"}),
        ("call +49 170 1234567", {"phone number"}),
        ("call (030) 123-456-789 or 0170-123-4567", {"phone number"}),
        ("card 4111 1111 1111 1111", {"card number"}),
        ("card 4111111111111111, from 5/27", {"card number"}),
        ("key sk-abcdefghijklmnopqrstuvwx", {"key or token"}),
        ("-----BEGIN RSA PRIVATE KEY-----", {"key or token"}),
        ("on 2024-01-31 at 12:30:45, order 73113, 192.168.100.101, v1.2.3", set()),
        ("ISBN 978-3-16-148410-0, 4111 1111 1111 1112, 3.14159265358979, 1234567890123", set()),
        ("@decorator and a@b", set()),
    ],
)
def test_personal_data_is_recognised(text: str, kinds: set[str]) -> None:
    assert set(kinds_of(text)) == kinds


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        ("Paris.", False),
        ("yes", False),
        ("- one\n- two", False),
        ("```python\nx = 1\n```", False),
        ("```python\nx = 1", True),
        ("First we take the bread,", True),
        ("This is a long explanation that goes on for many words and then it suddenly", True),
        ('{"a": [1, 2]}', False),
    ],
)
def test_an_answer_that_ends_too_early_seems_cut(answer: str, cut: bool) -> None:
    assert is_cut(answer) == cut


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Grüße, naïve", "Latin"),
        ("Привет мир, ok", "Cyrillic"),
        ("你好世界", "Han"),
        ("日本語のテキストです", "Japanese"),
        ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"),
        ("नमस्ते", "Devanagari"),
        ("שלום", "Hebrew"),
        ("สวัสดี", "Thai"),
        ("12 + 3 = 15 ✓", "none"),
        ("tiếng Việt ở đây", "Latin"),
    ],
)
def test_the_script_of_a_text_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of([text]) == script


def test_the_report_counts_what_rows_hold(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "lamp", "arguments": {}}], "thinking": "The lamp."}
    rows = [
        chat("What is it?", "A lamp.", system="Be short.", id=7),
        {"messages": [{"role": "user", "content": "Light on"}, call], "tools": [{"name": "lamp"}]},
        chat("Что это такое?", "Лампа,"),
    ]
    found = report(tmp_path, rows, tokenizer=byte_tokenizer([]))
    traits = found.traits["rows.jsonl"]
    assert (traits.rows, traits.system, traits.tools, traits.reasoning, traits.cut_answers) == (3, 1, 1, 1, 1)
    texts = ("Be short.", "What is it?", "A lamp.", "Light on", "The lamp.", "Что это такое?", "Лампа,")
    assert traits.tokens == len("".join(texts).encode())
    assert found.scripts == {"Latin": 2, "Cyrillic": 1}
    assert found.unused == {"id": 1}
    assert report(tmp_path, rows).traits["rows.jsonl"].tokens is None


def test_personal_data_is_reported_by_row_and_never_printed(tmp_path: Path) -> None:
    rows = [chat("Who?", "Ann."), chat("Where?", "ann@example.com"), chat("How?", "+49 170 1234567")]
    found = report(tmp_path, rows)
    personal = {f.note: [where.line for where in f.rows] for f in found.findings if f.kind == "personal"}
    assert personal == {"looks like: e-mail address": [2], "looks like: phone number": [3]}
    assert [f.kind for f in report(tmp_path, rows, personal=False).findings] == []


def test_questions_that_are_nearly_the_same_with_other_answers_are_reported(tmp_path: Path) -> None:
    question = "Which of the two lamps in the attic of the old house by the lake should be switched on tonight"
    rows = [
        chat(f"{question}?", "The left one."),
        chat(f"{question}, please?", "The right one."),
        chat(f"{question} please", "The left one!"),
        chat(f"{question} for 7 hours?", "The right one."),
        chat(f"{question}", "The right one.", system="Answer wrongly."),
    ]
    found = report(tmp_path, rows)
    assert [[where.line for where in f.rows] for f in found.findings if f.kind == "near_contradictions"] == [[1, 2]]


def test_rows_that_differ_only_in_their_call_are_no_repeats(tmp_path: Path) -> None:
    def calling(room: str) -> dict[str, Any]:
        call = {"role": "assistant", "tool_calls": [{"name": "lamp", "arguments": {"room": room}}]}
        return {"messages": [{"role": "user", "content": "Light on"}, call]}

    found = report(tmp_path, [calling("attic"), calling("cellar")])
    assert [finding.kind for finding in found.findings] == ["contradictions"]
