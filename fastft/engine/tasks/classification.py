"""Texts and their labels: the trainer, its loss and its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from fastft.data.labels import Labels, targets
from fastft.data.rows import Rows
from fastft.engine.callbacks import EarlyStopping
from fastft.engine.model import Model, Tokenizer
from fastft.engine.tasks.classifier import collate, probabilities
from fastft.engine.tasks.shares import SharedRowsTrainer, items_of_all, real_rows, step_loss
from fastft.engine.trainer import Hooks, RowOrder, RunTrainer
from fastft.planning.plan import Plan
from fastft.recipe.model import ClassificationSection
from fastft.runs.classification import Classification, measure
from fastft.runs.directory import RunDir
from fastft.runs.held_out import MicroBatch


@dataclasses.dataclass(frozen=True)
class Task:
    """The labels, how they weigh in the loss, and where untrained tokens of a batch are filled up."""

    labels: Labels
    own: ClassificationSection
    pad_id: int


class LabelledRows(Dataset[dict[str, Any]]):
    """Prepared rows as token ids and the number of their label."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.targets = rows, targets(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._rows[index].input_ids.tolist(), "labels": self.targets[index]}


def class_weights(task: Task, trained: Sequence[int]) -> torch.Tensor:
    """The weight of each label in the loss, whose mean over the training rows is 1 when they are balanced."""
    names, asked = task.labels.names, task.own.class_weights
    if isinstance(asked, dict):
        return torch.tensor([asked.get(name, 1.0) for name in names])
    if asked == "none":
        return torch.ones(len(names))
    several = task.labels.several
    counts = [sum(t >> n & 1 if several else t == n for t in trained) for n in range(len(names))]
    return torch.tensor([len(trained) / (len(names) * max(1, count)) for count in counts])


def loss_sums(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The loss of each row (rows,): cross entropy, or with labels (rows, labels) the sum of binary ones."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    weights = weights.to(logits)
    if labels.dim() == 1:
        whole = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return whole * weights[labels]
    smooth = labels * (1 - smoothing) + smoothing / 2
    each = functional.binary_cross_entropy_with_logits(logits, smooth.to(logits), reduction="none")
    return (each * torch.where(labels > 0, weights, 1.0)).sum(dim=1)


class LabelTrainer(Trainer):
    """transformers' Trainer with the loss of labels, counts, and figures of each evaluation."""

    def __init__(self, *args: Any, task: Task, **kwargs: Any) -> None:
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples: list[torch.Tensor | int] = []
        self._task = task
        self.figures: Classification | None = None
        self._row_losses: list[float] = []
        super().__init__(*args, **kwargs)
        # The sum over all rows of an optimizer step divided by their number: 1 x 16 is then 16 x 1.
        self.model_accepts_loss_kwargs = True
        self._weights = class_weights(task, self.train_dataset.targets)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """The labels of an optimizer step on all ranks: one a row, or all of them with several."""
        return items_of_all(sum(real_rows(batch, batch["labels"].numel()) for batch in batch_samples))

    def _count(self, inputs: dict[str, Any]) -> None:
        self._real_tokens.append(inputs["attention_mask"].sum())
        self._examples.append(len(inputs["input_ids"]))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        labels = inputs["labels"]
        rows = loss_sums(logits, labels, self._weights, self._task.own.label_smoothing if model.training else 0.0)
        if num_items_in_batch is None:
            loss = rows.sum() / labels.numel()
        else:
            loss = step_loss(rows, inputs, num_items_in_batch, self.accelerator.num_processes)
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's, with the figures of the labels; rows come sorted by length."""
        kwargs["prediction_loss_only"] = False
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        order = by_length(self.eval_dataset)
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        logits, labels = torch.as_tensor(output.predictions)[place], torch.as_tensor(output.label_ids)[place]
        several = self._task.labels.several
        losses = loss_sums(logits, labels, self._weights.cpu(), 0.0) / (labels.shape[1] if several else 1)
        self._row_losses = losses.tolist()
        chances = probabilities(logits, several=several).tolist()
        names = self._task.labels.names
        self.figures = measure(names, self.eval_dataset.targets, chances, several=several)
        figures = {"eval_accuracy": self.figures.accuracy, "eval_f1": self.figures.macro_f1}
        output.metrics.update({"eval_loss": float(losses.double().mean()), **figures})
        return output

    @property
    def evaluated_batches(self) -> tuple[MicroBatch, ...]:
        """The loss of each row of the last evaluation, in the order of the rows."""
        return tuple(MicroBatch(loss, 1) for loss in self._row_losses)


class ClassificationTrainer(SharedRowsTrainer, LabelTrainer):
    """A LabelTrainer with the checkpoints, the order and the watch of every run."""

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return by_length(eval_dataset)


def by_length(rows: LabelledRows) -> list[int]:
    """The numbers of the rows, longest first, so that little is padding."""
    lengths = rows._rows.lengths
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def make_label_trainer(
    plan: Plan,
    model: Model,
    tokenizer: Tokenizer,
    train: Rows,
    held_out: Rows | None,
    task: Task,
    patience: int | None,
    run: RunDir,
    hooks: Hooks,
    step_rows: int,
) -> RunTrainer:
    """The trainer of a classification run, with the keywords of the plan."""
    several = len(task.labels.names) if task.labels.several else 0
    return ClassificationTrainer(
        model=model,
        args=TrainingArguments(**plan.calls.trainer.kwargs),
        train_dataset=LabelledRows(train),
        eval_dataset=None if held_out is None else LabelledRows(held_out),
        data_collator=lambda rows: collate(rows, task.pad_id, several),
        processing_class=tokenizer,
        callbacks=[] if patience is None else [EarlyStopping(patience)],
        run=run,
        hooks=hooks,
        order=RowOrder(list(train.lengths), plan.choices.group_by_length.value, step_rows, train.where),
        task=task,
    )
