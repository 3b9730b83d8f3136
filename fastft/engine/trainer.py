"""TRL's SFTTrainer with what a run needs besides: sealed checkpoints, repeatable order, true counts, a stop at NaN."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from fastft.data.encode import NO_LOSS
from fastft.engine_choice import selected
from fastft.errors import Problem, TrainingError, Where
from fastft.report.metrics import StepMetrics
from fastft.run import RunDir, checkpoints, seal


class EpochSampler(Sampler[int]):
    """The order of the rows in each epoch, from the seed and the epoch alone, so that a resumed run goes on in it.

    transformers' own LengthGroupedSampler draws from the global generator, which a resume restores too late: later
    epochs then come in another order (measured with transformers 5.17). With `lengths`, rows are grouped by length in
    mega-batches of 50 x `batch` rows, as transformers does it; without, they are shuffled.
    """

    def __init__(self, rows: int, seed: int, lengths: list[int] | None, batch: int) -> None:
        self._rows, self._seed, self._lengths, self._batch = rows, seed, lengths, batch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        if self._lengths is None:
            yield from torch.randperm(self._rows, generator=generator).tolist()
        else:
            yield from get_length_grouped_indices(self._lengths, self._batch, generator=generator)


class RunTrainer(SFTTrainer):
    """An SFTTrainer that writes sealed `step-N` checkpoints into a run directory and counts what it really trained."""

    def __init__(self, *args: Any, run: RunDir, lengths: list[int] | None, **kwargs: Any) -> None:
        self._run = run
        self._lengths = lengths
        self._saving_to: Path | None = None
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples = 0
        self._loss: torch.Tensor | None = None
        self._grad_norm: torch.Tensor | float | None = None
        super().__init__(*args, **kwargs)
        # TRL 1.15 computes its loss in a Triton kernel alone, which needs a GPU; Unsloth brings a loss of its own.
        self._needs_plain_loss = selected() == "transformers" and self.args.device.type == "cpu"

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(len(dataset), self.args.seed, self._lengths, batch)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        # Sums stay on the device until a line is logged: reading them here would make the GPU wait.
        self._real_tokens.append(inputs["input_ids"].numel() if mask is None else mask.sum())
        positions = inputs.get("position_ids")
        self._examples += len(inputs["input_ids"]) if positions is None else int((positions == 0).sum())
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self._needs_plain_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
        if not model.training:
            trained = inputs["labels"][:, 1:] != NO_LOSS
            right = (outputs.logits[:, :-1].argmax(-1) == inputs["labels"][:, 1:]) & trained
            self._metrics["eval"]["mean_token_accuracy"].append((right.sum() / trained.sum().clamp(min=1)).item())
        return (loss, outputs) if return_outputs else loss

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
            raise _not_a_number(f"the loss is {loss}, the gradient norm {norm}", self.state.global_step + 1)

    def refuse_if_poisoned(self) -> None:
        """Stop when a trained weight, or what the optimizer keeps of it, holds a value that is no number.

        Raises:
            TrainingError: one does.
        """
        for name, weight in self.model.named_parameters():
            kept = self.optimizer.state.get(weight, {}).values() if self.optimizer is not None else ()
            tensors = [value for value in (weight, *kept) if torch.is_tensor(value) and value.is_floating_point()]
            if weight.requires_grad and not all(bool(torch.isfinite(value).all()) for value in tensors):
                raise _not_a_number(f"{name} holds values that are no numbers", self.state.global_step)

    def take_counts(self) -> tuple[int, int]:
        """Real tokens and examples trained since the last call."""
        tokens, examples = sum(int(count) for count in self._real_tokens), self._examples
        self._real_tokens, self._examples = [], 0
        return tokens, examples

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in checkpoints: a card is written with the weights that are handed over."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the trainer write into a folder that nobody reads, then seal it under its final name."""
        self.refuse_if_poisoned()
        step, best = self.state.global_step, self.state.best_global_step
        self._saving_to = self._run.checkpoints / ".partial"
        shutil.rmtree(self._saving_to, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            written = self._saving_to / f"checkpoint-{step}"
            if best:
                self.find_best()
                self.state.save_to_json(str(written / "trainer_state.json"))
            # A pickle of the arguments, tokens included, that nothing here reads.
            (written / "training_args.bin").unlink(missing_ok=True)
            seal(written, self._run.checkpoints / f"step-{step}")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk said
            raise _cannot_save(self._run.checkpoints, error) from error
        finally:
            shutil.rmtree(self._saving_to, ignore_errors=True)
            self._saving_to = None
        self._forget_old()

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
            if isinstance(callback, EarlyStoppingCallback)
        ]
        return state.global_step >= state.max_steps or any(
            _evaluations_without_gain(state) >= wait for wait in patience
        )

    def take_from(self, checkpoint: Path) -> None:
        """Take the weights and the state of a checkpoint at which training had ended, without training any further."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
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


def _evaluations_without_gain(state: TrainerState) -> int:
    """What EarlyStoppingCallback had counted when `state` was saved."""
    saved = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    return int(saved.get("attributes", {}).get("early_stopping_patience_counter", 0))


def _cannot_save(folder: Path, error: Exception) -> TrainingError:
    free = shutil.disk_usage(folder).free / 1024**2
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    wrong = f"the checkpoint could not be written: {said} ({free:.0f} MiB free)"
    instead = "free some space, then go on with --resume: earlier checkpoints are whole"
    return TrainingError(Problem(Where(str(folder)), "train.save_strategy", wrong, instead))


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


def _not_a_number(wrong: str, step: int) -> TrainingError:
    instead = "lower train.learning_rate or raise the warm-up; earlier checkpoints are whole"
    return TrainingError(Problem(Where(f"training, step {step}"), "train.learning_rate", wrong, instead))


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
