"""How well texts are classified: accuracy, F1, confusion, calibration; and what a run keeps of its classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

# Bins of the calibration error (Guo et al. 2017, On Calibration of Modern Neural Networks).
BINS = 15


@dataclass(frozen=True)
class Classifier:
    """What `fastft predict` needs besides the weights."""

    FILE: ClassVar[str] = "classifier.json"
    SCHEMA: ClassVar[int] = 1

    labels: tuple[str, ...]
    several: bool
    truncation: str
    max_seq_length: int


@dataclass(frozen=True)
class ClassFigures:
    """One label: its rows, and how well they are found. F1 is the harmonic mean of precision and recall."""

    label: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Classification:
    """The figures of a model on labelled rows.

    `accuracy`: with several labels a text, the share of rows whose labels are all right. `confusion`: rows by true
    label (outer) and predicted label (inner); empty with several labels. `calibration_error`: the mean difference
    between confidence and accuracy in bins of confidence.
    """

    rows: int
    accuracy: float
    macro_f1: float
    weighted_f1: float
    calibration_error: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class BeforeAndAfter:
    """The commonest label of the training rows for every row, the untrained head, and the trained model."""

    majority: Classification
    before: Classification
    after: Classification


def measure(
    names: Sequence[str], targets: Sequence[int], probabilities: Sequence[Sequence[float]], *, several: bool
) -> Classification:
    """The figures of `probabilities` (rows, labels) against `targets`, in the numbers of fastft.data.labels."""
    found = [predicted(row, several=several) for row in probabilities]
    classes = tuple(_of_class(label, name, targets, found, several) for label, name in enumerate(names))
    present = [one for one in classes if one.rows] or list(classes)
    total = sum(one.rows for one in classes) or 1
    pairs = Counter(zip(targets, found, strict=True))
    size = range(len(names))
    return Classification(
        rows=len(targets),
        accuracy=sum(a == b for a, b in zip(found, targets, strict=True)) / max(1, len(targets)),
        macro_f1=sum(one.f1 for one in present) / len(present),
        weighted_f1=sum(one.f1 * one.rows for one in classes) / total,
        calibration_error=_calibration_error(_confidences(targets, probabilities, several)),
        classes=classes,
        confusion=() if several else tuple(tuple(pairs[true, other] for other in size) for true in size),
    )


def predicted(probabilities: Sequence[float], *, several: bool) -> int:
    """The number of the likeliest label; of several, the sum of 2**number of those of at least a half."""
    if several:
        return sum(1 << number for number, value in enumerate(probabilities) if value >= 0.5)
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def majority(names: Sequence[str], trained: Sequence[int], targets: Sequence[int], *, several: bool) -> Classification:
    """The figures of a model that gives every row the commonest target of the training rows."""
    common = Counter(trained).most_common(1)[0][0]
    row = [float(common >> number & 1 if several else number == common) for number in range(len(names))]
    return measure(names, targets, [row] * len(targets), several=several)


def _confidences(
    targets: Sequence[int], probabilities: Sequence[Sequence[float]], several: bool
) -> list[tuple[float, bool]]:
    """(confidence, whether it is right) of each prediction: one a row, or with several labels one a label."""
    pairs = list(zip(probabilities, targets, strict=True))
    if not several:
        return [(max(row), predicted(row, several=False) == target) for row, target in pairs]
    yes = [(p, p >= 0.5, bool(target >> label & 1)) for row, target in pairs for label, p in enumerate(row)]
    return [(p if said else 1 - p, said == true) for p, said, true in yes]


def _of_class(label: int, name: str, targets: Sequence[int], found: Sequence[int], several: bool) -> ClassFigures:
    def has(value: int) -> bool:
        return bool(value >> label & 1) if several else value == label

    pairs = Counter((has(target), has(one)) for target, one in zip(targets, found, strict=True))
    right, missed, wrong = pairs[True, True], pairs[True, False], pairs[False, True]
    precision = right / (right + wrong) if right + wrong else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    f1 = 2 * right / (2 * right + missed + wrong) if right else 0.0
    return ClassFigures(name, right + missed, precision, recall, f1)


def _calibration_error(sure: Sequence[tuple[float, bool]]) -> float:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in sure:
        bins.setdefault(min(BINS - 1, int(confidence * BINS)), []).append((confidence, right))
    gaps = (abs(sum(c for c, _ in one) - sum(right for _, right in one)) for one in bins.values())
    return sum(gaps) / max(1, len(sure))
