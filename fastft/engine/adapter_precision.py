"""An adapter in float32 on a bfloat16 base that computes in bfloat16, on a processor."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


def compute_in_bfloat16(model: Any) -> None:
    """Let the adapted layers of the PEFT `model` multiply in bfloat16; weights stay in the types that they have.

    PEFT casts what an adapter reads to the adapter's float32, and multiplies there: a third of the time of a step on a
    processor. Under autocast the small matrices of the adapter are rounded instead, as on a GPU. Layer by layer, as
    TRL and Unsloth replace the forward pass of the model; Accelerate's mixed precision would also copy all logits to
    float32.
    """
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = False
            layer.forward = torch.autocast("cpu", dtype=torch.bfloat16)(layer.forward)
