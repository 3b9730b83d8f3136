"""The checkpoints of a run: written where nobody reads, sealed under their final names, kept up to a limit."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from fastft.engine import fsdp
from fastft.engine.callbacks import EarlyStopping, StepReporter, evaluations_without_gain
from fastft.engine.noise_scale import NoiseMeter
from fastft.engine.ranks import mean, sums, total, wait_for_all
from fastft.engine.sharding import whole_weights
from fastft.errors import Problem, TrainingError, Where
from fastft.files.atomic import free_bytes
from fastft.files.records import read_record, write_record
from fastft.files.seal import seal
from fastft.runs.checkpoints import STATE, checkpoints, evaluations_at
from fastft.runs.directory import RunDir
from fastft.runs.history import keep_history
from fastft.runs.ranks import Ranks


@dataclass(frozen=True)
class Unlogged:
    """What the steps since the last line of metrics add up to: part of a checkpoint, for lines that do not change.

    `loss`: the trainer's sum over these steps; `last_step`: the step of that line; `seconds` in optimizer steps;
    `rewards`: sums of preferences, see `take_rewards`. `computed_tokens`: with padding; `clipped`: how many steps had
    their gradient clipped; `noise`: see `NoiseMeter.steps`.
    """

    FILE: ClassVar[str] = "unlogged.json"
    SCHEMA: ClassVar[int] = 1

    loss: float
    last_step: int
    tokens: int
    examples: int
    seconds: float
    rewards: tuple[float, ...] = ()
    computed_tokens: int = 0
    clipped: int = 0
    noise: tuple[tuple[float, float], ...] = ()


class CheckpointingTrainer(Trainer):
    """A trainer that writes sealed `step-N` checkpoints into a run directory, rank 0 alone, and goes on from one."""

    _reporter: StepReporter

    def __init__(self, *args: Any, run: RunDir, ranks: Ranks, before_save: Callable[[], None], **kwargs: Any) -> None:
        self._run = run
        self._ranks = ranks
        self._before_save = before_save
        self._checkpoint: Path | None = None
        self._saving_to: Path | None = None
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples: list[torch.Tensor | int] = []
        self._computed_tokens = 0
        self._rewards: list[torch.Tensor] = []
        self._norms: list[torch.Tensor | float] = []
        self._clipped = 0
        self._noise: NoiseMeter | None = None
        super().__init__(*args, **kwargs)

    @property
    def is_sharded(self) -> bool:
        """Whether ranks share more than rows: the model can compute only once the trainer has prepared it."""
        return bool(self.is_deepspeed_enabled)

    def take_counts(self) -> tuple[int, int, int]:
        """Real tokens, examples and computed tokens, padding with them, of all ranks since the last call."""
        counts = self._counts()
        self._real_tokens, self._examples, self._computed_tokens = [], [], 0
        return counts

    def _counts(self) -> tuple[int, int, int]:
        tokens, examples = sum(int(count) for count in self._real_tokens), sum(int(count) for count in self._examples)
        tokens, examples, computed = total((tokens, examples, self._computed_tokens))
        return tokens, examples, computed

    def take_clipped(self) -> int:
        """How many optimizer steps since the last call had their gradient clipped."""
        clipped = self._clipped_steps()
        self._norms, self._clipped = [], 0
        return clipped

    def _clipped_steps(self) -> int:
        most = self.args.max_grad_norm
        return self._clipped + sum(float(norm) > most for norm in self._norms) if most else 0

    def take_rewards(self) -> dict[str, float]:
        """The mean rewards of preferences since the last call, and how often they are on the right side; else nothing.

        From sums: of chosen rewards, their number, of rejected ones, their number, of margins, of right ones, of rows.
        """
        if not self._rewards:
            return {}
        chosen, of_chosen, rejected, of_rejected, margin, right, rows = self._reward_sums()
        self._rewards = []
        means = {"chosen": (chosen, of_chosen), "rejected": (rejected, of_rejected)}
        means |= {"margin": (margin, rows), "accuracy": (right, rows)}
        return {name: total / count for name, (total, count) in means.items() if count}

    def _reward_sums(self) -> tuple[float, ...]:
        return sums(tuple(torch.stack(self._rewards).sum(dim=0).tolist())) if self._rewards else ()

    def restore_unlogged(self) -> None:
        """Put back what the steps since the last line had added up to when the checkpoint was written."""
        unlogged = None if self._checkpoint is None else read_record(self._checkpoint / Unlogged.FILE, Unlogged)
        if unlogged is None:
            return
        self._tr_loss = torch.tensor(unlogged.loss, device=self.args.device)
        self._globalstep_last_logged = unlogged.last_step
        if self._ranks.world.is_first:  # the counts are of all ranks, the loss is their mean
            self._real_tokens, self._examples = [unlogged.tokens], [unlogged.examples]
            self._computed_tokens = unlogged.computed_tokens
        self._clipped = unlogged.clipped
        if self._noise is not None:
            self._noise.steps.extend(unlogged.noise)
        rewards = torch.tensor(unlogged.rewards, dtype=torch.double)
        if not self._ranks.world.is_first:
            rewards = torch.zeros_like(rewards)
        self._reporter.seconds = unlogged.seconds
        self._rewards = [rewards] if unlogged.rewards else []

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the trainer's; of a model that FSDP2 splits the trained weights, gathered from all ranks."""
        if not fsdp.is_split(self.model):
            super().save_model(output_dir, _internal_call)
            return
        weights = whole_weights(self.model, trained_alone=isinstance(self.model, PeftModel))
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not fsdp.is_split(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if fsdp.is_split(self.model):
            fsdp.load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if fsdp.is_split(self.model):
            fsdp.load_weights(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not fsdp.is_split(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        fsdp.load_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(schedule)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in checkpoints: a card is written with the weights that are handed over."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the trainer write into a folder that nobody reads, then seal it under its final name."""
        if self._ranks.world.is_first:
            self._refuse_if_disk_is_short()
            self._before_save()
        step, best = self.state.global_step, self.state.best_global_step
        tokens, examples, computed = self._counts()
        unlogged = Unlogged(
            mean(float(self._tr_loss)),
            self._globalstep_last_logged,
            tokens,
            examples,
            self._reporter.seconds,
            self._reward_sums(),
            computed,
            self._clipped_steps(),
            () if self._noise is None else tuple(self._noise.read()),
        )
        self._saving_to = self._run.checkpoints / ".partial"
        if self._ranks.world.is_first:
            shutil.rmtree(self._saving_to, ignore_errors=True)
        wait_for_all()
        try:
            super()._save_checkpoint(model, trial)
            wait_for_all()
            if self._ranks.world.is_first:
                self._seal(self._saving_to / f"checkpoint-{step}", unlogged, best)
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
        # A pickle of the arguments, tokens included, that nothing here reads; DeepSpeed's programs.
        for path in (written / "training_args.bin", *written.glob("*.py")):
            path.unlink(missing_ok=True)
        seal(written, self._run.checkpoints / f"step-{self.state.global_step}")

    def _refuse_if_disk_is_short(self) -> None:
        """Stop before a checkpoint that does not fit: a full disk makes torch and safetensors fail in other words.

        Raises:
            TrainingError: fewer bytes are free than the trained weights and the optimizer's state take.
        """
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        state = [value for kept in self.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
        shares = self._ranks.world.size if self.is_sharded else 1  # this rank has its own part alone
        needed = sum(weight.nbytes for weight in trained) + shares * sum(tensor.nbytes for tensor in state)
        free = free_bytes(self._run.checkpoints)
        if free < needed:
            wrong = f"the disk is full: a checkpoint needs {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
            raise _cannot_save(self._run.checkpoints, wrong)

    def completed(self, checkpoint: Path) -> Path:
        """The checkpoint as an undisturbed run would have written it, evaluated if an evaluation was due.

        A stop or a kill can leave that evaluation out; then it is made here, and a folder beside `checkpoint` links to
        its files and holds what the evaluation changes: metrics, best checkpoint, patience used up, random numbers.
        """
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if self.is_sharded or not self._is_evaluation_due(state) or evaluations_at(checkpoint, state.global_step):
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


def _cannot_save(folder: Path, wrong: str) -> TrainingError:
    instead = "free some space, then run the same command: it continues from the newest checkpoint"
    return TrainingError(Problem(Where(str(folder)), "train.save_strategy", wrong, instead))
