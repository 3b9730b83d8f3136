"""The output layer only where a token carries loss.

With train_on = "assistant" most positions need no logits; where nothing else leaves them out, this does. Others already
do: TRL on a GPU (trl/trainer/utils.py, add_fused_lm_head), Unsloth on a GPU (unsloth_zoo/fused_losses/
chunked_logprob.py, unsloth_chunked_ce_loss) and on a processor (unsloth_zoo/cpu/ops.py, chunked_linear_cross_entropy).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from fastft.data.encode import NO_LOSS


def output_layer(model: Any) -> torch.nn.Module | None:
    """The layer of the unwrapped `model` that makes logits; None where the loss may need every position.

    Scaled and soft-capped logits are allowed: the model's own forward pass makes them, from fewer positions. Taken are
    models whose loss is the plain causal one and that can leave positions out themselves (`logits_to_keep`).
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.loss_function is not ForCausalLMLoss or "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return None
    layer: torch.nn.Module | None = base.get_output_embeddings()
    return layer


def next_labels(labels: torch.Tensor) -> torch.Tensor:
    """(batch, length) what each position predicts, -100 where there is no loss, from `labels` of the same shape."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=NO_LOSS)


@contextmanager
def only_at(layer: torch.nn.Module, chosen: torch.Tensor) -> Iterator[None]:
    """Within, `layer` gets the `chosen` positions alone, (batch, length) of booleans, as one row (1, count, width)."""

    def choose(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][chosen].unsqueeze(0),)

    hook = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
