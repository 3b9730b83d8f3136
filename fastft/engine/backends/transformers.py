"""The engine "transformers": its own loader, and PEFT's adapter."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from fastft.planning.calls import Calls


def load(calls: Calls, dtype: Any) -> tuple[Any, Any]:
    """The base model in the torch type `dtype`, with an adapter where `calls` has one, and its tokenizer."""
    values = {**calls.load.kwargs, "dtype": dtype}
    path, quantized = values.pop("pretrained_model_name_or_path"), values.pop("quantization_config", None)
    if quantized is not None:
        values["quantization_config"] = BitsAndBytesConfig(**{**quantized, "bnb_4bit_compute_dtype": dtype})
    device = {"": torch.cuda.current_device()} if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, device_map=device, **values)
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=values.get("revision"), trust_remote_code=values["trust_remote_code"]
    )
    if calls.adapter is not None:
        if quantized is not None:
            recomputes = calls.trainer.kwargs["gradient_checkpointing"]
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recomputes)
        torch.manual_seed(calls.trainer.kwargs["seed"])
        model = get_peft_model(model, LoraConfig(**calls.adapter.kwargs))
    return model, tokenizer
