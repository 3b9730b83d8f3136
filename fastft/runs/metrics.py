"""The figures of a run during training, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastft.errors import MachineError
from fastft.files.atomic import write_bytes
from fastft.files.records import fault, read_bytes


@dataclass(frozen=True)
class StepMetrics:
    """One logged optimizer step; counts are of the steps since the line before.

    `tokens` are real ones, padding not counted; `computed_tokens` count it, 0 where an older fastft wrote the line.
    `loss` is the mean over trained tokens. `memory_bytes`: peak memory of the GPU, or of the process on a CPU.
    `rewards`: of preferences, the means of `chosen`, `rejected` and `margin`, and `accuracy`, the share of rows whose
    margin is above 0. `clipped`: optimizer steps whose gradient was longer than `max_grad_norm`. `noise_scale`: in
    examples, the gradient noise scale of the last optimizer steps with the ends of its interval of 95 % (estimate, low,
    high).
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    examples: int
    seconds: float
    memory_bytes: int
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)
    computed_tokens: int = 0
    clipped: int = 0
    noise_scale: tuple[float, float, float] | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        return self.examples / self.seconds if self.seconds else 0.0

    @property
    def padding(self) -> float | None:
        """The share of padding among the computed tokens; None where it is not known."""
        return 1 - self.tokens / self.computed_tokens if self.computed_tokens else None

    def as_json(self) -> dict[str, Any]:
        rates = {"tokens_per_second": self.tokens_per_second, "samples_per_second": self.samples_per_second}
        line = dataclasses.asdict(self)
        rewards = {"rewards": line.pop("rewards")} if self.rewards else {}
        shares = {"padding_share": None if self.padding is None else round(self.padding, 4)}
        return {"event": "step", **line, **{key: round(rate, 2) for key, rate in rates.items()}, **shares, **rewards}


@dataclass(frozen=True)
class EvaluationMetrics:
    """An evaluation after optimizer step `step`: the figures that the trainer logs, such as `eval_loss`."""

    step: int
    figures: dict[str, float]

    @property
    def loss(self) -> float | None:
        """The held-out loss."""
        return self.figures.get("eval_loss")

    def as_json(self) -> dict[str, Any]:
        return {"event": "evaluation", "step": self.step, **self.figures}


@dataclass(frozen=True)
class Warned:
    """Something that the run said about itself after optimizer step `step`: a loss that rises and stays, and so on."""

    event: str = dataclasses.field(default="warning", init=False)
    step: int
    text: str

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Event:
    """What every line has."""

    event: Literal["step", "evaluation", "out_of_memory", "warning"]
    step: int


@dataclass(frozen=True)
class OutOfMemory:
    """Memory ran out after optimizer step `step`, and training continued with smaller micro-batches.

    `rows`, `rows_now`: rows of a micro-batch x micro-batches of an optimizer step, before and after.
    """

    event: str = dataclasses.field(default="out_of_memory", init=False)
    step: int
    rows: str
    rows_now: str

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


Event = StepMetrics | EvaluationMetrics | OutOfMemory | Warned


@dataclass(frozen=True)
class Totals:
    """Sums over all attempts of a run. `tokens`: real ones that were trained; `seconds` in optimizer steps."""

    tokens: int
    seconds: float
    out_of_memory: tuple[OutOfMemory, ...]


@dataclass(frozen=True)
class History:
    """All that metrics.jsonl holds, in its order."""

    steps: tuple[StepMetrics, ...]
    evaluations: tuple[EvaluationMetrics, ...]
    out_of_memory: tuple[OutOfMemory, ...]
    warnings: tuple[Warned, ...] = ()

    @property
    def totals(self) -> Totals:
        """The sums over all attempts of the run."""
        tokens = sum(step.tokens for step in self.steps)
        return Totals(tokens, sum(step.seconds for step in self.steps), self.out_of_memory)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended and flushed at once, so that a crash loses at most one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: Event) -> None:
        """Append the line of an event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event.as_json()) + "\n")

    def history(self) -> History:
        """Every line of the run, as it was logged; without a last line that a crash cut off.

        Raises:
            MachineError: a line is damaged.
        """
        return self.parse(self.content())

    def content(self) -> bytes:
        """All bytes, none where there is no file.

        Raises:
            MachineError: it cannot be read.
        """
        return read_bytes(self._path) or b""

    def parse(self, content: bytes) -> History:
        """The lines in `content`, the content of this file.

        Raises:
            MachineError: one is damaged.
        """
        events = self.events(content)
        return History(
            tuple(each for each in events if isinstance(each, StepMetrics)),
            tuple(each for each in events if isinstance(each, EvaluationMetrics)),
            tuple(each for each in events if isinstance(each, OutOfMemory)),
            tuple(each for each in events if isinstance(each, Warned)),
        )

    def events(self, content: bytes, first: int = 1) -> list[Event]:
        """The whole lines in `content`, in their order; `first`: the number of the first line, for messages.

        Raises:
            MachineError: one is damaged.
        """
        from pydantic import TypeAdapter

        event, step, numbers = TypeAdapter(_Event), TypeAdapter(StepMetrics), TypeAdapter(dict[str, float])
        retry, warning = TypeAdapter(OutOfMemory), TypeAdapter(Warned)
        found: list[Event] = []
        for number, text in enumerate(content.split(b"\n")[:-1], start=first):
            try:
                line = event.validate_json(text, strict=True)
                if line.event == "step":
                    found.append(step.validate_json(text, strict=True))
                elif line.event == "evaluation":
                    values = json.loads(text)
                    figures = {key: value for key, value in values.items() if key not in ("event", "step")}
                    found.append(EvaluationMetrics(line.step, numbers.validate_python(figures, strict=True)))
                elif line.event == "warning":
                    found.append(warning.validate_json(text, strict=True))
                else:
                    found.append(retry.validate_json(text, strict=True))
            except ValueError as error:
                raise fault(Path(f"{self._path}:{number}"), f"is damaged: {_first_words(error)}") from error
        return found

    def restore(self, content: bytes) -> None:
        """Make the file what it was, with lines that a resumed run writes again or that are damaged removed."""
        write_bytes(self._path, content)

    def restart(self, *, known: bool) -> bool:
        """Remove all lines but the evaluation before training where it is `known`; whether that is there and whole."""
        kept = b""
        with suppress(MachineError):
            first = self.content().partition(b"\n")[0] + b"\n"
            kept = first if known and [line.step for line in self.parse(first).evaluations] == [0] else b""
        if kept or os.path.lexists(self._path):
            self.restore(kept)
        return bool(kept)


def _first_words(error: ValueError) -> str:
    """What pydantic or json says, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
