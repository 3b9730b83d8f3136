"""What came out of a run: the figures of result.json."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastft.data.example import Example
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt


@dataclass(frozen=True)
class Answers:
    """The generated answers, in the order of the prompts, and how many equal their reference exactly."""

    texts: tuple[str, ...]
    exact: int

    @property
    def exact_match(self) -> float:
        return self.exact / len(self.texts) if self.texts else 0.0


@dataclass(frozen=True)
class Trained:
    """The figures of a training run. Losses are means over trained tokens; None where nothing was held out."""

    finished: bool
    steps: int
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss_after: float | None
    answers_before: Answers | None
    answers_after: Answers | None
    peak_memory_bytes: int
    best_checkpoint: str | None


def make_result(
    prepared: Prepared, trained: Trained, prompts: list[Prompt], figures: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The figures of a finished run; `seconds` is what all of it took."""
    asked = [] if prepared.eval is None else prepared.eval.examples[: len(prompts)]
    questions = [_question(example) for example in asked]
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "steps": trained.steps,
        "train_loss": trained.train_loss,
        "eval_loss": {"before": trained.eval_loss_before, "after": trained.eval_loss_after},
        "exact_match": _exact_match(trained, prompts, questions),
        "total_seconds": round(seconds, 1),
        "peak_memory_bytes": trained.peak_memory_bytes,
        "train_rows": len(prepared.train.rows),
        "best_checkpoint": trained.best_checkpoint,
        **figures,
    }


def weights_bytes(result: dict[str, Any]) -> int | None:
    """The size of the trained weights that were written, None where none were."""
    folder = result.get("weights_folder")
    return None if folder is None else sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _question(example: Example) -> str:
    """The last thing that was asked in an example."""
    return next((message.content for message in reversed(example.messages) if message.role == "user"), "")


def _exact_match(trained: Trained, prompts: list[Prompt], questions: list[str]) -> dict[str, Any] | None:
    """Counts before and after, and one held-out row that shows the difference best: wrong before, right after."""
    before, after = trained.answers_before, trained.answers_after
    if after is None:
        return None
    right = [text.strip() == prompt.reference.strip() for text, prompt in zip(after.texts, prompts, strict=True)]
    shown = right.index(True) if any(right) else 0
    example = {
        "question": questions[shown],
        "reference": prompts[shown].reference,
        "before": None if before is None else before.texts[shown],
        "after": after.texts[shown],
    }
    counts = {"rows": len(prompts), "before": None if before is None else before.exact, "after": after.exact}
    return {**counts, "example": example}
