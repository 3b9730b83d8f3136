"""What happens beside the steps of the trainer: one callback, one job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastft.engine.memory import peak_memory
from fastft.engine.ranks import any_rank
from fastft.runs.metrics import EvaluationMetrics, StepMetrics

if TYPE_CHECKING:
    from fastft.engine.trainer import RunTrainer


class StepReporter(TrainerCallback):
    """Reports each logged step, and the figures of each evaluation."""

    def __init__(
        self, trainer: RunTrainer, step: Callable[[StepMetrics], None], evaluation: Callable[[EvaluationMetrics], None]
    ) -> None:
        self._trainer, self._step, self._evaluation = trainer, step, evaluation
        self.seconds = 0.0
        """In optimizer steps since the last line."""
        self._began = time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        if state.global_step >= state.max_steps:
            control.should_log = True  # otherwise no line has the steps since the last one

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "eval_loss" in logs:
            # TRL counts eval_num_tokens anew in each attempt; the lines of the steps have the true counts.
            figures = {name: value for name, value in logs.items() if name != "eval_num_tokens"}
            self._evaluation(EvaluationMetrics(state.global_step, figures))
        if "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        tokens, examples = self._trainer.take_counts()
        self._step(
            StepMetrics(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(logs.get("epoch", state.epoch or 0.0)),
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                grad_norm=None if norm is None else float(norm),
                tokens=tokens,
                examples=examples,
                seconds=self.seconds,
                memory_bytes=peak_memory(),
            )
        )
        self.seconds = 0.0


class NumberGuard(TrainerCallback):
    """Stops at a loss or gradient that is NaN or infinite, on logged steps, before the optimizer uses it."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step + 1
        if step == 1 or step % args.logging_steps == 0 or step == state.max_steps:
            self._trainer.refuse_if_not_a_number()


class StopOnRequest(TrainerCallback):
    """Saves and stops after the step in which `asked` becomes true on any rank, within an evaluation at once.

    The resumed run makes an evaluation that is due (`RunTrainer.completed`): it may take minutes.
    """

    def __init__(self, trainer: RunTrainer, asked: Callable[[], bool]) -> None:
        self._trainer, self._asked = trainer, asked
        self._training = False
        self.stopped = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._training = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._training = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not any_rank(self._asked()):
            return
        if self._training:
            self._trainer.save_before_evaluation()
        if self._trainer.can_end_here():
            raise KeyboardInterrupt

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < state.max_steps and any_rank(self._asked()):
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stopped:  # saved already: the resumed run does what the end of the epoch asks for
            control.should_log = control.should_evaluate = control.should_save = False


class Resumption(TrainerCallback):
    """Restores what transformers forgets on a resume: the path of the best checkpoint, and steps not yet logged."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.find_best()
        self._trainer.restore_unlogged()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.begin_epoch()


class HeldOutWatch(TrainerCallback):
    """Says once when the held-out loss is above that of the untrained model."""

    def __init__(self, untrained: float, say: Callable[[str], None]) -> None:
        self._untrained, self._say = untrained, say
        self._said = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, Any], **_: Any
    ) -> None:
        loss = metrics.get("eval_loss")
        if loss is not None and loss > self._untrained and not self._said:
            self._said = True
            self._say(
                f"step {state.global_step}: the held-out loss is {loss:.4f}, {self._untrained:.4f} before training: "
                "the model gets worse; a lower train.learning_rate or other rows may help"
            )


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, whose count of evaluations without gain survives a resume."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        super().on_train_begin(args, state, control)
        self.early_stopping_patience_counter = evaluations_without_gain(state)


def evaluations_without_gain(state: TrainerState) -> int:
    """What early stopping had counted when `state` was saved."""
    saved = state.stateful_callbacks.get(EarlyStopping.__name__, {})
    return int(saved.get("attributes", {}).get("early_stopping_patience_counter", 0))
