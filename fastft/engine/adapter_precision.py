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
    model.get_output_embeddings().register_forward_pre_hook(_in_one_piece)


def _in_one_piece(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The last positions of a batch of prompts as a tensor of their own.

    torch 2.13 multiplies a slice by frozen bfloat16 weights row by row, with the weights copied for each row: 2.2 GiB
    and 8 s for 50 prompts of a vocabulary of 49,152 tokens, instead of 0.1 s (aten/src/ATen/native/LinearAlgebra.cpp,
    should_fold).
    """
    return (inputs[0].contiguous(),)
