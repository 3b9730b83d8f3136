"""What happens beside the steps of the trainer: one callback, one job."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastft.engine.memory import peak_memory
from fastft.engine.ranks import any_rank
from fastft.errors import Problem, TrainingError, Where
from fastft.runs.divergence import Alarm, DivergenceWatch
from fastft.runs.metrics import EvaluationMetrics, StepMetrics

if TYPE_CHECKING:
    from fastft.engine.reporting import Reporters
    from fastft.engine.trainer import RunTrainer


class StepReporter(TrainerCallback):
    """Reports each logged step, and the figures of each evaluation."""

    def __init__(
        self,
        trainer: RunTrainer,
        reporters: Reporters,
        step: Callable[[StepMetrics], None],
        evaluation: Callable[[EvaluationMetrics], None],
    ) -> None:
        self._trainer, self._reporters, self._step, self._evaluation = trainer, reporters, step, evaluation
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
        tokens, examples, computed = self._trainer.take_counts()
        line = StepMetrics(
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
            rewards=self._trainer.take_rewards(),
            computed_tokens=computed,
            clipped=self._trainer.take_clipped(),
            noise_scale=self._trainer.noise_scale,
        )
        self._step(line)
        if state.is_world_process_zero:
            self._reporters.step(line)
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

    The resumed run makes an evaluation that is due (`RunTrainer.completed`): it may take minutes. After `last_step`,
    where that is not 0, it evaluates, saves and stops.
    """

    def __init__(self, trainer: RunTrainer, asked: Callable[[], bool], last_step: int) -> None:
        self._trainer, self._asked, self._last_step = trainer, asked, last_step
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
        if state.global_step == self._last_step and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = self._trainer.eval_dataset is not None
        elif state.global_step < state.max_steps and any_rank(self._asked()):
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = self._trainer.is_evaluation_due_now()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stopped:  # saved already: the resumed run does what the end of the epoch asks for
            control.should_log = control.should_evaluate = control.should_save = False


class Resumption(TrainerCallback):
    """Restores what transformers forgets on a resume: the path of the best checkpoint, and steps not yet logged."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.begin_sharded()
        self._trainer.find_best()
        self._trainer.restore_unlogged()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.begin_epoch()


class Watch(TrainerCallback):
    """Says at once when a run gets worse, with the step, its rows and the likely cause; stops it when asked to."""

    def __init__(
        self, trainer: RunTrainer, untrained: float | None, stops_at: str, say: Callable[[int, str], None]
    ) -> None:
        self._trainer, self._stops_at, self._say = trainer, stops_at, say
        self._watch = DivergenceWatch(untrained)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for line in state.log_history:  # what was said before a stop is not said again
            self._alarm(line)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        alarm = self._alarm(logs)
        if alarm is None:
            return
        step = state.global_step
        words = f"{alarm.words}{self._trainer.rows_in_words(step)}"
        likely = "a lower train.learning_rate or a longer warm-up helps most often, else look at the rows"
        if self._stops_at == "always" or (self._stops_at == "blow-up" and alarm.blew_up):
            instead = f'{likely}; train.stop_on_divergence = "never" goes on'
            raise TrainingError(Problem(Where(f"training, step {step}"), "train.stop_on_divergence", words, instead))
        self._say(step, f"{words}; {likely}")

    def _alarm(self, line: Mapping[str, Any]) -> Alarm | None:
        if "eval_loss" in line:
            return self._watch.evaluation(float(line["eval_loss"]))
        norm = line.get("grad_norm")
        return self._watch.step(float(line["loss"]), None if norm is None else float(norm)) if "loss" in line else None


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, whose count of evaluations without gain survives a resume."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        super().on_train_begin(args, state, control)
        self.early_stopping_patience_counter = evaluations_without_gain(state)


def evaluations_without_gain(state: TrainerState) -> int:
    """What early stopping had counted when `state` was saved."""
    saved = state.stateful_callbacks.get(EarlyStopping.__name__, {})
    return int(saved.get("attributes", {}).get("early_stopping_patience_counter", 0))
