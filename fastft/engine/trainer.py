"""TRL's SFTTrainer with what a run needs besides: sealed checkpoints, repeatable order, true counts, a stop at NaN."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from fastft.data.encode import NO_LOSS
from fastft.engine import fsdp
from fastft.engine.callbacks import (
    NumberGuard,
    Resumption,
    StepReporter,
    StopOnRequest,
)
from fastft.engine.checkpointing import CheckpointingTrainer
from fastft.engine.chosen_optimizer import Averaged, make_optimizer
from fastft.engine.compiling import Compiling, uncompiled
from fastft.engine.counting import CountingTrainer
from fastft.engine.noise_scale import LEAST_MICRO_BATCHES, MOST_WEIGHTS, NoiseMeter, noise_scale
from fastft.engine.random_state import RandomState
from fastft.engine.ranks import all_equal
from fastft.engine.reporting import Reporters
from fastft.engine.sampler import (
    DealtSampler,
    EpochSampler,
    is_without_loss,
    with_row_without_loss,
    without_padding_rows,
)
from fastft.engine.sharding import own_part, pickles_as_weights, refuse_if_whole, zero_stage_of
from fastft.errors import Problem, TrainingError, Where
from fastft.planning.calls import Calls
from fastft.runs.checkpoints import evaluations_at
from fastft.runs.directory import RunDir
from fastft.runs.metrics import EvaluationMetrics, StepMetrics
from fastft.runs.ranks import Ranks

# Of one batch in a message.
SHOWN_ROWS = 8
# A trained weight beyond this has left every useful range: adapters stay below 1, whole models below 100.
WILD_WEIGHT = 1e3
# A loss that rose by as much, in nats a token, before it became no number was driven there step by step.
RISEN_LOSS = 1.0


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
    warned: Callable[[int, str], None] = lambda *_: None
    """Takes the step, and what the run says about itself after it."""
    last_step: int = 0
    """The optimizer step after which the run evaluates, saves and stops, to be continued; 0: none."""


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


class RunTrainer(CheckpointingTrainer):
    """A trainer that writes sealed `step-N` checkpoints into a run directory and counts what it really trained."""

    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    optimizer: Any

    def __init__(self, *args: Any, run: RunDir, order: RowOrder, hooks: Hooks, **kwargs: Any) -> None:
        self._order = order
        self._dealt: DealtSampler | None = None
        self._loss: torch.Tensor | None = None
        self._grad_norm: torch.Tensor | float | None = None
        self._begin: Callable[[], None] = lambda: None
        self._after_evaluation: RandomState | None = None
        super().__init__(*args, run=run, ranks=hooks.ranks, before_save=hooks.before_save, **kwargs)
        if self._ranks.world.size > 1:
            self._fill_up()
        if self.args.device.type == "cpu" and getattr(self.model, "is_loaded_in_4bit", False):
            # TRL 1.15 casts the adapter of a 4-bit model to bfloat16; PEFT reads a checkpoint back in float32, so that
            # a resumed run would be another one.
            for weight in self.model.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.float()
        self._noise = self._noise_meter()
        self._before_evaluation: RandomState | None = None
        self.calls: Calls | None = None
        self.reporters = Reporters(self, run.path)
        self._reporter = StepReporter(self, self.reporters, hooks.step, hooks.evaluated)
        self._stop = StopOnRequest(self, hooks.stop_asked, hooks.last_step)
        if self.args.torch_compile:
            self.add_callback(Compiling(hooks.note))
        for callback in (self.reporters, self._reporter, NumberGuard(self), self._stop, Resumption(self)):
            self.add_callback(callback)

    def _noise_meter(self) -> NoiseMeter | None:
        """The meter of the noise scale, where this process sees a step whole and the meter costs next to nothing."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        few = self.args.gradient_accumulation_steps < LEAST_MICRO_BATCHES
        if few or self._ranks.world.size > 1 or self.is_sharded or self.args.fp16:  # fp16 changes its scale on the way
            return None
        return NoiseMeter(weights) if sum(weight.numel() for weight in weights) <= MOST_WEIGHTS else None

    @property
    def noise_scale(self) -> tuple[float, float, float] | None:
        """(estimate, low, high) of the gradient noise scale in examples; None while it is not known."""
        return None if self._noise is None else noise_scale(self._noise.read())

    def _fill_up(self) -> None:
        """Add a row for ranks that have none, which trains nothing."""
        self.train_dataset = with_row_without_loss(self.train_dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = with_row_without_loss(self.eval_dataset)
        self.data_collator = without_padding_rows(self.data_collator)

    def _is_filler(self, inputs: dict[str, Any]) -> bool:
        """Whether a micro-batch is that row alone."""
        return is_without_loss(inputs)

    @property
    def splits_weights(self) -> bool:
        """Whether no rank holds the whole model."""
        return zero_stage_of(self) == 3 or fsdp.is_split(self.model)

    @property
    def stopped(self) -> bool:
        """Whether training ended because it was asked to."""
        return self._stop.stopped

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """That of the plan; its schedule-free kinds are left averaged between steps."""
        if self.optimizer is None and self.calls is not None:
            self.optimizer = make_optimizer(self.calls, self.model, self.args)
        made: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if hasattr(made, "eval"):
            self.add_callback(Averaged(self))
        return made

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
        if not self._is_filler(inputs):
            self._count(inputs)
            self._computed_tokens += self._computed(inputs)
        if fsdp.is_split(self.model):
            fsdp.share_later(self.model, now=self.accelerator.sync_gradients)
        units = 0 if self._noise is None else self._loss_units(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if self._noise is not None:
            self._noise.add(units, self._examples[-1])
            if self.accelerator.sync_gradients:
                self._noise.end_step()
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def _computed(self, inputs: dict[str, Any]) -> int:
        """Tokens of a micro-batch, padding counted."""
        count: int = inputs["input_ids"].numel()
        return count

    def _loss_units(self, inputs: dict[str, Any]) -> torch.Tensor | int:
        """What the loss of a micro-batch is a mean over: its rows."""
        return self._examples[-1]

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._grad_norm = fsdp.whole(super()._get_grad_norm(*args, **kwargs))
        if self._grad_norm is not None:
            self._norms.append(self._grad_norm)
        return self._grad_norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.refuse_if_poisoned()
        self.refuse_if_ranks_differ()
        super()._save_checkpoint(model, trial)

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
        state = {} if self.optimizer is None else dict(self.optimizer.state)
        for name, weight in self.model.named_parameters():
            kept = state.pop(weight, {}).values()
            if weight.requires_grad and not all(map(_is_finite, (weight, *kept))):
                raise self._not_a_number(f"{name} holds values that are no numbers", self.state.global_step)
        # DeepSpeed's state belongs to parts of many weights.
        if not all(_is_finite(value) for kept in state.values() for value in kept.values()):
            raise self._not_a_number("the optimizer's state holds values that are no numbers", self.state.global_step)

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
        for name, held in self.model.named_parameters():
            weight = own_part(held)
            if held.requires_grad:
                if not bool((weight.abs() < WILD_WEIGHT).all()):
                    field = "train.learning_rate"
                    instead = "lower train.learning_rate or raise the warm-up; earlier checkpoints are whole"
            elif weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                wrong = f"{wrong}; the base model itself holds values that are no numbers, in {name}"
                field, instead = "model.id", "download the base model again, or take another"
                break
        logged = [line["loss"] for line in self.state.log_history if math.isfinite(line.get("loss", math.nan))]
        if field == "data.train" and logged and logged[-1] > logged[0] + RISEN_LOSS:
            wrong = f"{wrong}; it had risen from {logged[0]:.2f} to {logged[-1]:.2f} before"
            field, instead = "train.learning_rate", f"lower it or raise the warm-up, or {instead.split(',')[0]}"
        return TrainingError(Problem(Where(f"training, step {step}"), field, wrong, instead))

    def refuse_if_ranks_differ(self) -> None:
        """Stop when the ranks have trained different weights.

        Raises:
            TrainingError: they have.
        """
        if self.splits_weights:  # each holds its own part
            return
        trained = [weight.detach().double() for weight in self.model.parameters() if weight.requires_grad]
        own = sum(float(weight.sum()) + float(weight.abs().sum()) for weight in trained)
        if not all_equal(own):
            wrong = "the ranks hold different weights: their gradients were not shared"
            where = Where(f"training, step {self.state.global_step}")
            raise TrainingError(Problem(where, "", wrong, "this is a bug of fastft or of a library"))

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, or until somebody asks to stop; from `checkpoint` or from the start."""
        self._checkpoint = checkpoint
        several = self._ranks.world.size > 1 and not self.is_sharded and not fsdp.is_split(self.model)
        if several or self.args.torch_compile:
            # After an evaluation accelerate takes the model for prepared, and would not compile it, nor share its
            # gradients: each rank would train a model of its own (accelerate 1.15, prepare_model).
            self.model._is_accelerate_prepared = False
            self.accelerator._models.clear()
        with contextlib.suppress(_Prepared), self._reading():
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        """Where a checkpoint may be read."""
        return pickles_as_weights() if self.is_sharded else contextlib.nullcontext()

    def before_training(self, begin: Callable[[], None]) -> None:
        """Call `begin` once this model can compute: now, or when a sharded one is prepared for training."""
        if self.is_sharded:
            self._begin = begin
        else:
            begin()

    def begin_sharded(self) -> None:
        """At the begin of training, with the weights of its checkpoint if it has one.

        Raises:
            _Prepared: training had ended at that checkpoint.
        """
        if not self.is_sharded:
            return
        refuse_if_whole(self)
        self._begin()
        if self._checkpoint is None:
            self.state.log_history.clear()  # what an untrained model scores is no evaluation of training
        elif self._is_evaluation_due(self.state) and not evaluations_at(self._checkpoint, self.state.global_step):
            # A kill left it out.
            self._load_rng_state(str(self._checkpoint))
            self._determine_best_metric(self._evaluate(None, None), None)
            self.find_best()
            self._after_evaluation = RandomState.now()
        if self._checkpoint is not None and (self.has_ended_at(self._checkpoint) or self.control.should_training_stop):
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._load_best_model()
            raise _Prepared

    def _load_rng_state(self, checkpoint: Any) -> None:
        super()._load_rng_state(checkpoint)
        if self._after_evaluation is not None:
            self._after_evaluation.restore()

    def is_evaluation_due_now(self) -> bool:
        """Whether a stop after this step must evaluate first: a resumed sharded run cannot do it before it trains."""
        return self.is_sharded and self._is_evaluation_due(self.state)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; the random numbers of before stay at hand, for a stop on the way."""
        self._before_evaluation = RandomState.now()
        with uncompiled(self.accelerator):
            figures: dict[str, float] = super().evaluate(*args, **kwargs)
        return figures

    def save_before_evaluation(self) -> None:
        """Within an evaluation: save the step as if the evaluation had not begun, unless that is done."""
        if not self.is_sharded and not self.can_end_here() and self._before_evaluation is not None:
            self._before_evaluation.restore()
            self._save_checkpoint(self.model, None)


class _Prepared(Exception):  # noqa: N818 -- no error: training had ended before
    """A sharded model is ready to be evaluated, and has nothing more to learn."""


def _is_finite(value: Any) -> bool:
    """Whether a tensor, or what this rank has of it, holds numbers alone."""
    part = own_part(value)
    return not torch.is_tensor(part) or not part.is_floating_point() or bool(torch.isfinite(part).all())


class SftTrainer(RunTrainer, CountingTrainer):
    """TRL's trainer of answers as a RunTrainer."""

    def _loss_units(self, inputs: dict[str, Any]) -> torch.Tensor:
        return (inputs["labels"][:, 1:] != NO_LOSS).sum()
