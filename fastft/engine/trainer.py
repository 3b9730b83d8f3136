"""TRL's SFTTrainer with what a run needs besides: sealed checkpoints, repeatable order, true counts, a stop at NaN."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import (
    Trainer,
    TrainerState,
)
from trl import SFTTrainer

from fastft.data.encode import NO_LOSS
from fastft.engine.callbacks import (
    BestCheckpoint,
    EarlyStopping,
    NumberGuard,
    StepReporter,
    StopOnRequest,
    evaluations_without_gain,
)
from fastft.engine.sampler import EpochSampler
from fastft.engine_choice import selected
from fastft.errors import Problem, TrainingError, Where
from fastft.files.seal import seal
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from fastft.runs.metrics import StepMetrics


@dataclass(frozen=True)
class Hooks:
    """Where news goes, and whether somebody asked to stop."""

    stage: Callable[[str], None]
    step: Callable[[StepMetrics], None]
    evaluated: Callable[[Mapping[str, Any]], None]
    stop_asked: Callable[[], bool]


class RunTrainer(SFTTrainer):
    """An SFTTrainer that writes sealed `step-N` checkpoints into a run directory and counts what it really trained."""

    def __init__(self, *args: Any, run: RunDir, lengths: list[int] | None, hooks: Hooks, **kwargs: Any) -> None:
        self._run = run
        self._lengths = lengths
        self._saving_to: Path | None = None
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples: list[torch.Tensor | int] = []
        self._eval_losses: list[torch.Tensor] = []
        self._loss: torch.Tensor | None = None
        self._grad_norm: torch.Tensor | float | None = None
        super().__init__(*args, **kwargs)
        # TRL 1.15 computes its loss in a Triton kernel alone, which needs a GPU; Unsloth brings a loss of its own.
        self._needs_plain_loss = selected() == "transformers" and self.args.device.type == "cpu"
        # Unsloth's trainer for GPUs makes no logits, and so none of the accuracies that TRL reports.
        best = self.args.metric_for_best_model
        self._needs_accuracy = best == "eval_mean_token_accuracy" and SFTTrainer.__name__ == "UnslothSFTTrainer"
        self._stop = StopOnRequest(self, hooks.stop_asked)
        for callback in (
            StepReporter(self, hooks.step, hooks.evaluated),
            NumberGuard(self),
            self._stop,
            BestCheckpoint(self),
        ):
            self.add_callback(callback)

    @property
    def stopped(self) -> bool:
        """Whether training ended because it was asked to."""
        return self._stop.stopped

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(len(dataset), self.args.seed, self._lengths, batch)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        # Sums stay on the device until a line is logged: reading them here would make the GPU wait.
        self._real_tokens.append(inputs["input_ids"].numel() if mask is None else mask.sum())
        positions, lengths = inputs.get("position_ids"), inputs.get("packed_seq_lengths")
        if lengths is not None:
            self._examples.append(lengths.numel())
        else:
            self._examples.append(len(inputs["input_ids"]) if positions is None else (positions == 0).sum())
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self._needs_plain_loss:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._needs_accuracy and not model.training:
                with torch.no_grad():
                    outputs = model(**{key: value for key, value in inputs.items() if key != "labels"}, use_cache=False)
                self._note_accuracy(outputs.logits, inputs["labels"])
            return result
        inputs["use_cache"] = False
        loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
        if not model.training:
            self._note_accuracy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def _note_accuracy(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        trained = labels[:, 1:] != NO_LOSS
        right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) & trained
        self._metrics["eval"]["mean_token_accuracy"].append((right.sum() / trained.sum().clamp(min=1)).item())

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens = (inputs["labels"][:, 1:] != NO_LOSS).sum()
        result = super().prediction_step(model, inputs, *args, **kwargs)
        self._eval_losses.append(torch.stack([result[0].double() * tokens, tokens.double()]))
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's, with the loss as a mean over all trained tokens.

        Its own is the mean of the micro-batches' means, which changes with the batch size and with packing.
        """
        self._eval_losses = []
        output = super().evaluation_loop(*args, **kwargs)
        total, tokens = self.accelerator.reduce(torch.stack(self._eval_losses).sum(dim=0)).tolist()
        output.metrics["eval_loss"] = total / tokens
        return output

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
        tokens, examples = (sum(int(count) for count in counts) for counts in (self._real_tokens, self._examples))
        self._real_tokens, self._examples = [], []
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
            if isinstance(callback, EarlyStopping)
        ]
        return state.global_step >= state.max_steps or any(evaluations_without_gain(state) >= wait for wait in patience)

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


def _cannot_save(folder: Path, error: Exception) -> TrainingError:
    free = shutil.disk_usage(folder).free / 1024**2
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    wrong = f"the checkpoint could not be written: {said} ({free:.0f} MiB free)"
    instead = "free some space, then go on with --resume: earlier checkpoints are whole"
    return TrainingError(Problem(Where(str(folder)), "train.save_strategy", wrong, instead))


def _not_a_number(wrong: str, step: int) -> TrainingError:
    instead = "lower train.learning_rate or raise the warm-up; earlier checkpoints are whole"
    return TrainingError(Problem(Where(f"training, step {step}"), "train.learning_rate", wrong, instead))
