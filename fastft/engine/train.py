"""One training run: the model of the plan, the prepared rows, the trainer, the evaluations before and after."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets.fingerprint import generate_random_fingerprint
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from fastft.data.cache import as_arrow
from fastft.data.general import GENERAL_TOKENS
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt
from fastft.data.rows import Rows
from fastft.engine.callbacks import EarlyStopping, Watch
from fastft.engine.chosen_optimizer import trust_state_classes
from fastft.engine.evaluate import answer
from fastft.engine.memory import peak_memory
from fastft.engine.model import Model, Tokenizer
from fastft.engine.random_state import RandomState
from fastft.engine.ranks import any_rank, refuse_another_group, wait_for_all
from fastft.engine.tasks.classification import ClassificationTrainer, Task, make_label_trainer
from fastft.engine.tasks.classifier import pad_id_of
from fastft.engine.tasks.preference import Preference, PreferenceTrainer, make_preference_trainer
from fastft.engine.trainer import Hooks, RowOrder, RunTrainer, SftTrainer
from fastft.errors import OutOfMemoryError, Problem, TrainingError, Where
from fastft.planning.plan import Plan
from fastft.planning.schedule import rows_per_step
from fastft.recipe.model import Recipe
from fastft.runs.directory import RunDir
from fastft.runs.held_out import Answers, Evaluation, MicroBatch, Untrained
from fastft.runs.noise import noise_in_words
from fastft.runs.result import Trained

# How libraries report that memory ran out: torch, CUDA and Triton; cuBLAS; torch on a processor; the C library; oneDNN.
OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "Cannot allocate memory",
    "could not create a primitive",
)


@dataclass(frozen=True)
class Material:
    """What is trained and evaluated: rows as they will be seen, and prompts to be answered before and after.

    `general`: the questions of the regression set.
    """

    train: Rows
    eval: Rows | None
    prompts: Sequence[Prompt]
    stop_ids: Sequence[int]
    max_new_tokens: int
    early_stopping_patience: int | None
    step_rows: int = 1
    stop_on_divergence: str = "blow-up"
    task: Task | Preference | None = None
    """Of a classification or of preferences; None where answers are learnt."""
    general: Sequence[Prompt] = ()


def material_of(recipe: Recipe, rows: Prepared, plan: Plan, tokenizer: Tokenizer, processes: int) -> Material:
    """All rows of a recipe and its task, without prompts."""
    own, longest = recipe.preferred, recipe.model.max_seq_length
    task: Task | Preference | None = None if own is None else Preference(own, longest, rows.folder)
    if rows.labels is not None:
        task = Task(rows.labels, recipe.classification, pad_id_of(tokenizer))
    return Material(
        train=rows.train.rows,
        eval=None if rows.eval is None else rows.eval.rows,
        prompts=(),
        stop_ids=(),
        max_new_tokens=recipe.eval.max_new_tokens,
        early_stopping_patience=recipe.train.early_stopping_patience,
        stop_on_divergence=recipe.train.stop_on_divergence,
        task=task,
        step_rows=rows_per_step(
            recipe.train,
            plan.schedule.per_device_train_batch_size,
            plan.schedule.gradient_accumulation_steps or 1,
            processes,
            packing=plan.choices.packing.value,
        ),
    )


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is how a library says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def train(
    plan: Plan,
    model: Model,
    tokenizer: Tokenizer,
    material: Material,
    run: RunDir,
    hooks: Hooks,
    checkpoint: Path | None,
) -> Trained:
    """Train, from `checkpoint` or from the start, and save the trained weights to the run's `adapter` folder.

    Raises:
        TrainingError: the loss became no number, or a library failed.
        OutOfMemoryError: memory ran out; what was trained since the last checkpoint is lost.
    """
    try:
        trainer = make_trainer(plan, model, tokenizer, material, run, hooks)
        # Training begins with the same random numbers (dropout), whether this attempt measures the untrained model or
        # an earlier one did, which was killed before its first checkpoint.
        begin = RandomState.now()

        def measure() -> None:
            before = _before(trainer, tokenizer, material, run, hooks)
            begin.restore()
            trainer.add_callback(Watch(trainer, before.eval_loss, material.stop_on_divergence, hooks.warned))

        trainer.before_training(measure)
        if checkpoint is not None:
            checkpoint = trainer.completed(checkpoint)
        if checkpoint is not None and trainer.has_ended_at(checkpoint) and not trainer.is_sharded:
            trainer.take_from(checkpoint)
        else:
            hooks.stage(f"training: {trainer_steps(plan)} optimizer steps")
            trainer.train_from(checkpoint)
        before = _before(trainer, tokenizer, material, run, hooks)
        if trainer.stopped:
            trainer.reporters.close()
            return _trained(trainer, before, Evaluation(None, None), finished=False)
        trainer.refuse_if_poisoned()
        trainer.refuse_if_ranks_differ()
        scale, step_examples = trainer.noise_scale, plan.schedule.examples_per_optimizer_step
        if scale is not None and step_examples is not None:
            hooks.stage(noise_in_words(scale, step_examples))
        after = _evaluate(trainer, tokenizer, material, hooks, "after training")
        trainer.reporters.close()
        return _trained(trainer, before, after, finished=True)
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        traceback.print_exc()
        said = " ".join(str(error).split())[:200]
    # Raised out here, without its cause: that would keep the frames, and with them the tensors, of what failed.
    raise _out_of_memory(plan, said)


def _before(trainer: RunTrainer, tokenizer: Tokenizer, material: Material, run: RunDir, hooks: Hooks) -> Evaluation:
    """What the untrained model does with the held-out rows: measured once a run, and kept for its later attempts."""
    known = run.read(Untrained)
    wait_for_all()  # before rank 0 writes one
    if known is not None:
        return known
    measured = _evaluate(trainer, tokenizer, material, hooks, "before training")
    if material.prompts:
        # Generation switched kernels; training must not inherit its caches.
        trainer.model.train()
    untrained = Untrained(**vars(measured))
    if hooks.ranks.world.is_first:
        run.write(untrained)
    wait_for_all()
    return untrained


def trainer_steps(plan: Plan) -> str:
    """The planned number of optimizer steps in words."""
    return str(plan.schedule.optimizer_steps or "?")


def make_trainer(
    plan: Plan,
    model: Model,
    tokenizer: Tokenizer,
    material: Material,
    run: RunDir,
    hooks: Hooks,
) -> RunTrainer:
    """The trainer of a run, with the keywords of the plan.

    Raises:
        TrainingError: the trainer would do something else than the plan says.
    """
    patience, task = material.early_stopping_patience, material.task
    if task is not None:
        given, rows = (plan, model, tokenizer, material.train, material.eval), material.step_rows
        if isinstance(task, Task):
            made = make_label_trainer(*given, task, patience, run, hooks, rows)
        else:
            made = make_preference_trainer(*given, task, patience, run, hooks, rows)
        return _as_planned(plan, made)
    args = SFTConfig(**copy.deepcopy(dict(plan.calls.trainer.kwargs)))
    if args.device.type == "cpu":
        # Unsloth 2026.10 takes bitsandbytes' optimizers for what only a GPU can do (unsloth_zoo/cpu/trainer.py).
        args.optim = OptimizerNames(plan.calls.trainer.kwargs.get("optim", args.optim))
    try:
        trainer = SftTrainer(
            model=model,
            args=args,
            train_dataset=_dataset(material.train),
            eval_dataset=None if material.eval is None else _dataset(material.eval),
            processing_class=tokenizer,
            callbacks=[] if patience is None else [EarlyStopping(patience)],
            run=run,
            hooks=hooks,
            order=RowOrder(
                None if plan.choices.packing.value else list(material.train.lengths),
                plan.choices.group_by_length.value,
                material.step_rows,
                material.train.where,
                flattened=plan.calls.trainer.kwargs.get("padding_free", False),
            ),
        )
    except ValueError as error:
        if "Untrained tokens" not in str(error):  # unsloth_zoo/tokenizer_utils.py, fix_untrained_tokens
            raise
        wrong = "the chat template has tokens that this base model was never trained on"
        instead = 'take the Instruct model, or write lora.modules_to_save = ["embed_tokens", "lm_head"]'
        raise TrainingError(Problem(Where(plan.recipe), "model.id", wrong, instead)) from error
    refuse_another_group(hooks.ranks.world)
    return _as_planned(plan, trainer)


# What upstream writes in other words: no row is cut or prepared any more, TF32 means nothing to a processor.
_NOT_COMPARED = ("max_length", "dataset_kwargs", "report_to", "deepspeed", "tf32")


def _as_planned(plan: Plan, trainer: RunTrainer) -> RunTrainer:
    """The trainer with the optimizer of the plan.

    Raises:
        TrainingError: the trainer changed what the plan says.
    """
    _refuse_another_run(plan, trainer)
    trainer.calls = plan.calls
    trust_state_classes(plan.choices.optim.value)
    return trainer


def _refuse_another_run(plan: Plan, trainer: RunTrainer) -> None:
    """Stop when the trainer changed what the plan says: Unsloth switches off what it cannot do, and only prints it.

    Raises:
        TrainingError: an argument of the trainer is not that of the plan.
    """
    compared = [(name, value, getattr(trainer.args, name)) for name, value in plan.calls.trainer.kwargs.items()]
    # The arguments say whether, this attribute of Unsloth's adapters says how.
    checkpointing = plan.choices.gradient_checkpointing.value
    real_checkpointing = getattr(trainer.model, "_unsloth_gradient_checkpointing", checkpointing)
    for name, planned, real in [*compared, ("gradient_checkpointing", checkpointing, real_checkpointing)]:
        if real != planned and name not in _NOT_COMPARED:
            wrong = f"the plan says {planned}, the trainer made {real} of it"
            instead = 'see the log of this attempt for its reason; engine = "transformers" does as the plan says'
            raise TrainingError(Problem(Where(plan.recipe), f"train.{name}", wrong, instead))


def _dataset(rows: Rows) -> datasets.Dataset:
    """The rows as TRL takes prepared data: `input_ids` and `labels`, -100 where there is no loss. Copies nothing."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for block in rows.blocks:
        ends = as_arrow(block.ends)
        for name, values in (("input_ids", block.ids), ("labels", block.labels)):
            columns[name].append(pyarrow.ListArray.from_arrays(ends, as_arrow(values)))
    table = pyarrow.table({name: pyarrow.chunked_array(parts) for name, parts in columns.items()})
    # Without a name `datasets` makes one of the whole table, pickled: 46 bytes a token were measured (4.8.5).
    dataset = datasets.Dataset(table, fingerprint=generate_random_fingerprint())
    # Or Unsloth takes the rows for uncut and pads their batches (unsloth/models/rl.py, _TRUNCATION_ATTESTATION_ATTR).
    dataset._unsloth_truncated_to = max(rows.lengths)
    return dataset


def _evaluate(trainer: RunTrainer, tokenizer: Tokenizer, material: Material, hooks: Hooks, when: str) -> Evaluation:
    """Loss and answers on the held-out rows, as far as the recipe asks for them."""
    loss = answers = general = None
    batches: tuple[MicroBatch, ...] = ()
    if material.eval is not None:
        hooks.stage(f"evaluating {len(material.eval)} held-out rows {when}")
        loss = float(trainer.evaluate()["eval_loss"])
        batches = trainer.evaluated_batches

    def stop() -> bool:
        asked = any_rank(hooks.stop_asked()) if trainer.splits_weights else hooks.stop_asked()
        return asked and trainer.can_end_here()

    def answered(prompts: Sequence[Prompt], limit: int, what: str) -> Answers | None:
        hooks.stage(f"answering {len(prompts)} {what} {when}")

        def own() -> Answers:
            return answer(trainer.model, tokenizer, prompts, material.stop_ids, limit, stop)

        # Of a split model each rank computes its part of each answer.
        made = own() if trainer.splits_weights else hooks.ranks.first(own)
        hooks.ranks.share(f"answered {what} {when}", lambda: True)
        return made

    if material.prompts:
        answers = answered(material.prompts, material.max_new_tokens, "held-out prompts")
        if answers is not None and hooks.ranks.world.is_first:
            trainer.reporters.report({"eval_exact_match": answers.exact / len(material.prompts)})
        if material.general:
            general = answered(material.general, GENERAL_TOKENS, "general questions")
    classes = trainer.figures if isinstance(trainer, ClassificationTrainer) and loss is not None else None
    judged = trainer.judged if isinstance(trainer, PreferenceTrainer) else {}
    return Evaluation(loss, answers, batches, classes=classes, general=general, judged=judged)


def _trained(trainer: RunTrainer, before: Evaluation, after: Evaluation, *, finished: bool) -> Trained:
    return Trained(
        finished=finished,
        steps=trainer.state.global_step,
        train_loss=_mean_loss(trainer.state.log_history),
        before=before,
        after=after,
        peak_memory_bytes=peak_memory(),
        best_checkpoint=trainer.state.best_model_checkpoint,
    )


def _mean_loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean loss over all steps of a run, attempts before this one included; each line is a mean since the last.

    The trainer's own figure divides the losses of this attempt by the steps of all.
    """
    total, step = 0.0, 0
    for line in history:
        if "loss" in line:
            total, step = total + line["loss"] * (line["step"] - step), line["step"]
    return total / step if step else None


def _out_of_memory(plan: Plan, said: str) -> OutOfMemoryError:
    batch, load = plan.schedule.per_device_train_batch_size, plan.calls.load.kwargs
    lower = ["a smaller max_seq_length"]
    if not load.get("load_in_4bit") and "quantization_config" not in load:
        lower.append("load_in_4bit = true")
    if not plan.choices.recomputes:
        lower.append("gradient_checkpointing = true")
    instead = "write " + " or ".join([*lower, "a smaller model"])
    if batch > 1:
        instead = f"write per_device_train_batch_size = {batch // 2} and twice the accumulation: the same step"
    wrong = f"training ran out of memory: {said}"
    return OutOfMemoryError(
        Problem(Where(plan.recipe), "train.per_device_train_batch_size", wrong, instead, f"{batch}")
    )
