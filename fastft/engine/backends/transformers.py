"""The engine "transformers": its own loader, and PEFT's adapter."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from fastft.planning.calls import Calls


def load(calls: Calls, dtype: Any) -> tuple[Any, Any]:
    """The base model in the torch type `dtype`, and its tokenizer."""
    values = {**calls.load.kwargs, "dtype": dtype}
    path, quantized = values.pop("pretrained_model_name_or_path"), values.pop("quantization_config", None)
    if quantized is not None:
        values["quantization_config"] = BitsAndBytesConfig(**{**quantized, "bnb_4bit_compute_dtype": dtype})
    if not is_deepspeed_zero3_enabled():  # which places weights itself
        values["device_map"] = {"": torch.cuda.current_device()} if torch.cuda.is_available() else "cpu"
    loader = AutoModelForSequenceClassification if "num_labels" in values else AutoModelForCausalLM
    torch.manual_seed(calls.trainer.kwargs["seed"])  # of a new head
    model = loader.from_pretrained(path, **values)
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=values.get("revision"), trust_remote_code=values["trust_remote_code"]
    )
    if "num_labels" in values:
        model.config.pad_token_id = next(
            (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0
        )
    return model, tokenizer


def attach(calls: Calls, model: Any) -> Any:
    """`model` with its adapter, where `calls` has one; its first weights depend on the seed of the trainer alone."""
    if calls.adapter is None:
        return model
    trainer = calls.trainer.kwargs
    if "quantization_config" in calls.load.kwargs:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=trainer["gradient_checkpointing"])
    torch.manual_seed(trainer["seed"])
    # ZeRO-3 gathers weights of one type alone (DeepSpeed issue 8072); its optimizer keeps the adapter in float32.
    upcast = not is_deepspeed_zero3_enabled()
    return get_peft_model(model, LoraConfig(**calls.adapter.kwargs), autocast_adapter_dtype=upcast)
