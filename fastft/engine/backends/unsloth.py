"""The engine "unsloth": its loader and its adapter, patched kernels included."""

from __future__ import annotations

from typing import Any

from unsloth import FastLanguageModel

from fastft.planning.calls import Calls


def load(calls: Calls, dtype: Any) -> tuple[Any, Any]:
    """The base model in the torch type `dtype`, with an adapter where `calls` has one, and its tokenizer."""
    model, tokenizer = FastLanguageModel.from_pretrained(**{**calls.load.kwargs, "dtype": dtype})
    if calls.adapter is not None:
        model = FastLanguageModel.get_peft_model(model, **calls.adapter.kwargs)
    return model, tokenizer
