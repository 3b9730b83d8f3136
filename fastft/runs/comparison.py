"""Runs beside each other: what differs in them, and which answers the same held-out rows better."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastft.errors import Problem, UsageError, Where
from fastft.runs.directory import RunDir, Settings
from fastft.runs.history import read_history
from fastft.runs.intervals import Word
from fastft.runs.manifest import Manifest, changes
from fastft.runs.measured import Compared, compared
from fastft.runs.metrics import History
from fastft.runs.result import BeforeAfter, ExactMatch, MeasuredRows, PairedBatch, Result
from fastft.runs.state import State, state_of
from fastft.runs.verdict import judge

# As many curves as a page can tell apart.
MOST_RUNS = 6
# Differences of manifests that settings, or the name of the file, already show.
SHOWN_ELSEWHERE = ("seed", "data.train", "data.eval", "data.format", "base_model.id", "base_model.revision")


@dataclass(frozen=True)
class RunRead:
    """One of the runs, by its letter; `name` has its folder too. `result` is None where it did not finish."""

    letter: str
    name: str
    path: Path
    state: State
    settings: Settings | None
    manifest: Manifest | None
    history: History
    result: Result | None


@dataclass(frozen=True)
class Pair:
    """The first run, and another one after it, on the same held-out rows.

    `as_result`: that of the other run, with the first one's figures in place of those before training; None where they
    cannot be compared, and `why` says it.
    """

    first: RunRead
    other: RunRead
    as_result: Result | None
    why: str

    @property
    def measures(self) -> list[Compared]:
        return [] if self.as_result is None else compared(self.as_result)

    @property
    def word(self) -> Word:
        return "cannot tell" if self.as_result is None else judge(self.as_result).word

    def __str__(self) -> str:
        """The verdict in a sentence."""
        if self.as_result is None:
            return f"Cannot compare {self.other.name} with {self.first.name}: {self.why}"
        verdict = judge(self.as_result)
        if verdict.word == "cannot tell":
            return f"Cannot tell {self.other.name} from {self.first.name}: {verdict.because}"
        return f"{self.other.name} is {verdict.word} than {self.first.name}: {verdict.because}"


@dataclass(frozen=True)
class Comparison:
    """All runs, the first beside each other one, and each key whose values differ, with the value of each run."""

    runs: tuple[RunRead, ...]
    pairs: tuple[Pair, ...]
    settings: dict[str, tuple[object, ...]]
    surroundings: dict[str, tuple[object, ...]]

    @property
    def verdict(self) -> str:
        """Of two runs the sentence of the pair; of more, which are better than the first."""
        if len(self.pairs) == 1:
            return str(self.pairs[0])
        by_word = {word: [pair.other.letter for pair in self.pairs if pair.word == word] for word in _WORDS}
        said = [f"{', '.join(letters)} {_WORDS[word]}" for word, letters in by_word.items() if letters]
        return f"Beside {self.runs[0].name}: {'; '.join(said)}"


_WORDS: dict[Word, str] = {"better": "better", "worse": "worse", "cannot tell": "no clear difference"}


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """The comparison of the runs in `folders` with the first of them.

    Raises:
        UsageError: too few or too many folders, one twice, or one that is no run.
        MachineError: a record of a run is damaged.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        wrong = f"needs 2 to {MOST_RUNS} runs (got {len(folders)})"
        raise UsageError(
            Problem(Where("fastft compare"), "", wrong, "name the folders of runs; fastft runs lists them")
        )
    seen: set[Path] = set()
    for folder in folders:
        wrong = "" if (folder / "recipe.toml").is_file() else "is no folder of a run"
        if wrong or folder.resolve() in seen:
            raise UsageError(
                Problem(Where(str(folder)), "", wrong or "is named twice", "name runs; fastft runs lists them")
            )
        seen.add(folder.resolve())
    names = [path.resolve().name for path in folders]
    if len(set(names)) < len(names):
        names = [str(path) for path in folders]
    lettered = zip(string.ascii_uppercase, folders, names, strict=False)
    runs = tuple(_read(letter, RunDir(path), name) for letter, path, name in lettered)
    pairs = tuple(_pair(runs[0], other) for other in runs[1:])
    return Comparison(runs, pairs, _differing([_values(run) for run in runs]), _surroundings(runs))


def _read(letter: str, run: RunDir, name: str) -> RunRead:
    history, state = read_history(run), state_of(run)[0]
    return RunRead(
        letter, f"{letter} ({name})", run.path, state, run.read(Settings), run.read(Manifest), history, run.result
    )


def _values(run: RunRead) -> dict[str, object]:
    return {} if run.settings is None else {key: one.value for key, one in run.settings.settings.items()}


def _differing(values: Sequence[dict[str, object]]) -> dict[str, tuple[object, ...]]:
    keys = dict.fromkeys(key for each in values for key in each)
    rows = {key: tuple(each.get(key) for each in values) for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _surroundings(runs: Sequence[RunRead]) -> dict[str, tuple[object, ...]]:
    """What else was not the same: versions, device, hashes of data, template and base."""
    first = runs[0].manifest
    found: dict[str, list[object]] = {}
    for place, run in enumerate(runs):
        if first is None or run.manifest is None:
            continue
        for change in changes(first, run.manifest):
            if change.key not in SHOWN_ELSEWHERE and not change.key.startswith("base_model.files_sha256"):
                found.setdefault(change.key, [change.before] * len(runs))[place] = change.now
    return {key: tuple(values) for key, values in found.items()}


def _pair(first: RunRead, other: RunRead) -> Pair:
    why = _incomparable(first, other)
    if why or first.result is None or other.result is None:
        return Pair(first, other, None, why)
    made = _as_before(first.result, other.result, same_loss=_has_same_rows(first, other))
    if made.eval_loss.after is None and made.exact_match is None:
        return Pair(first, other, None, "their held-out rows differ")
    return Pair(first, other, made, "")


def _incomparable(first: RunRead, other: RunRead) -> str:
    unfinished = [run.name for run in (first, other) if run.result is None]
    if unfinished:
        return f"{' and '.join(unfinished)} did not finish"
    if first.result is not None and first.result.exact_match is None and first.result.eval_loss.after is None:
        return "nothing was held out"
    return ""


def _has_same_rows(first: RunRead, other: RunRead) -> bool:
    """Whether the held-out losses are means over the same tokens of the same rows."""
    one, two = first.manifest, other.manifest
    return (
        one is not None
        and two is not None
        and one.data.eval_sha256 is not None
        and (one.data.eval_sha256, one.chat_template, one.base_model.tokenizer_sha256)
        == (two.data.eval_sha256, two.chat_template, two.base_model.tokenizer_sha256)
    )


def _as_before(first: Result, other: Result, *, same_loss: bool) -> Result:
    """`other`, with the figures of the trained model of `first` as those before; without what has other rows."""
    loss = BeforeAfter(first.eval_loss.after, other.eval_loss.after) if same_loss else BeforeAfter(None, None)
    batches: tuple[PairedBatch, ...] = ()
    if same_loss and [batch.tokens for batch in first.eval_batches] == [batch.tokens for batch in other.eval_batches]:
        pairs = zip(first.eval_batches, other.eval_batches, strict=True)
        batches = tuple(PairedBatch(one.after, two.after, two.tokens) for one, two in pairs)
    match = _matches(first.exact_match, other.exact_match)
    before = {rows.name: rows.after for rows in first.measures}
    measures = tuple(
        MeasuredRows(rows.name, before[rows.name], rows.after)
        for rows in other.measures
        if len(before.get(rows.name, ())) == len(rows.after) and (match is not None or rows.name == "regression")
    )
    return dataclasses.replace(other, eval_loss=loss, eval_batches=batches, exact_match=match, measures=measures)


def _matches(first: ExactMatch | None, other: ExactMatch | None) -> ExactMatch | None:
    """The answers of both trained models, where they answer the same questions."""
    if first is None or other is None or not first.answers:
        return None
    if [(one.question, one.reference) for one in first.answers] != [
        (two.question, two.reference) for two in other.answers
    ]:
        return None
    pairs = zip(first.answers, other.answers, strict=True)
    answers = tuple(dataclasses.replace(two, before=one.after) for one, two in pairs)
    shown = next((one for one in answers if one.was_right != one.is_right), answers[0])
    return ExactMatch(other.rows, first.after, other.after, shown, answers)
