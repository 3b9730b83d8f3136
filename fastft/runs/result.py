"""The result of a run: result.json, whose presence means that the run finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

from fastft.data.content import final_text
from fastft.data.labels import targets
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt
from fastft.planning.plan import Plan
from fastft.runs.classification import BeforeAndAfter, majority
from fastft.runs.held_out import Evaluation, MicroBatch
from fastft.runs.metrics import OutOfMemory, Totals
from fastft.runs.score import Score, score


@dataclass(frozen=True)
class Trained:
    """The figures of the trainer. The loss is a mean over trained tokens; `finished` is False after a stop."""

    finished: bool
    steps: int
    train_loss: float | None
    before: Evaluation
    after: Evaluation
    peak_memory_bytes: int
    best_checkpoint: str | None


@dataclass(frozen=True)
class SavedWeights:
    """The trained weights on disk. `trained`, `total`: counts of weights; a 4-bit weight counts as one."""

    trained: int
    total: int
    folder: str
    size_bytes: int


@dataclass(frozen=True)
class BeforeAfter:
    """A figure of the untrained and of the trained model; None if not measured."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class PairedBatch:
    """The sum of the held-out loss over one micro-batch before and after training, and its tokens with loss."""

    before: float
    after: float
    tokens: int


@dataclass(frozen=True)
class ShownAnswer:
    """One held-out row: the question, its reference, and the answers before and after training."""

    question: str
    reference: str
    before: str | None
    after: str

    @property
    def was_right(self) -> bool:
        """Whether the untrained model answered as the reference, reasoning and white space around it aside."""
        return self.before is not None and final_text(self.before) == final_text(self.reference)

    @property
    def is_right(self) -> bool:
        """The same of the trained model."""
        return final_text(self.after) == final_text(self.reference)


@dataclass(frozen=True)
class ExactMatch:
    """How many of `rows` held-out answers equal their reference exactly, before and after training."""

    rows: int
    before: int | None
    after: int
    example: ShownAnswer
    """The first that is right after training, or else the first."""
    answers: tuple[ShownAnswer, ...] = ()
    """All of them, in the order of the held-out rows."""


@dataclass(frozen=True)
class MeasuredRows:
    """The value of one measure for each row, before and after training; `before` is empty where it is not known."""

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]


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
    eval_batches: tuple[PairedBatch, ...] = field(default=())
    """What the held-out losses are made of; empty where the two evaluations had other micro-batches."""
    classification: BeforeAndAfter | None = None
    measures: tuple[MeasuredRows, ...] = field(default=())
    """What each answer counts, for each measure of answers (fastft.recipe.measures)."""
    general: tuple[ShownAnswer, ...] = field(default=())
    """The answers to the general questions of the regression set, beside what they must match."""
    general_missing: str = ""
    """Why there are none, or why they are not counted, although the recipe asks for them."""
    metrics_sha256: str | None = None
    """Of metrics.jsonl at the end of the run."""

    @property
    def is_of_preferences(self) -> bool:
        """Whether held-out rows were judged."""
        return any(rows.name == "reward_margin" for rows in self.measures)

    def card_figures(self) -> dict[str, str]:
        """Name and value of each figure for the model card."""
        figures = {}
        if self.eval_loss.before is not None and self.eval_loss.after is not None:
            figures["held-out loss"] = f"{self.eval_loss.before:.4f} before, {self.eval_loss.after:.4f} after"
        if self.classification is not None:
            after = self.classification.after
            figures["held-out accuracy"] = f"{after.accuracy:.1%}, macro F1 {after.macro_f1:.3f}, of {after.rows} rows"
        for rows in self.measures:
            if rows.name == "reward_accuracy" and rows.before:
                before_share, after_share = (sum(values) / len(values) for values in (rows.before, rows.after))
                figures["held-out reward accuracy"] = f"{before_share:.1%} before, {after_share:.1%} after"
        match = self.exact_match
        if match is not None:
            before = "" if match.before is None else f"{match.before} before, "
            figures["held-out exact match"] = f"{before}{match.after} after, of {match.rows} rows"
        return figures


def make_result(
    plan: Plan,
    prepared: Prepared,
    trained: Trained,
    prompts: Sequence[Prompt],
    saved: SavedWeights,
    totals: Totals,
    seconds: float,
) -> Result:
    """The result of a finished run, exports aside; `seconds`: of the whole run."""
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
        forecast=score(
            plan,
            optimizer_steps=trained.steps,
            tokens=totals.tokens,
            peak_memory_bytes=trained.peak_memory_bytes,
            train_seconds=totals.seconds,
            weights_bytes=saved.size_bytes,
        ),
        eval_batches=_paired(trained.before.batches, trained.after.batches),
        classification=_classification(prepared, trained),
    )


def _classification(prepared: Prepared, trained: Trained) -> BeforeAndAfter | None:
    before, after, labels = trained.before.classes, trained.after.classes, prepared.labels
    if before is None or after is None or labels is None or prepared.eval is None:
        return None
    known, asked = targets(prepared.train.rows), targets(prepared.eval.rows)
    return BeforeAndAfter(majority(labels.names, known, asked, several=labels.several), before, after)


def _paired(before: Sequence[MicroBatch], after: Sequence[MicroBatch]) -> tuple[PairedBatch, ...]:
    """The micro-batches of both evaluations; none where they differ, as after a batch that did not fit."""
    if [batch.tokens for batch in before] != [batch.tokens for batch in after]:
        return ()
    pairs = zip(before, after, strict=True)
    return tuple(PairedBatch(one.loss_sum, other.loss_sum, one.tokens) for one, other in pairs)


def _exact_match(prepared: Prepared, trained: Trained, prompts: Sequence[Prompt]) -> ExactMatch | None:
    before, after = trained.before.answers, trained.after.answers
    if after is None or prepared.eval is None:
        return None
    answers = tuple(
        ShownAnswer(
            question=next((message.content for message in reversed(example.messages) if message.role == "user"), ""),
            reference=prompt.reference,
            before=None if before is None else before.texts[index],
            after=after.texts[index],
        )
        for index, (example, prompt) in enumerate(zip(prepared.eval.examples, prompts, strict=False))
    )
    shown = next((answer for answer in answers if answer.is_right), answers[0])
    return ExactMatch(len(prompts), None if before is None else before.exact, after.exact, shown, answers)
