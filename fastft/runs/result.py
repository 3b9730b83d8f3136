"""What came out of a run: result.json, whose presence means that the run finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

from fastft.data.prepare import Prepared
from fastft.data.render import Prompt
from fastft.runs.held_out import Evaluation
from fastft.runs.metrics import OutOfMemory, Totals
from fastft.runs.score import Score


@dataclass(frozen=True)
class Trained:
    """What the trainer reports. The loss is a mean over trained tokens; `finished` is False after a stop."""

    finished: bool
    steps: int
    train_loss: float | None
    before: Evaluation
    after: Evaluation
    peak_memory_bytes: int
    best_checkpoint: str | None


@dataclass(frozen=True)
class SavedWeights:
    """The trained weights on disk. `trained`, `total`: counts of weights, a 4-bit one counts as one."""

    trained: int
    total: int
    folder: str
    size_bytes: int


@dataclass(frozen=True)
class BeforeAfter:
    """A figure of the untrained and of the trained model; None where it was not measured."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class ShownAnswer:
    """One held-out row: the question, its reference, and what the model said before and after training."""

    question: str
    reference: str
    before: str | None
    after: str


@dataclass(frozen=True)
class ExactMatch:
    """How many of `rows` held-out answers equal their reference exactly, before and after training."""

    rows: int
    before: int | None
    after: int
    example: ShownAnswer


@dataclass(frozen=True)
class ExportedFile:
    """One export that passed the gate."""

    kind: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Result:
    """result.json."""

    FILE: ClassVar[str] = "result.json"
    SCHEMA: ClassVar[int] = 1

    finished: str
    """When, as ISO 8601 in UTC."""
    steps: int
    train_loss: float | None
    eval_loss: BeforeAfter
    exact_match: ExactMatch | None
    total_seconds: float
    peak_memory_bytes: int
    train_rows: int
    best_checkpoint: str | None
    trained_weights: int
    weights: int
    train_tokens_seen: int
    train_seconds: float
    out_of_memory: tuple[OutOfMemory, ...]
    weights_folder: str
    forecast: dict[str, Score]
    exports: tuple[ExportedFile, ...] = field(default=())

    @property
    def worse(self) -> str | None:
        """In words, what got worse on the held-out rows; None where nothing did, or nothing was held out."""
        loss, match = self.eval_loss, self.exact_match
        parts = []
        if loss.before is not None and loss.after is not None and loss.after > loss.before:
            parts.append(f"the held-out loss rose from {loss.before:.4f} to {loss.after:.4f}")
        if match is not None and match.before is not None and match.after < match.before:
            parts.append(f"exact matches fell from {match.before} to {match.after} of {match.rows}")
        return " and ".join(parts) or None

    def card_figures(self) -> dict[str, str]:
        """Name and value of what the model card says was measured."""
        figures = {}
        if self.eval_loss.before is not None and self.eval_loss.after is not None:
            figures["held-out loss"] = f"{self.eval_loss.before:.4f} before, {self.eval_loss.after:.4f} after"
        match = self.exact_match
        if match is not None:
            before = "" if match.before is None else f"{match.before} before, "
            figures["held-out exact match"] = f"{before}{match.after} after, of {match.rows} rows"
        return figures


def make_result(
    prepared: Prepared,
    trained: Trained,
    prompts: Sequence[Prompt],
    saved: SavedWeights,
    totals: Totals,
    forecast: dict[str, Score],
    seconds: float,
) -> Result:
    """The result of a finished run, exports aside; `seconds` is what all of it took."""
    return Result(
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=trained.steps,
        train_loss=trained.train_loss,
        eval_loss=BeforeAfter(trained.before.eval_loss, trained.after.eval_loss),
        exact_match=_exact_match(prepared, trained, prompts),
        total_seconds=round(seconds, 1),
        peak_memory_bytes=trained.peak_memory_bytes,
        train_rows=len(prepared.train.rows),
        best_checkpoint=trained.best_checkpoint,
        trained_weights=saved.trained,
        weights=saved.total,
        train_tokens_seen=totals.tokens,
        train_seconds=round(totals.seconds, 1),
        out_of_memory=totals.out_of_memory,
        weights_folder=saved.folder,
        forecast=forecast,
    )


def _exact_match(prepared: Prepared, trained: Trained, prompts: Sequence[Prompt]) -> ExactMatch | None:
    """Counts before and after, and one held-out row that shows the difference best: right after, wrong before."""
    before, after = trained.before.answers, trained.after.answers
    if after is None or prepared.eval is None:
        return None
    right = [text.strip() == prompt.reference.strip() for text, prompt in zip(after.texts, prompts, strict=True)]
    shown = right.index(True) if any(right) else 0
    messages = prepared.eval.examples[shown].messages
    example = ShownAnswer(
        question=next((message.content for message in reversed(messages) if message.role == "user"), ""),
        reference=prompts[shown].reference,
        before=None if before is None else before.texts[shown],
        after=after.texts[shown],
    )
    return ExactMatch(len(prompts), None if before is None else before.exact, after.exact, example)
