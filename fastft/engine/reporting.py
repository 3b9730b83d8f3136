"""Where metrics go besides metrics.jsonl: transformers' reporters, and fastft's own figures for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from fastft.runs.metrics import StepMetrics

if TYPE_CHECKING:
    from fastft.engine.trainer import RunTrainer

EVENTS = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))
END = "on_train_end"


class Reporters(TrainerCallback):
    """The reporters of `train.report_to` as one callback, whose end comes after the evaluation that follows training.

    Left to themselves they close at the end of training, and some begin a second run for what is evaluated then.
    """

    def __init__(self, trainer: RunTrainer, folder: Path) -> None:
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        self._trainer = trainer
        self._callbacks = [each for each in trainer.callback_handler.callbacks if isinstance(each, kinds)]
        self._end: Callable[[], None] | None = None
        for callback in self._callbacks:
            trainer.remove_callback(callback)
            if isinstance(callback, TensorBoardCallback) and "TENSORBOARD_LOGGING_DIR" not in os.environ:
                # Its own folder is known from the begin of training on: what is evaluated before would lie in ./runs.
                callback.logging_dir = str(folder / "tensorboard")
        for event in EVENTS:
            setattr(self, event, self._forward(event))

    def _forward(self, event: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            def every() -> None:
                for callback in self._callbacks:
                    getattr(callback, event)(*args, **kwargs)

            if event == END:
                self._end = every
            else:
                every()

        return call

    def step(self, line: StepMetrics) -> None:
        """Report what transformers does not know of a logged step."""
        known: dict[str, float | None] = {
            "tokens_per_second": line.tokens_per_second,
            "samples_per_second": line.samples_per_second,
            "padding": line.padding,
            "memory_gib": line.memory_bytes / 1024**3,
        }
        rewards = {f"reward_{name}": value for name, value in line.rewards.items()}
        self.report({name: value for name, value in known.items() if value is not None} | rewards)

    def report(self, figures: Mapping[str, float]) -> None:
        """Report figures at this optimizer step, under their names: `eval_x` of an evaluation, else of training."""
        trainer = self._trainer
        for callback in self._callbacks if figures else ():
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(figures), model=trainer.model)

    def close(self) -> None:
        """Let the reporters end."""
        end, self._end = self._end, None
        if end is not None:
            end()
