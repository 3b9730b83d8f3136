"""TRL's SFTTrainer with what a run needs besides: sealed checkpoints, repeatable order, true counts, a stop at NaN."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import Trainer, TrainerState

from fastft.engine.callbacks import (
    EarlyStopping,
    NumberGuard,
    Resumption,
    StepReporter,
    StopOnRequest,
    evaluations_without_gain,
)
from fastft.engine.counting import CountingTrainer
from fastft.engine.random_state import RandomState
from fastft.engine.ranks import all_equal, mean, total, wait_for_all
from fastft.engine.sampler import (
    DealtSampler,
    EpochSampler,
    is_without_loss,
    with_row_without_loss,
    without_padding_rows,
)
from fastft.errors import Problem, TrainingError, Where
from fastft.files.atomic import free_bytes
from fastft.files.records import read_record, write_record
from fastft.files.seal import seal
from fastft.runs.checkpoints import STATE, checkpoints, evaluations_at
from fastft.runs.directory import RunDir
from fastft.runs.history import keep_history
from fastft.runs.metrics import EvaluationMetrics, StepMetrics
from fastft.runs.ranks import Ranks

# Of one batch in a message.
SHOWN_ROWS = 8
# A trained weight beyond this has left every useful range: adapters stay below 1, whole models below 100.
WILD_WEIGHT = 1e3


@dataclass(frozen=True)
class Unlogged:
    """What the steps since the last line of metrics add up to: part of a checkpoint, for lines that do not change.

    `loss`: the trainer's sum over these steps; `last_step`: the step of that line; `seconds` in optimizer steps.
    """

    FILE: ClassVar[str] = "unlogged.json"
    SCHEMA: ClassVar[int] = 1

    loss: float
    last_step: int
    tokens: int
    examples: int
    seconds: float


@dataclass(frozen=True)
class Hooks:
    """Where news goes, and whether somebody asked to stop."""

    stage: Callable[[str], None]
    note: Callable[[str], None]
    step: Callable[[StepMetrics], None]
    evaluated: Callable[[EvaluationMetrics], None]
    stop_asked: Callable[[], bool]
    ranks: Ranks = field(default_factory=Ranks)
    before_save: Callable[[], None] = lambda: None
    """What a checkpoint must wait for."""


@dataclass(frozen=True)
class RowOrder:
    """What the order of the rows depends on: `lengths` in tokens, None for packed rows, and rows of an optimizer step.

    `step_rows`: with several ranks alone; one takes the product of batch and accumulation.
    """

    lengths: list[int] | None
    group_by_length: bool
    step_rows: int
    where: Callable[[int], Where]
    """The file and line of a row, counted from 0."""
    flattened: bool = False
    """Whether the rows of a micro-batch are joined to one, without padding."""


class RunTrainer(Trainer):
    """A trainer that writes sealed `step-N` checkpoints into a run directory and counts what it really trained."""

    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    def __init__(self, *args: Any, run: RunDir, order: RowOrder, hooks: Hooks, **kwargs: Any) -> None:
        self._run = run
        self._order = order
        self._ranks = hooks.ranks
        self._before_save = hooks.before_save
        self._dealt: DealtSampler | None = None
        self._saving_to: Path | None = None
        self._loss: torch.Tensor | None = None
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples: list[torch.Tensor | int] = []
        self._grad_norm: torch.Tensor | float | None = None
        super().__init__(*args, **kwargs)
        if self._ranks.world.size > 1:
            self.train_dataset = with_row_without_loss(self.train_dataset)
            if self.eval_dataset is not None:
                self.eval_dataset = with_row_without_loss(self.eval_dataset)
            self.data_collator = without_padding_rows(self.data_collator)
        if self.args.device.type == "cpu" and getattr(self.model, "is_loaded_in_4bit", False):
            # TRL 1.15 casts the adapter of a 4-bit model to bfloat16; PEFT reads a checkpoint back in float32, so that
            # a resumed run would be another one.
            for weight in self.model.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.float()
        self._checkpoint: Path | None = None
        self._before_evaluation: RandomState | None = None
        self._reporter = StepReporter(self, hooks.step, hooks.evaluated)
        self._stop = StopOnRequest(self, hooks.stop_asked)
        for callback in (self._reporter, NumberGuard(self), self._stop, Resumption(self)):
            self.add_callback(callback)

    @property
    def stopped(self) -> bool:
        """Whether training ended because it was asked to."""
        return self._stop.stopped

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch, order, ranks = self.args.train_batch_size, self._order, self._ranks.world.size
        # Where rows are flattened nothing is padded, and the longest ones in one micro-batch would need more memory.
        lengths = order.lengths if order.group_by_length or not order.flattened else None
        if ranks == 1:
            step_rows = batch * self.args.gradient_accumulation_steps
            return EpochSampler(len(dataset), self.args.seed, lengths, step_rows, grouped=order.group_by_length)
        epochs = EpochSampler(len(dataset) - 1, self.args.seed, lengths, order.step_rows, grouped=order.group_by_length)
        self._dealt = DealtSampler(epochs, order.lengths, batch=batch, step_rows=order.step_rows, ranks=ranks)
        return self._dealt

    def begin_epoch(self) -> None:
        """Tell the sampler of several ranks the epoch: after a resume within one, accelerate does not reach it."""
        if self._dealt is not None:
            self._dealt.set_epoch(math.floor((self.state.epoch or 0.0) + 1e-6))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        batch, ranks = self.args.eval_batch_size, self._ranks.world.size
        if ranks == 1:
            sampler: Sampler[int] | None = super()._get_eval_sampler(eval_dataset)
            return sampler
        rows = range(len(eval_dataset) - 1)
        return DealtSampler(rows, None, batch=batch, step_rows=batch * ranks, ranks=ranks)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if not is_without_loss(inputs):
            self._count(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._grad_norm = super()._get_grad_norm(*args, **kwargs)
        return self._grad_norm

    def refuse_if_not_a_number(self) -> None:
        """Stop before the optimizer step when the loss since the last line, or the gradient, is no number.

        Reads two numbers from the device, so it is called on logged steps only. Infinite gradients are how float16
        training finds its loss scale: there the scaler skips the step.

        Raises:
            TrainingError: one of them is no number.
        """
        loss, self._loss = float("nan") if self._loss is None else float(self._loss), None
        norm = None if self._grad_norm is None else float(self._grad_norm)
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm) and not self.args.fp16):
            step = self.state.global_step + 1
            rows = self.rows_in_words(step)
            raise self._not_a_number(f"the loss is {loss}, the gradient norm {norm}{rows}", step)

    def refuse_if_poisoned(self) -> None:
        """Stop when a trained weight, or what the optimizer keeps of it, holds a value that is no number.

        Raises:
            TrainingError: one does.
        """
        for name, weight in self.model.named_parameters():
            kept = self.optimizer.state.get(weight, {}).values() if self.optimizer is not None else ()
            tensors = [value for value in (weight, *kept) if torch.is_tensor(value) and value.is_floating_point()]
            if weight.requires_grad and not all(bool(torch.isfinite(value).all()) for value in tensors):
                raise self._not_a_number(f"{name} holds values that are no numbers", self.state.global_step)

    def rows_in_words(self, step: int) -> str:
        """`, with rows 3 (a.jsonl:3), 17 (a.jsonl:18) of training (...)`: those of optimizer step `step`.

        "" where packing mixes them.
        """
        if self._order.lengths is None or self.args.world_size > 1:
            return ""
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        epoch, place = divmod(step - 1, -(-len(self.train_dataset) // batch))
        order = self._get_train_sampler()
        order.set_epoch(epoch)
        rows = sorted(list(order)[place * batch : (place + 1) * batch])
        shown = ", ".join(f"{row + 1} ({self._order.where(row)})" for row in rows[:SHOWN_ROWS])
        shown += f" and {len(rows) - SHOWN_ROWS} more" * (len(rows) > SHOWN_ROWS)
        return f", with rows {shown} of training (fastft preview RECIPE --row N shows one)"

    def _not_a_number(self, wrong: str, step: int) -> TrainingError:
        """The error for numbers that are none, with what is at fault: the base, the learning rate or the rows."""
        field, instead = "data.train", "look at these rows, or lower train.learning_rate; earlier checkpoints are whole"
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                if not bool((weight.abs() < WILD_WEIGHT).all()):
                    field = "train.learning_rate"
                    instead = "lower train.learning_rate or raise the warm-up; earlier checkpoints are whole"
            elif weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                wrong = f"{wrong}; the base model itself holds values that are no numbers, in {name}"
                field, instead = "model.id", "download the base model again, or take another"
                break
        return TrainingError(Problem(Where(f"training, step {step}"), field, wrong, instead))

    def refuse_if_ranks_differ(self) -> None:
        """Stop when the ranks have trained different weights.

        Raises:
            TrainingError: they have.
        """
        trained = [weight.detach().double() for weight in self.model.parameters() if weight.requires_grad]
        own = sum(float(weight.sum()) + float(weight.abs().sum()) for weight in trained)
        if not all_equal(own):
            wrong = "the ranks hold different weights: their gradients were not shared"
            where = Where(f"training, step {self.state.global_step}")
            raise TrainingError(Problem(where, "", wrong, "this is a bug of fastft or of a library"))

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, or until somebody asks to stop; from `checkpoint` or from the start."""
        self._checkpoint = checkpoint
        if self._ranks.world.size > 1:
            # After an evaluation accelerate takes the model for prepared, and would not share its gradients: each rank
            # would train a model of its own (accelerate 1.15, prepare_model).
            self.model._is_accelerate_prepared = False
            self.accelerator._models.clear()
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def take_counts(self) -> tuple[int, int]:
        """Real tokens and examples that all ranks trained since the last call."""
        counts = self._counts()
        self._real_tokens, self._examples = [], []
        return counts

    def _counts(self) -> tuple[int, int]:
        tokens, examples = sum(int(count) for count in self._real_tokens), sum(int(count) for count in self._examples)
        tokens, examples = total((tokens, examples))
        return tokens, examples

    def restore_unlogged(self) -> None:
        """Put back what the steps since the last line had added up to when the checkpoint was written."""
        unlogged = None if self._checkpoint is None else read_record(self._checkpoint / Unlogged.FILE, Unlogged)
        if unlogged is None:
            return
        self._tr_loss = torch.tensor(unlogged.loss, device=self.args.device)
        self._globalstep_last_logged = unlogged.last_step
        if self._ranks.world.is_first:  # the counts are of all ranks, the loss is their mean
            self._real_tokens, self._examples = [unlogged.tokens], [unlogged.examples]
        self._reporter.seconds = unlogged.seconds

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in checkpoints: a card is written with the weights that are handed over."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the trainer write into a folder that nobody reads, then seal it under its final name."""
        self.refuse_if_poisoned()
        self.refuse_if_ranks_differ()
        if self._ranks.world.is_first:
            self._refuse_if_disk_is_short()
            self._before_save()
        step, best = self.state.global_step, self.state.best_global_step
        since = (mean(float(self._tr_loss)), self._globalstep_last_logged, *self._counts(), self._reporter.seconds)
        self._saving_to = self._run.checkpoints / ".partial"
        if self._ranks.world.is_first:
            shutil.rmtree(self._saving_to, ignore_errors=True)
        wait_for_all()
        try:
            super()._save_checkpoint(model, trial)
            wait_for_all()
            if self._ranks.world.is_first:
                self._seal(self._saving_to / f"checkpoint-{step}", Unlogged(*since), best)
            wait_for_all()
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk said
            free = free_bytes(self._run.checkpoints)
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            wrong = f"the checkpoint could not be written: {said} ({free / 2**20:.0f} MiB free)"
            if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                wrong = f"the checkpoint could not be written: {said}: the folder is read-only"
            raise _cannot_save(self._run.checkpoints, wrong) from error
        finally:
            if self._ranks.world.is_first:
                shutil.rmtree(self._saving_to, ignore_errors=True)
            self._saving_to = None
        if best:
            self.find_best()
        if self._ranks.world.is_first:
            self._forget_old()

    def _seal(self, written: Path, unlogged: Unlogged, best: int | None) -> None:
        """Give the folder that all ranks wrote its last files and its name."""
        if best:
            self.find_best()
            self.state.save_to_json(str(written / STATE))
        write_record(written / Unlogged.FILE, unlogged)
        keep_history(self._run, written)
        # A pickle of the arguments, tokens included, that nothing here reads.
        (written / "training_args.bin").unlink(missing_ok=True)
        seal(written, self._run.checkpoints / f"step-{self.state.global_step}")

    def _refuse_if_disk_is_short(self) -> None:
        """Stop before a checkpoint that does not fit: a full disk makes torch and safetensors fail in other words.

        Raises:
            TrainingError: fewer bytes are free than the trained weights and the optimizer's state take.
        """
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        state = [value for kept in self.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
        needed, free = sum(tensor.nbytes for tensor in (*trained, *state)), free_bytes(self._run.checkpoints)
        if free < needed:
            wrong = f"the disk is full: a checkpoint needs {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
            raise _cannot_save(self._run.checkpoints, wrong)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; the random numbers of before stay at hand, for a stop on the way."""
        self._before_evaluation = RandomState.now()
        figures: dict[str, float] = super().evaluate(*args, **kwargs)
        return figures

    def save_before_evaluation(self) -> None:
        """Within an evaluation: save the step as if the evaluation had not begun, unless that is done."""
        if not self.can_end_here() and self._before_evaluation is not None:
            self._before_evaluation.restore()
            self._save_checkpoint(self.model, None)

    def completed(self, checkpoint: Path) -> Path:
        """The checkpoint as an undisturbed run would have written it, evaluated if an evaluation was due.

        A stop or a kill can leave that evaluation out; then it is made here, and a folder beside `checkpoint` links to
        its files and holds what the evaluation changes: metrics, best checkpoint, patience used up, random numbers.
        """
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if not self._is_evaluation_due(state) or evaluations_at(checkpoint, state.global_step):
            return checkpoint
        self.state = state
        self.find_best()
        for callback in self._early_stopping():
            callback.early_stopping_patience_counter = evaluations_without_gain(state)
        self._load_from_checkpoint(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self._determine_best_metric(self._evaluate(None, None), None)
        self.find_best()
        for callback in self._early_stopping():
            state.stateful_callbacks[type(callback).__name__] = callback.state()
        folder = checkpoint.with_name(".completed")
        if self._ranks.world.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for file in checkpoint.iterdir():
                if file.name != STATE and not file.name.startswith("rng_state"):
                    (folder / file.name).symlink_to(file.resolve())
            state.save_to_json(str(folder / STATE))
        wait_for_all()
        self._save_rng_state(str(folder))
        wait_for_all()
        return folder

    def _is_evaluation_due(self, state: TrainerState) -> bool:
        """Whether the recipe evaluates after the last step of `state` (transformers, DefaultFlowCallback)."""
        if self.args.eval_strategy == "epoch":
            return state.epoch is not None and float(state.epoch).is_integer()
        return bool(self.args.eval_strategy == "steps" and state.global_step % state.eval_steps == 0)

    def _early_stopping(self) -> list[EarlyStopping]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStopping)]

    def find_best(self) -> None:
        """Point the state at the best checkpoint by its step: a folder that was written down can have moved."""
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._run.checkpoints / f"step-{self.state.best_global_step}")

    def can_end_here(self) -> bool:
        """Whether nothing would be lost if the process ended now: nothing is trained yet, or all of it is saved."""
        step = self.state.global_step
        return step == 0 or (self._run.checkpoints / f"step-{step}").is_dir()

    def has_ended_at(self, checkpoint: Path) -> bool:
        """Whether training was over when `checkpoint` was written: at its last step, or stopped early."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        patience = [
            callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStopping)
        ]
        return state.global_step >= state.max_steps or any(evaluations_without_gain(state) >= wait for wait in patience)

    def take_from(self, checkpoint: Path) -> None:
        """Take the weights and the state of a checkpoint at which training had ended, without training any further."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self.find_best()
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def _forget_old(self) -> None:
        """Remove checkpoints beyond save_total_limit, oldest step first; the best one stays."""
        limit = self.args.save_total_limit
        best = self.state.best_model_checkpoint
        kept = [path for _, path in checkpoints(self._run) if str(path) != best]
        for path in kept[limit - (best is not None and limit > 1) :] if limit else []:
            shutil.rmtree(path)


class SftTrainer(RunTrainer, CountingTrainer):
    """TRL's trainer of answers as a RunTrainer."""


def _cannot_save(folder: Path, wrong: str) -> TrainingError:
    instead = "free some space, then run the same command: it continues from the newest checkpoint"
    return TrainingError(Problem(Where(str(folder)), "train.save_strategy", wrong, instead))
