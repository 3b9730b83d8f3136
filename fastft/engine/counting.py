"""TRL's SFTTrainer with true counts of what it trains, and a held-out loss that does not depend on the batches."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import Trainer
from trl import SFTTrainer

from fastft.data.encode import NO_LOSS
from fastft.engine.output_layer import next_labels, only_at, output_layer
from fastft.engine_choice import selected
from fastft.runs.held_out import MicroBatch


class CountingTrainer(SFTTrainer):
    """An SFTTrainer that keeps real tokens and examples, and each evaluated micro-batch, on the device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._real_tokens: list[torch.Tensor | int] = []
        self._examples: list[torch.Tensor | int] = []
        self._eval_losses: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)
        # TRL 1.15 computes its loss in a Triton kernel alone, which needs a GPU; Unsloth brings a loss of its own.
        self._needs_plain_loss = selected() == "transformers" and self.args.device.type == "cpu"
        # A compiled model would be compiled anew for each micro-batch.
        can_choose = self._needs_plain_loss and not self.args.torch_compile
        self._output_layer = output_layer(self.accelerator.unwrap_model(self.model)) if can_choose else None
        # Unsloth's trainer for GPUs makes no logits, and so none of the accuracies that TRL reports.
        best = self.args.metric_for_best_model
        self._needs_accuracy = best == "eval_mean_token_accuracy" and SFTTrainer.__name__ == "UnslothSFTTrainer"

    def _count(self, inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        # Sums stay on the device until a line is logged: reading them here would make the GPU wait.
        self._real_tokens.append(inputs["input_ids"].numel() if mask is None else mask.sum())
        positions, lengths = inputs.get("position_ids"), inputs.get("packed_seq_lengths")
        if lengths is not None:
            self._examples.append(lengths.numel())
        else:
            self._examples.append(len(inputs["input_ids"]) if positions is None else (positions == 0).sum())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self._needs_plain_loss:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._needs_accuracy and not model.training:
                with torch.no_grad():
                    outputs = model(**{key: value for key, value in inputs.items() if key != "labels"}, use_cache=False)
                self._note_accuracy(outputs.logits, next_labels(inputs["labels"]))
            return result
        wanted = next_labels(inputs["labels"])
        with contextlib.ExitStack() as here:
            if self._output_layer is not None:
                chosen = wanted != NO_LOSS
                here.enter_context(only_at(self._output_layer, chosen))
                wanted = wanted[chosen].unsqueeze(0)
                inputs["shift_labels"] = wanted
            loss, outputs = Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, True, num_items_in_batch)
        if not model.training:
            self._note_accuracy(outputs.logits, wanted)
        return (loss, outputs) if return_outputs else loss

    def _note_accuracy(self, logits: torch.Tensor, wanted: torch.Tensor) -> None:
        trained = wanted != NO_LOSS
        right = (logits.argmax(-1) == wanted) & trained
        right_count, count = self.accelerator.reduce(torch.stack([right.sum(), trained.sum()])).tolist()
        self._metrics["eval"]["mean_token_accuracy"].append(right_count / max(1, count))

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens = (inputs["labels"][:, 1:] != NO_LOSS).sum()
        result = super().prediction_step(model, inputs, *args, **kwargs)
        # The mean over no tokens is no number.
        summed = torch.where(tokens > 0, result[0].double() * tokens, 0.0)
        self._eval_losses.append(torch.stack([summed, tokens.double()]))
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's, with the loss as a mean over all trained tokens.

        Its own is the mean of the micro-batches' means, which changes with the batch size and with packing.
        """
        self._eval_losses = []
        output = super().evaluation_loop(*args, **kwargs)
        summed, tokens = self.accelerator.reduce(torch.stack(self._eval_losses).sum(dim=0)).tolist()
        output.metrics["eval_loss"] = summed / tokens
        return output

    @property
    def evaluated_batches(self) -> tuple[MicroBatch, ...]:
        """The micro-batches of the last evaluation; none with several processes, each of which has a part of them."""
        if self.accelerator.num_processes > 1:
            return ()
        sums = torch.stack(self._eval_losses).tolist()
        return tuple(MicroBatch(loss_sum, int(tokens)) for loss_sum, tokens in sums)
