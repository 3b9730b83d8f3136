"""What a run keeps of its held-out rows: the evaluation before training, and the conversations for exports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fastft.runs.classification import Classification


@dataclass(frozen=True)
class Answers:
    """The generated answers, in the order of the prompts, and how many equal their reference exactly.

    `tokens` of each, without the one that ends it; `stopped`: whether there was one. Empty in older files.
    """

    texts: tuple[str, ...]
    exact: int
    tokens: tuple[int, ...] = ()
    stopped: tuple[bool, ...] = ()


@dataclass(frozen=True)
class MicroBatch:
    """The held-out loss of one micro-batch: the sum over its tokens with loss, and how many these are."""

    loss_sum: float
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """The held-out figures of a model. The loss is a mean over trained tokens; None if not asked for.

    `batches`: what the loss is made of, in the order of the rows; empty with several processes. `general`: the answers
    to the questions of the regression set. `judged`: of preferences, the value of each row by the name of its measure.
    """

    eval_loss: float | None
    answers: Answers | None
    batches: tuple[MicroBatch, ...] = ()
    classes: Classification | None = None
    general: Answers | None = None
    judged: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Untrained(Evaluation):
    """The evaluation before training: made once a run, kept for its later attempts."""

    FILE: ClassVar[str] = "before.json"
    SCHEMA: ClassVar[int] = 1


@dataclass(frozen=True)
class HeldOut:
    """The conversations that exports are compared on, and the token ids at which trained answers end."""

    FILE: ClassVar[str] = "held_out.json"
    SCHEMA: ClassVar[int] = 1

    conversations: tuple[tuple[dict[str, str], ...], ...]
    """Messages with `role` and `content`, the last one an answer."""
    end_ids: tuple[int, ...]
    """The usual one first."""

    def __post_init__(self) -> None:
        """Refuse, when it is read from a file, what is no conversation."""
        for messages in self.conversations:
            if not messages or not all({"role", "content"} <= message.keys() for message in messages):
                raise ValueError("a message has no role or no content")
