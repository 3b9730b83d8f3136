"""Texts and their labels: the trainer, its loss and figures, predictions, and merged weights that were proven."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from fastft.data.labels import Labels, targets
from fastft.data.rows import Rows
from fastft.engine.callbacks import EarlyStopping
from fastft.engine.model import Model, Tokenizer
from fastft.engine.trainer import Hooks, RowOrder, RunTrainer
from fastft.errors import ExportError, Problem, Where
from fastft.exports.record import RecordedArtefact, add_exports
from fastft.files.seal import sealed_folder
from fastft.planning.plan import Plan
from fastft.recipe.model import ClassificationSection
from fastft.runs.classification import Classification, Classifier, measure, predicted
from fastft.runs.directory import RunDir
from fastft.runs.held_out import MicroBatch

# Rows whose predictions an export must repeat, and how far apart two labels must be so that rounding swaps none.
COMPARED, NEAR_TIE = 512, 0.02


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


def collate(rows: Sequence[dict[str, Any]], pad_id: int, several: int = 0) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids and attention_mask (rows, longest); labels (rows,), or (rows, several)."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [pad_id] * (width - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if "labels" in rows[0]:
        given = torch.tensor([row["labels"] for row in rows])
        batch["labels"] = (given[:, None] >> torch.arange(several) & 1).float() if several else given
    return batch


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

    def _count(self, inputs: dict[str, Any]) -> None:
        self._real_tokens.append(inputs["attention_mask"].sum())
        self._examples.append(len(inputs["input_ids"]))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        labels = inputs["labels"]
        rows = loss_sums(logits, labels, self._weights, self._task.own.label_smoothing if model.training else 0.0)
        loss = rows.sum() / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
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


class ClassificationTrainer(RunTrainer, LabelTrainer):
    """A LabelTrainer with the checkpoints, the order and the watch of every run."""

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return by_length(eval_dataset)


def by_length(rows: LabelledRows) -> list[int]:
    """The numbers of the rows, longest first, so that little is padding."""
    lengths = rows._rows.lengths
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def probabilities(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    """The probability of each label (rows, labels)."""
    return logits.float().sigmoid() if several else logits.float().softmax(dim=-1)


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
        order=RowOrder(list(train.lengths), plan.choices.group_by_length.value, 1, train.where),
        task=task,
    )


def pad_id_of(tokenizer: Tokenizer) -> int:
    """The token that fills up batches: the tokenizer's own, else its end token, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def classify(
    model: Model, ids: Sequence[Sequence[int]], pad_id: int, batch: int, *, several: bool, sort: bool = True
) -> list[list[float]]:
    """The probabilities of each label for each text, in the order of `ids`; batches are of like length."""
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index])) if sort else list(range(len(ids)))
    found: list[list[float]] = [[] for _ in ids]
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = collate([{"input_ids": list(ids[index])} for index in chosen], pad_id)
            with torch.inference_mode():
                logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
            for index, row in zip(chosen, probabilities(logits, several=several).tolist(), strict=True):
                found[index] = row
    finally:
        model.train(was_training)
    return found


def load_classifier(base: Path, adapter: Path | None, known: Classifier) -> tuple[Model, int]:
    """A trained classifier and the token that fills up its batches: base and adapter, or a whole model in `base`."""
    tokenizer = AutoTokenizer.from_pretrained(adapter or base)
    pad = pad_id_of(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(known.labels),
        pad_token_id=pad,
        dtype="auto" if torch.cuda.is_available() else torch.float32,
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return Model(model.to("cuda" if torch.cuda.is_available() else "cpu").eval()), pad


def predict(
    base: Path, adapter: Path | None, known: Classifier, windows: Iterator[list[Sequence[int]]], batch: int
) -> Iterator[list[list[float]]]:
    """The probabilities of each window of texts, in its order."""
    model, pad = load_classifier(base, adapter, known)
    for ids in windows:
        yield classify(model, ids, pad, batch, several=known.several)


def export_merged(
    model: Model, tokenizer: Tokenizer, rows: Rows, known: Classifier, run: RunDir, say: Callable[[str], None]
) -> tuple[Path, int]:
    """Merge the adapter into the base, save it in 16 bits, reload it, and prove that it predicts the same.

    Returns its folder and bytes.

    Raises:
        ExportError: the reloaded model gives a row another label, near ties aside.
    """
    began, final = time.monotonic(), run.exports / "merged_16bit"
    ids = [rows[index].input_ids.tolist() for index in range(min(COMPARED, len(rows)))]
    pad = pad_id_of(tokenizer)
    trained = classify(model, ids, pad, 16, several=known.several)
    merged = model.merge_and_unload()
    half = torch.bfloat16 if merged.dtype == torch.bfloat16 else torch.float16
    with sealed_folder(final) as stage:
        merged.to(half).save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        del merged
        again, _ = load_classifier(stage, None, known)
        written = classify(again, ids, pad, 16, several=known.several)
        other = [
            number
            for number, (one, two) in enumerate(zip(trained, written, strict=True))
            if predicted(one, several=known.several) != predicted(two, several=known.several)
            and max(abs(a - b) for a, b in zip(one, two, strict=True)) > NEAR_TIE
        ]
        if other:
            wrong = f"the merged model gives {len(other)} of {len(ids)} rows another label than the trained one"
            instead = "keep the adapter; see the log of this attempt"
            raise ExportError(Problem(Where(str(final)), "merged_16bit", wrong, instead))
    far = max(abs(a - b) for one, two in zip(trained, written, strict=True) for a, b in zip(one, two, strict=True))
    size = sum(path.stat().st_size for path in final.glob("*.safetensors"))
    note = f"reloaded: the same label for {len(ids)} rows, probabilities at most {far:.1e} apart"
    say(f"merged_16bit proven: {note}")
    add_exports(run.exports, [RecordedArtefact("merged_16bit", final.name, size, time.monotonic() - began, (note,))])
    return final, size


def write_label_names(folder: Path, names: Sequence[str]) -> None:
    """Write labels.json: the name of each number, for programs that load the adapter."""
    (folder / "labels.json").write_text(json.dumps(dict(enumerate(names)), ensure_ascii=False) + "\n", encoding="utf-8")
