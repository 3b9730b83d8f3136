"""Logits only where a token carries loss: the same loss and the same gradients as from all logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from fastft.data.encode import NO_LOSS
from fastft.engine.output_layer import next_labels, only_at, output_layer

WIDTH = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "output_router_logits": True}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**WIDTH),
    "tied": lambda: LlamaConfig(**WIDTH, tie_word_embeddings=True),
    "soft-capped": lambda: Gemma2Config(**WIDTH, final_logit_softcapping=3.0),
    "divided": lambda: GraniteConfig(**WIDTH, logits_scaling=4.0),
    "multiplied": lambda: CohereConfig(**WIDTH, logit_scale=0.25),
    "with a router's loss": lambda: Qwen3MoeConfig(**WIDTH, **EXPERTS),
    "gpt2": lambda: GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2),
}


def adapted(**more: Any) -> Callable[[Any], Any]:
    return lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **more)).double()


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "lora": adapted(),
    "lora and a copy of the output layer": adapted(modules_to_save=["lm_head"]),
}


def make(config: PreTrainedConfig) -> Any:
    torch.manual_seed(3)
    # torch's grouped kernel for experts has no float64.
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).double()
    # Random logits are nearly equal, and a soft cap does nothing to them: wider weights make them differ.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Three rows of different lengths, padded on the right, of which a third of the tokens carry loss."""
    torch.manual_seed(4)
    ids = torch.randint(1, 61, (3, 12))
    lengths = torch.tensor([12, 9, 5])
    mask = (torch.arange(12) < lengths[:, None]).long()
    labels = torch.where((mask == 1) & (torch.arange(12) % 3 == 0), ids, NO_LOSS)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Any, items: int | None, layer: torch.nn.Module | None) -> tuple[float, dict[str, torch.Tensor]]:
    inputs: dict[str, Any] = {**batch(), "num_items_in_batch": items}
    if layer is None:
        loss = model(**inputs).loss
    else:
        wanted = next_labels(inputs["labels"])
        chosen = wanted != NO_LOSS
        with only_at(layer, chosen):
            outputs = model(**inputs, shift_labels=wanted[chosen].unsqueeze(0))
        assert outputs.logits.shape[:2] == (1, int(chosen.sum()))
        loss = outputs.loss
    loss.backward()
    return float(loss), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("items", [None, 37], ids=["mean", "part of a step"])
@pytest.mark.parametrize(
    ("config", "adapt"),
    [(name, None) for name in CONFIGS] + [("llama", name) for name in ADAPTERS] + [("soft-capped", "lora")],
)
def test_loss_and_gradients_are_those_of_all_logits(config: str, adapt: str | None, items: int | None) -> None:
    model = make(CONFIGS[config]())
    model = model if adapt is None else ADAPTERS[adapt](model)
    layer = output_layer(model)
    assert layer is not None

    loss, all_logits = gradients(copy.deepcopy(model), items, None)
    same_loss, few_logits = gradients(model, items, layer)

    # transformers computes the loss itself in float32: its sums differ in the seventh digit.
    assert same_loss == pytest.approx(loss, rel=1e-6)
    assert few_logits.keys() == all_logits.keys()
    largest = max(float(gradient.abs().max()) for gradient in all_logits.values())
    for name, gradient in all_logits.items():
        assert float((few_logits[name] - gradient).abs().max()) <= 1e-6 * largest, name


def test_a_model_with_a_loss_of_its_own_keeps_all_logits() -> None:
    model = make(CONFIGS["llama"]())
    model.loss_function = lambda **_: torch.zeros(())

    assert output_layer(model) is None


def test_a_model_that_leaves_no_position_out_keeps_all_logits() -> None:
    class Old(type(make(CONFIGS["llama"]()))):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor) -> None: ...

    assert output_layer(Old(CONFIGS["llama"]())) is None


def test_the_output_layer_gets_every_position_again_afterwards() -> None:
    model = make(CONFIGS["llama"]())
    layer = output_layer(model)
    assert layer is not None
    with only_at(layer, next_labels(batch()["labels"]) != NO_LOSS):
        pass

    assert model(input_ids=batch()["input_ids"]).logits.shape == (3, 12, 61)
