"""What a run watches while the trainer works."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fastft.engine.trainer import RunTrainer, _evaluations_without_gain
from fastft.runs.metrics import StepMetrics


class Watcher(TrainerCallback):
    """Reports each logged step, stops at a loss that is no number, and saves and stops when `stop_asked` says so."""

    def __init__(
        self,
        report: Callable[[StepMetrics], None],
        evaluated: Callable[[dict[str, Any]], None],
        asked: Callable[[], bool],
    ) -> None:
        self._report, self._evaluated, self._asked = report, evaluated, asked
        self._seconds = 0.0
        self._began = time.perf_counter()
        self._training = False
        self.trainer: RunTrainer | None = None
        self.stopped = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put back what transformers forgets on a resume: where the best checkpoint is, and the patience used up."""
        self._training = True
        if self.trainer is None:
            return
        self.trainer.find_best()
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = _evaluations_without_gain(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._training = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._asked() and not self._training and self.trainer is not None and self.trainer.can_end_here():
            raise KeyboardInterrupt

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step + 1
        if self.trainer is not None and (step == 1 or step % args.logging_steps == 0 or step == state.max_steps):
            self.trainer.refuse_if_not_a_number()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        if state.global_step >= state.max_steps:
            control.should_log = True  # or the steps since the last line would be in no figure
        elif self._asked():
            self.stopped = control.should_log = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stopped:  # within an epoch, saved already: what belongs to its end is for the resumed run
            control.should_log = control.should_evaluate = control.should_save = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" not in logs or self.trainer is None:
            if "eval_loss" in logs:
                self._evaluated({"step": state.global_step, **logs})
            return
        norm = logs.get("grad_norm")
        tokens, examples = self.trainer.take_counts()
        self._report(
            StepMetrics(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(logs.get("epoch", state.epoch or 0.0)),
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                grad_norm=None if norm is None else float(norm),
                tokens=tokens,
                examples=examples,
                seconds=self._seconds,
                memory_bytes=peak_memory(),
            )
        )
        self._seconds = 0.0


def peak_memory() -> int:
    """Peak bytes: allocated on the GPU, or resident in this process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", 0) or _peak_resident() or info.rss)


def _peak_resident() -> int:
    import resource
    import sys

    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
