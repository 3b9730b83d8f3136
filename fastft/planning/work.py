"""The arithmetic of training: operations for a token, and what 4-bit weights cost on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastft.probe.architecture import Architecture

# Each micro-batch expands the 4-bit weights once in each pass: reads 0.516 bytes a weight, writes 2.
EXPANDED_BYTES_PER_WEIGHT = 2.516


@dataclass(frozen=True)
class Work:
    """Floating-point operations per token. `recompute`: what checkpointing adds; `attention`: a part of the rest."""

    forward: float
    backward: float
    recompute: float
    attention: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute

    @property
    def attention_share(self) -> float:
        return self.attention / self.total

    def as_json(self) -> dict[str, Any]:
        """Operations per token, and the share of attention in them."""
        return {"flops_per_token": self.total, "attention_share": round(self.attention_share, 4)}


def work_per_token(
    model: Architecture,
    *,
    adapter_weights: int,
    full_finetuning: bool,
    recomputes: bool,
    span: float,
    has_head: bool = True,
    trains_head: bool = False,
) -> Work:
    """Operations for one token that attends to `span` / 2 others on average (causal).

    `has_head`: whether each token gets logits of the vocabulary; a classifier has a row a label instead. `trains_head`:
    whether the output layer is trained in full beside an adapter, two operations a weight for its gradient.
    Forward: two operations a weight, 2 T q for scores and values in each layer over half the span. Backward with LoRA:
    only input gradients of the frozen base (2 a weight) and both of the adapter (4 a weight); with full fine-tuning 4 a
    weight; attention twice its forward. Checkpointing computes the layers' forward pass once more; the output layer is
    not recomputed (Kaplan et al. 2020, section 2.1; Chen et al. 2016; NVIDIA's Megatron-Bridge counts 3.94 N for
    Llama-3-70B LoRA).
    """
    base = model.body_weights + (model.embedding_weights if has_head else 0)
    adapter = 0 if full_finetuning else adapter_weights
    attention = 2.0 * span * model.query_width * model.layers
    forward = 2.0 * (base + adapter) + attention
    backward = (4.0 if full_finetuning else 2.0) * base + 4.0 * adapter + 2 * attention
    backward += 2.0 * model.embedding_weights if trains_head else 0.0
    recompute = 2.0 * (model.body_weights + adapter) + attention if recomputes else 0.0
    return Work(forward, backward, recompute, attention * (4 if recomputes else 3))


def expand_seconds(model: Architecture, work: Work, bandwidth: float) -> float:
    """What expanding the 4-bit weights takes in one micro-batch, at `bandwidth` bytes/s of the device's memory."""
    passes = 3 if work.recompute else 2
    return passes * model.body_weights * EXPANDED_BYTES_PER_WEIGHT / bandwidth
