"""What is measured of a model before and after training: one row a measure, with its unit, direction and function."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]
Unit = Literal["share", "tokens", "nats a token", "perplexity", "nats"]


@dataclass(frozen=True)
class Answered:
    """One answer beside its reference, both without reasoning and white space around them.

    `tokens`: generated ones, without the one that ends the answer; `stopped`: whether there was one; None where an
    earlier fastft did not keep it. `is_valid`: whether it has the format that [eval] asks for; None where none is.
    """

    answer: str
    reference: str
    tokens: int | None = None
    stopped: bool | None = None
    is_valid: bool | None = None


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    `better` is None where neither more nor less is. `of_row`: the value of one answer, in [0, 1] for a share, None
    where it cannot be had; for the held-out rows alone. Without it the measure is counted elsewhere.
    """

    name: str
    title: str
    unit: Unit
    better: Better | None
    of_row: Callable[[Answered], float | None] | None = None


def _exact(row: Answered) -> float:
    return float(row.answer == row.reference)


def _token_f1(row: Answered) -> float:
    """The harmonic mean of precision and recall of the words, as in SQuAD (Rajpurkar et al. 2016), articles kept."""
    answer, reference = words(row.answer), words(row.reference)
    return _f1((Counter(answer) & Counter(reference)).total(), len(answer), len(reference))


def _rouge_l(row: Answered) -> float:
    """ROUGE-L (Lin 2004): as token F1, of the longest common subsequence of words."""
    answer, reference = words(row.answer), words(row.reference)
    return _f1(longest_common(answer, reference), len(answer), len(reference))


def _f1(common: int, answer: int, reference: int) -> float:
    return 2 * common / (answer + reference) if answer + reference else 1.0


def words(text: str) -> list[str]:
    """The words of a text in lower case: what token F1 and ROUGE-L count."""
    return re.findall(r"\w+", text.lower())


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bits (H. Hyyrö, Bit-parallel LCS-length computation, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    all_places = (1 << len(one)) - 1
    rest = all_places
    for word in other:
        found = rest & places.get(word, 0)
        rest = ((rest + found) | (rest - found)) & all_places
    return len(one) - rest.bit_count()


def _known(value: float | None) -> float | None:
    return None if value is None else float(value)


# The order of pages and tables.
MEASURES: dict[str, Measure] = {
    each.name: each
    for each in (
        Measure("eval_loss", "held-out loss", "nats a token", "lower"),
        Measure("perplexity", "held-out perplexity", "perplexity", "lower"),
        Measure("exact_match", "held-out exact match", "share", "higher", _exact),
        Measure("token_f1", "token F1", "share", "higher", _token_f1),
        Measure("rouge_l", "ROUGE-L", "share", "higher", _rouge_l),
        Measure("format_valid", "right format", "share", "higher", lambda row: _known(row.is_valid)),
        Measure("stop_rate", "ended by itself", "share", "higher", lambda row: _known(row.stopped)),
        Measure("answer_tokens", "length of an answer", "tokens", None, lambda row: _known(row.tokens)),
        Measure("chosen_likelier", "chosen answer likelier", "share", "higher"),
        Measure("reward_accuracy", "reward accuracy", "share", "higher"),
        Measure("reward_margin", "reward margin", "nats", "higher"),
        Measure("regression", "general questions", "share", "higher"),
    )
}
