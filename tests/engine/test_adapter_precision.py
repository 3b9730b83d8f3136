"""An adapter in float32 on a bfloat16 base: as near to float32 as PEFT's own way, in training and in generation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fastft.engine.adapter_precision import compute_in_bfloat16

CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(base: Any, dtype: torch.dtype) -> Any:
    """A PEFT model on a copy of `base` in `dtype`, with the same random adapter in float32 each time."""
    model = get_peft_model(copy.deepcopy(base).to(dtype), LoraConfig(r=4, target_modules=LINEAR))
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape) * 0.05
    return model


def loss_and_gradient(model: Any, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


def test_the_gradient_is_as_near_to_float32_as_with_products_of_the_adapter_in_float32() -> None:
    torch.manual_seed(0)
    base, ids = LlamaForCausalLM(CONFIG), torch.randint(0, 97, (4, 24))
    exact, mixed, rounded = (adapted(base, dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16))
    compute_in_bfloat16(rounded)

    loss, gradient = loss_and_gradient(exact, ids)
    _, peft_gradient = loss_and_gradient(mixed, ids)
    own_loss, own_gradient = loss_and_gradient(rounded, ids)

    assert own_gradient.dtype == torch.float32
    # bfloat16 has 8 bits: a product is wrong by 2^-9 at most, a sum over 3 layers by a few times that.
    assert abs(own_loss - loss) < 0.01 * loss
    error, peft_error = (float((each - gradient).norm() / gradient.norm()) for each in (own_gradient, peft_gradient))
    assert 0 < peft_error < 0.03
    assert error < 0.03


def test_it_generates_and_evaluates_outside_of_training() -> None:
    torch.manual_seed(0)
    model = adapted(LlamaForCausalLM(CONFIG), torch.bfloat16)
    compute_in_bfloat16(model)
    ids = torch.randint(1, 97, (2, 8))

    pieces: list[bool] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: pieces.append(inputs[0].is_contiguous()))

    model.eval()
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        logits = model(input_ids=ids).logits

    assert made.shape[1] > ids.shape[1]
    assert pieces == [True] * len(pieces)
    # Not copied to float32: those of a vocabulary of 49,152 tokens would take a tenth of a step.
    assert logits.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
