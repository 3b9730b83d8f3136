"""Held-out answers before and after training, beside their reference, with what differs marked."""

from __future__ import annotations

import difflib
import re

from fastft.report.html import Markup, element, escaped, joined
from fastft.runs.result import ExactMatch, ShownAnswer

# Of each kind; the rest is in result.json.
SHOWN = 3
# Letters of a text on the page. Comparing two texts takes time that grows with the square of their words.
LONGEST = 1500


def answers_section(match: ExactMatch | None, by: tuple[str, str] = ("before training", "after training")) -> Markup:
    """Some answers of each kind, with how many there are; `by`: when, or by which model, each of two was given."""
    if match is None:
        return element("p", "No answers were generated: [eval] exact_match = true asks for them.")
    answers = match.answers or (match.example,)
    old, new = by
    # (right before, right after), in the order of the page.
    names = {
        (False, True): f"right only {new}",
        (True, False): f"right only {old}",
        (False, False): f"wrong {old} and {new}",
        (True, True): f"right {old} and {new}",
    }
    kinds: dict[str, list[ShownAnswer]] = {name: [] for name in names.values()}
    for each in answers:
        kinds[names[each.was_right, each.is_right]].append(each)
    marks = "Marked in the answers: what the reference does not have; struck out: what only the reference has."
    parts = [element("p", marks, class_="soft")]
    for name, found in kinds.items():
        if found:
            shown = f", {SHOWN} shown" if len(found) > SHOWN else ""
            parts.append(element("h3", f"{len(found)} of {len(answers)} {name}{shown}"))
            parts += [_answer(each, by) for each in found[:SHOWN]]
    return joined(*parts)


def _answer(answer: ShownAnswer, by: tuple[str, str]) -> Markup:
    old, new = (name.removesuffix(" training") for name in by)
    columns = [("asked", escaped(cut(answer.question))), ("reference", escaped(cut(answer.reference)))]
    if answer.before is not None:
        columns.append((old, _marked(cut(answer.before), cut(answer.reference))))
    columns.append((new, _marked(cut(answer.after), cut(answer.reference))))
    made = (element("div", element("h3", name), element("pre", text)) for name, text in columns)
    return element("div", *made, class_="answer")


def _marked(text: str, reference: str) -> Markup:
    """`text`, with what is not in the reference as <ins>, and what only the reference has as <del>."""
    if not text:
        return element("i", "(nothing)")
    words, wanted = (re.findall(r"\s+|\w+|[^\w\s]", each) for each in (text, reference))
    parts = []
    matcher = difflib.SequenceMatcher(None, wanted, words, autojunk=False)
    if matcher.ratio() < 0.3:  # marking nearly every word shows nothing
        return escaped(text)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            parts.append(escaped("".join(words[c:d])))
            continue
        if b > a:
            parts.append(element("del", "".join(wanted[a:b])))
        if d > c:
            parts.append(element("ins", "".join(words[c:d])))
    return joined(*parts)


def cut(text: str, longest: int = LONGEST) -> str:
    """The beginning of a text, with how much is left out."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} letters more)"
