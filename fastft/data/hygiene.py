"""Problems of a data set as a whole: repeats, leaks, contradictions, imbalance, outliers, with row numbers.

Nothing here changes what is trained (data.deduplicate does). Figures come from the rows before any chat template.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Literal

from fastft.data.columns import detect_or_fail, rename
from fastft.data.example import Example, Message
from fastft.data.formats import rules_of, to_example
from fastft.data.labels import to_labelled
from fastft.data.near import NearRepeats
from fastft.data.sources import Source, evaluation_source, training_sources
from fastft.data.traits import Collector, Traits
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fastft.recipe.model import ClassificationSection, DataSection

Kind = Literal[
    "exact_repeats",
    "near_repeats",
    "leaked_rows",
    "leaked_prompts",
    "contradictions",
    "near_contradictions",
    "repeated_answers",
    "outliers",
    "cut_answers",
    "personal",
]
# Answers are labels when there are at most this many different ones, each with this many rows on average.
MOST_LABELS = 50
ROWS_PER_LABEL = 5
# Report an answer that at least this share of the rows gives (and at least ten rows).
REPEATED_ANSWER_SHARE = 0.02


@dataclass(frozen=True)
class Finding:
    """A group of rows with one problem. For repeats and leaks, the first row is the one that the others repeat."""

    kind: Kind
    rows: tuple[Where, ...]
    note: str = ""


@dataclass(frozen=True)
class Hygiene:
    """The report: counts, findings and balances. `labels` is empty where answers are free text."""

    rows: int
    evaluation_rows: int
    unreadable: int
    findings: tuple[Finding, ...]
    sources: dict[str, int]
    labels: dict[str, int]
    # Distinct first three words of questions, per row: 1 where no two questions begin with the same words.
    prompt_diversity: float
    # Characters of a row: least, quarter, half, three quarters, most.
    lengths: tuple[int, int, int, int, int]
    # What the training rows hold, by source.
    traits: dict[str, Traits]
    # Training rows by the script of most of their letters.
    scripts: dict[str, int]
    # In how many training rows each column, or key of turns as "[].key", has no effect.
    unused: dict[str, int]

    def count(self, kind: Kind) -> int:
        """How many rows have findings of `kind`, without the first row of each group of repeats or leaks."""
        groups = [finding.rows for finding in self.findings if finding.kind == kind]
        first = 1 if kind in ("exact_repeats", "near_repeats", "leaked_rows", "leaked_prompts") else 0
        return sum(len(rows) - first for rows in groups)


@dataclass
class _Seen:
    """What is kept of each row: digests, answers and lengths, not whole texts, so that memory stays small."""

    where: list[Where] = field(default_factory=list)
    whole: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    prompts: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    openings: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    unreadable: int = 0
    # Digests of the question, its numbers and its answer, of each row whose question no earlier one is like.
    questions: dict[Where, tuple[bytes, bytes, bytes]] = field(default_factory=dict)


def examine(
    data: DataSection,
    recipe_dir: Path,
    *,
    tokenizer: Tokenizer | None = None,
    personal: bool = True,
    chosen: frozenset[int] = frozenset(),
    own: ClassificationSection | None = None,
) -> Hygiene:
    """The report on the rows of `[data]`, with counts of tokens when there is a `tokenizer`.

    `own`: the rows are texts with labels. `chosen`: the numbers, from 0 over all sources, of the training rows that
    `eval_fraction` holds out.

    Raises:
        DataError: a source cannot be read.
        MachineError: the package datasketch, which finds near repeats, is not installed.
    """
    near, questions = NearRepeats(), NearRepeats()
    seen, held_out = _Seen(), _Seen()
    collector = Collector(tokenizer, personal)
    by_source = {}
    findings: list[Finding] = []
    numbers = count()
    for source in training_sources(data):
        before = len(seen.where)
        for number, example in _examples(source, data, recipe_dir, seen, numbers, own):
            if number in chosen:
                continue
            _remember(seen, example)
            sketch = near.sketch(example)
            if (found := near.first_like(sketch)) is not None:
                findings.append(Finding("near_repeats", (found, example.where)))
            near.add(sketch, example.where)
            findings += _near_contradictions(questions, example, seen)
            collector.add(example, source.name)
        collector.count_tokens(source.name)
        by_source[source.name] = len(seen.where) - before
    for example in _held_out_examples(data, recipe_dir, held_out, chosen, own):
        _remember(held_out, example)
        if (found := near.first_like(near.sketch(example))) is not None:
            note = "an evaluation row is nearly the same as a trained one"
            findings.append(Finding("leaked_rows", (found, example.where), note))
    findings = [*_repeats(seen), *findings, *_leaks(seen, held_out), *_contradictions(seen)]
    labels = _labels(seen)
    findings += [*([] if labels else _repeated_answers(seen)), *_outliers(seen), *_collected(collector)]
    return Hygiene(
        rows=len(seen.where),
        evaluation_rows=len(held_out.where),
        unreadable=seen.unreadable + held_out.unreadable,
        findings=tuple(_without_doubles(findings)),
        sources=by_source,
        labels=labels,
        prompt_diversity=len(seen.openings) / max(1, sum(seen.openings.values())),
        lengths=_five_numbers(seen.lengths),
        traits=dict(collector.by_source),
        scripts=dict(collector.scripts.most_common()),
        unused=dict(collector.unused.most_common()),
    )


def _collected(collector: Collector) -> Iterator[Finding]:
    if collector.cut:
        yield Finding("cut_answers", tuple(collector.cut), "ends inside code, after a comma, or within a long line")
    for kind, rows in sorted(collector.personal_rows.items()):
        yield Finding("personal", tuple(rows), f"looks like: {kind}")


def _near_contradictions(questions: NearRepeats, example: Example, seen: _Seen) -> Iterator[Finding]:
    """The earlier row whose question is nearly the same, with the same numbers, and whose answer is another."""
    if not example.answers:
        return
    last = example.answers[-1]
    asked = Example(example.where, example.messages[:last])
    sketch, compared = questions.sketch(asked), _compared(asked, example.messages[last])
    first = questions.first_like(sketch)
    if first is None:
        questions.add(sketch, example.where)
        seen.questions[first := example.where] = compared
    question, same, answer = seen.questions[first]
    if question != compared[0] and same == compared[1] and answer != compared[2]:
        note = "the questions are nearly the same, the answers are not"
        yield Finding("near_contradictions", (first, example.where), note)


def _compared(asked: Example, answer: Message) -> tuple[bytes, bytes, bytes]:
    """Digests of a question, of what must be equal in two questions (numbers, system text), and of the answer."""
    question = "\n".join(message.said for message in asked.messages if message.role != "system")
    same = [message.content for message in asked.messages if message.role == "system"] + re.findall(r"\d+", question)
    return _digest(question), _digest("\n".join(same)), _digest(_plain(answer.said))


def _held_out_examples(
    data: DataSection, recipe_dir: Path, seen: _Seen, chosen: frozenset[int], own: ClassificationSection | None
) -> Iterator[Example]:
    """The valid rows of the evaluation source, or the training rows in `chosen`, which are read a second time."""
    evaluation = evaluation_source(data)
    if evaluation is not None:
        yield from (example for _, example in _examples(evaluation, data, recipe_dir, seen, count(), own))
    numbers, counted = count(), _Seen()  # broken rows were counted at the first reading
    for source in training_sources(data) if chosen else ():
        for number, example in _examples(source, data, recipe_dir, counted, numbers, own):
            if number in chosen:
                yield example


def _examples(
    source: Source,
    data: DataSection,
    recipe_dir: Path,
    seen: _Seen,
    numbers: Iterator[int],
    own: ClassificationSection | None,
) -> Iterator[tuple[int, Example]]:
    """(number, example) of the valid rows; counts the others, which `fastft check --data` lists."""
    found = data.format
    for where, row in source.rows(recipe_dir):
        number = next(numbers)
        try:
            if isinstance(row, Problem):
                raise DataError(row)  # noqa: TRY301 -- so that all broken rows are counted in one place
            renamed = rename(row, data.columns, where)
            if own is not None:
                yield number, to_labelled(renamed, where, own, data.ignore)
                continue
            found = detect_or_fail(renamed, where, found) if found == "auto" else found
            yield number, to_example(renamed, found, where, rules_of(data))
        except DataError:
            seen.unreadable += 1


def _remember(seen: _Seen, example: Example) -> None:
    index = len(seen.where)
    seen.where.append(example.where)
    answers = example.answers
    if example.text is not None or not answers:
        whole = example.text or ""
        seen.whole[_digest(whole)].append(index)
        seen.lengths.append(len(whole))
        return
    prompt = "\n".join(f"{m.role}: {m.said}" for m in example.messages[: answers[-1]])
    answer = example.messages[answers[-1]].said
    whole = f"{prompt}\nassistant: {answer}"
    seen.whole[_digest(whole)].append(index)
    seen.prompts[_digest(prompt)].append(index)
    seen.answers[_plain(answer)].append(index)
    seen.lengths.append(len(whole))
    question = next((m.content for m in reversed(example.messages[: answers[-1]]) if m.role == "user"), "")
    seen.openings[" ".join(_plain(question).split()[:3])] += 1


def _repeats(seen: _Seen) -> Iterator[Finding]:
    for indices in seen.whole.values():
        if len(indices) > 1:
            yield Finding("exact_repeats", tuple(seen.where[index] for index in indices))


def _leaks(seen: _Seen, held_out: _Seen) -> Iterator[Finding]:
    for digest, indices in held_out.whole.items():
        for index in indices if digest in seen.whole else ():
            rows = (seen.where[seen.whole[digest][0]], held_out.where[index])
            yield Finding("leaked_rows", rows, "an evaluation row is also trained")
    for digest, indices in held_out.prompts.items():
        for index in indices if digest in seen.prompts else ():
            rows = (seen.where[seen.prompts[digest][0]], held_out.where[index])
            yield Finding("leaked_prompts", rows, "the question of an evaluation row is also trained")


def _contradictions(seen: _Seen) -> Iterator[Finding]:
    answer_of = {index: answer for answer, indices in seen.answers.items() for index in indices}
    for indices in seen.prompts.values():
        different = {answer_of[index]: index for index in reversed(indices)}
        if len(different) > 1:
            rows = tuple(seen.where[index] for index in sorted(different.values()))
            yield Finding("contradictions", rows, f"one prompt has {len(different)} different answers")


def _labels(seen: _Seen) -> dict[str, int]:
    if len(seen.answers) > MOST_LABELS or len(seen.where) < ROWS_PER_LABEL * len(seen.answers):
        return {}
    return {answer: len(indices) for answer, indices in _commonest_first(seen.answers)}


def _commonest_first(answers: dict[str, list[int]]) -> list[tuple[str, list[int]]]:
    return sorted(answers.items(), key=lambda entry: -len(entry[1]))


def _repeated_answers(seen: _Seen) -> Iterator[Finding]:
    least = max(10, REPEATED_ANSWER_SHARE * len(seen.where))
    for answer, indices in _commonest_first(seen.answers):
        if len(indices) < least:
            return
        rows = tuple(seen.where[index] for index in indices)
        yield Finding(
            "repeated_answers", rows, f"{len(indices) / len(seen.where):.0%} of the rows answer: {answer[:60]}"
        )


def _outliers(seen: _Seen) -> Iterator[Finding]:
    """Rows far above the middle half: by more than three times its width (Tukey's far-out fence)."""
    if len(seen.lengths) < 20:
        return
    _, low, _, high, _ = _five_numbers(seen.lengths)
    fence = high + 3 * max(high - low, high // 2)
    far = sorted((index for index, length in enumerate(seen.lengths) if length > fence), key=lambda i: -seen.lengths[i])
    if far:
        note = f"longer than {fence} characters, the longest {seen.lengths[far[0]]}"
        yield Finding("outliers", tuple(seen.where[index] for index in far), note)


def _without_doubles(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings without near ones that repeat an exact one; exact ones come first."""
    exact = {row for finding in findings if finding.kind == "exact_repeats" for row in finding.rows[1:]}
    leaked = {f.rows[-1] for f in findings if f.kind == "leaked_rows" and "nearly" not in f.note}
    for finding in findings:
        near = finding.kind == "near_repeats" and finding.rows[1] in exact
        weaker = finding.kind == "leaked_prompts" or (finding.kind == "leaked_rows" and "nearly" in finding.note)
        if not near and not (weaker and finding.rows[-1] in leaked):
            yield finding


def _plain(text: str) -> str:
    """`text` in lower case with only words and numbers, joined by single spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _five_numbers(values: list[int]) -> tuple[int, int, int, int, int]:
    if len(values) < 2:
        only = values[0] if values else 0
        return only, only, only, only, only
    low, middle, high = (round(value) for value in quantiles(values, n=4))
    return min(values), low, middle, high, max(values)
