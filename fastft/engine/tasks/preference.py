"""Preferences between answers: their log-probabilities, those of the model before training, and the trainer."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from fastft.data.encode import NO_LOSS, carries_loss
from fastft.data.rows import Rows
from fastft.engine.callbacks import EarlyStopping
from fastft.engine.model import Model, Tokenizer
from fastft.engine.output_layer import next_labels, only_at, output_layer
from fastft.engine.random_state import RandomState
from fastft.engine.ranks import mean_of_all
from fastft.engine.tasks.classifier import pad_id_of
from fastft.engine.tasks.preference_losses import Judged, losses
from fastft.engine.tasks.shares import SharedRowsTrainer, items_of_all, real_rows, step_loss
from fastft.engine.trainer import Hooks, RowOrder, RunTrainer
from fastft.files.seal import damage, sealed_folder
from fastft.planning.plan import Plan
from fastft.probe.hashes import sha256_of_files
from fastft.recipe.model import PreferenceSection
from fastft.runs.directory import RunDir
from fastft.runs.held_out import MicroBatch

REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Preference:
    """What is learnt of preferences, and where the log-probabilities of the model before training are kept.

    `kept_in`: the folder of the prepared rows; None without a cache, then they are computed at each start.
    """

    own: PreferenceSection
    max_seq_length: int
    kept_in: Path | None


# The token ids of a text, and its labels.
Text = tuple["array[int]", "array[int]"]


class PreferenceRows(Dataset[dict[str, Any]]):
    """Prepared rows as two texts each: chosen and rejected, or with verdicts an answer and one to another question."""

    def __init__(self, rows: Rows, task: Preference) -> None:
        self._rows, self._task = rows, task
        self.reference: torch.Tensor | None = None
        """(rows, 2) the log-probabilities of both texts before training, once they are known."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        reference = None if self.reference is None else self.reference[index]
        if self._task.own.in_pairs:
            texts = [(text.input_ids, text.labels) for text in row.texts]
            good = True
        else:
            texts = [(row.input_ids, row.labels), self._with_another_answer(index)]
            good = row.rejected_from is None
        return {"texts": texts, "row": index, "good": good, "reference": reference}

    def _with_another_answer(self, index: int) -> Text:
        """The question of one row and the answer of the next, for the reference point of KTO (section 3.2)."""
        row, other = self._rows[index], self._rows[(index + 1) % len(self)]
        start, begin = (carries_loss(one.labels).find(1) for one in (row, other))
        ids = (row.input_ids[:start] + other.input_ids[begin:])[: self._task.max_seq_length]
        labels = (row.labels[:start] + other.labels[begin:])[: self._task.max_seq_length]
        return ids, labels

    def by_width(self) -> list[int]:
        """The numbers of the rows, widest first, so that little is padding."""
        widths = self._rows.widths
        return sorted(range(len(widths)), key=lambda index: -widths[index])


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right: first all first texts, then all second ones.

    input_ids, attention_mask, labels: (2 x rows, longest); rows, good: (rows,); reference: (rows, 2), where known.
    """
    texts = [row["texts"][side] for side in (0, 1) for row in rows]
    width = max(len(ids) for ids, _ in texts)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (width - len(values))]

    batch = {
        "input_ids": torch.tensor([padded(ids, pad_id) for ids, _ in texts]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in texts]),
        "labels": torch.tensor([padded(labels, NO_LOSS) for _, labels in texts]),
        "rows": torch.tensor([row["row"] for row in rows]),
        "good": torch.tensor([row["good"] for row in rows]),
    }
    if rows[0]["reference"] is not None:
        batch["reference"] = torch.stack([row["reference"] for row in rows])
    return batch


def log_probabilities(
    model: Any, layer: torch.nn.Module | None, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """((texts,) the log-probability of each text's answer, (texts,) its tokens); `layer`: see `output_layer`."""
    wanted = next_labels(inputs["labels"])
    places = wanted != NO_LOSS
    with only_at(layer, places) if layer is not None else contextlib.nullcontext():
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        logits = model(**asked, use_cache=False).logits
    logits = logits[0] if layer is not None else logits[places]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    each = -functional.cross_entropy(logits, wanted[places], reduction="none")
    text = places.nonzero()[:, 0]
    sums = torch.zeros(len(wanted), dtype=each.dtype, device=each.device).index_add(0, text, each)
    return sums, places.sum(dim=1)


class JudgingTrainer(Trainer):
    """transformers' Trainer with the losses of preferences, and figures of each step and evaluation."""

    def __init__(self, *args: Any, task: Preference, **kwargs: Any) -> None:
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples: list[torch.Tensor | int] = []
        self._own = task.own
        self._drift: torch.Tensor | float = 0.0
        self.judged: dict[str, tuple[float, ...]] = {}
        """The figures of each held-out row, by the name of their measure, in the order of the rows."""
        self._row_losses: list[float] = []
        super().__init__(*args, **kwargs)
        # The sum over all rows of an optimizer step divided by their number: 1 x 16 is then 16 x 1.
        self.model_accepts_loss_kwargs = True
        can_choose = not self.args.torch_compile
        self._layer = output_layer(self.accelerator.unwrap_model(self.model)) if can_choose else None

    def _count(self, inputs: dict[str, Any]) -> None:
        rows = len(inputs["rows"])
        # With verdicts, the second text is only measured.
        mask = inputs["attention_mask"] if self._own.in_pairs else inputs["attention_mask"][:rows]
        self._real_tokens.append(mask.sum())
        self._examples.append(rows)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return items_of_all(sum(real_rows(batch, len(batch["rows"])) for batch in batch_samples))

    def get_batch_samples(self, *args: Any) -> Any:
        """The micro-batches of an optimizer step; with verdicts, their common reference point too."""
        batches, count = super().get_batch_samples(*args)
        if not self._own.in_pairs and batches:
            drifts = [
                self._second_alone(self._prepare_inputs(dict(batch)))[: real_rows(batch, len(batch["rows"]))]
                for batch in batches
            ]
            self._drift = mean_of_all(torch.cat(drifts))
        return batches, count

    def _second_alone(self, inputs: dict[str, Any]) -> torch.Tensor:
        """(rows,) the drift on the second texts, without drop-out and gradient."""
        rows, was_training = len(inputs["rows"]), self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                texts = {name: inputs[name][rows:] for name in ("input_ids", "attention_mask", "labels")}
                return log_probabilities(self.model, self._layer, texts)[0] - inputs["reference"][:, 1]
        finally:
            self.model.train(was_training)

    def _judge(self, model: Any, inputs: dict[str, Any], *, both: bool) -> Judged:
        """The log-probabilities of a micro-batch; of the first texts alone unless `both`."""
        rows = len(inputs["rows"])
        names = ("input_ids", "attention_mask", "labels")
        texts = {name: inputs[name] if both else inputs[name][:rows] for name in names}
        sums, counts = log_probabilities(model, self._layer, texts)
        second, second_counts = (sums[rows:], counts[rows:]) if both else (sums.detach(), counts)
        return Judged(sums[:rows], second, counts[:rows], second_counts, inputs.get("reference"), inputs["good"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        judged = self._judge(model, inputs, both=self._own.in_pairs or not model.training)
        each = losses(judged, self._own, self._drift)
        if num_items_in_batch is None:
            loss = each.sum() / len(each)
        else:
            loss = step_loss(each, inputs, num_items_in_batch, self.accelerator.num_processes)
        if model.training:
            self._note(judged, real_rows(inputs, len(each)))
        figures = torch.stack([judged.first, judged.second, judged.first_tokens, judged.second_tokens], dim=1)
        return (loss, {"logits": figures.detach()}) if return_outputs else loss

    def _note(self, judged: Judged, rows: int) -> None:
        """Add the rewards of the first `rows` of a micro-batch to those since the last line; sums stay on the device.

        A rank without rows notes zeros: all ranks are asked for their sums.
        """
        first, second = (reward.detach()[:rows].double() for reward in judged.rewards(self._own))
        margins, good = judged.margins(self._own).detach()[:rows], judged.good[:rows]
        if self._own.in_pairs:
            chosen, rejected, counts = first.sum(), second.sum(), (len(first), len(first))
        else:
            chosen, rejected = first[good].sum(), first[~good].sum()
            counts = (good.sum(), (~good).sum())
        parts = (chosen, counts[0], rejected, counts[1], margins.double().sum(), _right(margins).sum(), len(margins))
        self._rewards.append(torch.stack([torch.as_tensor(part, device=first.device).double() for part in parts]))

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's, with the figures of each row; rows come sorted by width."""
        kwargs["prediction_loss_only"] = False
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        figures = torch.as_tensor(output.predictions)[torch.as_tensor(output.label_ids).argsort()]
        dataset: Any = self.eval_dataset
        good = torch.tensor([dataset[index]["good"] for index in range(len(dataset))])
        first, second, first_tokens, second_tokens = figures.unbind(dim=1)
        judged = Judged(first, second, first_tokens, second_tokens, dataset.reference, good)
        drift = 0.0 if self._own.in_pairs else judged.drift().mean()
        self._row_losses = losses(judged, self._own, drift).tolist()
        margins = judged.margins(self._own)
        self.judged = {"reward_accuracy": tuple(_right(margins).tolist()), "reward_margin": tuple(margins.tolist())}
        if self._own.in_pairs:
            self.judged["chosen_likelier"] = tuple(_right(judged.first - judged.second).tolist())
        mean = sum(self._row_losses) / len(self._row_losses)
        accuracy = sum(self.judged["reward_accuracy"]) / len(margins)
        output.metrics.update(
            {"eval_loss": mean, "eval_accuracy": accuracy, "eval_margin": float(margins.double().mean())}
        )
        return output

    @property
    def evaluated_batches(self) -> tuple[MicroBatch, ...]:
        """The loss of each row of the last evaluation, in the order of the rows."""
        return tuple(MicroBatch(loss, 1) for loss in self._row_losses)


class PreferenceTrainer(SharedRowsTrainer, JudgingTrainer):
    """A JudgingTrainer with the checkpoints, the order and the watch of every run."""

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return eval_dataset.by_width()

    def _computed(self, inputs: dict[str, Any]) -> int:
        count, rows = super()._computed(inputs), len(inputs["rows"])
        # With verdicts, the second text is only measured: `_count`.
        return count if self._own.in_pairs else rows * inputs["input_ids"].shape[1]

    def know_references(self, rows: PreferenceRows, kept_in: Path | None, hooks: Hooks, what: str) -> None:
        """Give `rows` the log-probabilities of the model before training: those of `kept_in`, or computed now.

        It is called before any checkpoint is read, so that a model without an adapter is still the one it was.

        Raises:
            KeyboardInterrupt: the run was asked to stop.
        """
        if kept_in is not None and damage(kept_in) is None:
            rows.reference = load_file(kept_in / REFERENCE)["reference"]
            return
        hooks.stage(f"log-probabilities of {len(rows)} {what} rows before training, once")
        random, was_training = RandomState.now(), self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self._before_training(), self.compute_loss_context_manager():
                rows.reference = torch.zeros(len(rows), 2)
                for numbers in self._batches(rows):
                    if hooks.stop_asked():
                        raise KeyboardInterrupt
                    batch = self._prepare_inputs(self.data_collator([{**rows[number]} for number in numbers]))
                    sums = log_probabilities(self.model, self._layer, batch)[0]
                    rows.reference[numbers] = sums.view(2, -1).T.float().cpu()
        finally:
            self.model.train(was_training)
            random.restore()
        if kept_in is not None:
            with contextlib.suppress(OSError), sealed_folder(kept_in) as stage:  # a full disk costs time, nothing else
                save_file({"reference": rows.reference}, stage / REFERENCE)

    def _before_training(self) -> contextlib.AbstractContextManager[Any]:
        """Where the model computes as before training: without its adapter, if it has one."""
        model = self.accelerator.unwrap_model(self.model)
        return model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext()

    def _batches(self, rows: PreferenceRows) -> Iterator[list[int]]:
        order, size = rows.by_width(), self.args.eval_batch_size
        yield from (order[start : start + size] for start in range(0, len(order), size))


def _right(margins: torch.Tensor) -> torch.Tensor:
    """(rows,) 1 where a margin is above 0, a half where it is 0, as in the area under a ROC curve."""
    return ((margins > 0).double() + (margins >= 0).double()) / 2


def reference_key(plan: Plan, own: PreferenceSection) -> str:
    """What log-probabilities before training depend on besides the rows: base, number format, kernels, versions."""
    load = plan.calls.load.kwargs
    base = sha256_of_files(Path(str(load["pretrained_model_name_or_path"])), ("config.json", "*.safetensors"))
    settings = {name: value for name, value in load.items() if name != "pretrained_model_name_or_path"}
    precision = [plan.calls.trainer.kwargs[name] for name in ("bf16", "fp16")]
    parts = [base, settings, precision, own.in_pairs, plan.device, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_preference_trainer(
    plan: Plan,
    model: Model,
    tokenizer: Tokenizer,
    train: Rows,
    held_out: Rows | None,
    task: Preference,
    patience: int | None,
    run: RunDir,
    hooks: Hooks,
    step_rows: int,
) -> RunTrainer:
    """The trainer of a run on preferences, with the keywords of the plan."""
    pad_id, trained = pad_id_of(tokenizer), PreferenceRows(train, task)
    evaluated = None if held_out is None else PreferenceRows(held_out, task)
    trainer = PreferenceTrainer(
        model=model,
        args=TrainingArguments(**plan.calls.trainer.kwargs),
        train_dataset=trained,
        eval_dataset=evaluated,
        data_collator=lambda rows: collate(rows, pad_id),
        processing_class=tokenizer,
        callbacks=[] if patience is None else [EarlyStopping(patience)],
        run=run,
        hooks=hooks,
        order=RowOrder(train.widths, plan.choices.group_by_length.value, step_rows, train.where),
        task=task,
    )
    if task.own.has_reference:
        for what, rows in (("training", trained), ("held-out", evaluated)):
            if rows is not None:
                key = "" if task.kept_in is None else f"{what}-{reference_key(plan, task.own)}"
                kept_in = None if task.kept_in is None else task.kept_in / key
                # The other ranks find what the first one kept.
                know = functools.partial(trainer.know_references, rows, kept_in, hooks, what)
                hooks.ranks.in_turn(f"reference {what}", know)
    return trainer
