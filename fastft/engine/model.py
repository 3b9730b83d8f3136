"""Loading the base model and attaching the adapter, with the very arguments that the plan shows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from fastft.errors import Problem, TrainingError, Where
from fastft.files.seal import seal
from fastft.planning.plan import Plan
from fastft.recipe.rules import is_hub_id
from fastft.runs.directory import RunDir


def load_model(plan: Plan, chat_template: str | None) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model that is trained (base and adapter, or all weights) and its tokenizer with `chat_template`.

    Raises:
        TrainingError: the loader or the adapter refused, in the library's own words, or gave other weights.
    """
    load = plan.calls[0]
    try:
        model, tokenizer = _load(plan, load.kwargs)
        _refuse_other_weights(plan, model)
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        if any(call.name.endswith(("get_peft_model", "LoraConfig")) for call in plan.calls):
            model = _attach(plan, model)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        wrong = f"{load.name} or its adapter failed: {' '.join(str(error).split())[:300]}"
        raise TrainingError(Problem(Where(plan.recipe), "model.id", wrong, "see the log of this attempt")) from error
    return model, tokenizer


def _load(plan: Plan, kwargs: Mapping[str, Any]) -> tuple[Any, PreTrainedTokenizerBase]:
    values = {**kwargs, "dtype": getattr(torch, kwargs["dtype"])}
    if plan.engine == "unsloth":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(**values)
        return model, tokenizer
    path = values.pop("pretrained_model_name_or_path")
    quantized = values.pop("quantization_config", None)
    if quantized is not None:
        quantized["bnb_4bit_compute_dtype"] = values["dtype"]
        values["quantization_config"] = BitsAndBytesConfig(**quantized)
    device = {"": torch.cuda.current_device()} if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, device_map=device, **values)
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=values.get("revision"), trust_remote_code=values["trust_remote_code"]
    )
    return model, tokenizer


def _refuse_other_weights(plan: Plan, model: Any) -> None:
    """Stop when the weights are not those of the plan: Unsloth falls back to 16 bits, and only prints it.

    Raises:
        TrainingError: they are not.
    """
    load = plan.calls[0].kwargs
    if (load.get("load_in_4bit") or load.get("quantization_config")) and not is_in_4bit(model):
        wrong = f"the plan says 4-bit weights, the loader gave {model.dtype} ones"
        instead = "see `fastft doctor`: bitsandbytes' library for this CUDA may be missing; or write false"
        raise TrainingError(Problem(Where(plan.recipe), "model.load_in_4bit", wrong, instead))
    if not load.get("full_finetuning") and model.dtype != getattr(torch, load["dtype"]):
        wrong = f"the plan says {load['dtype']}, the loader gave {model.dtype} weights"
        raise TrainingError(Problem(Where(plan.recipe), "model.dtype", wrong, "write the type that the loader gives"))


def _attach(plan: Plan, model: Any) -> Any:
    if plan.engine == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(model, **plan.call("get_peft_model").kwargs)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    checkpointing = plan.choices["train.gradient_checkpointing"].value is not False
    if plan.calls[0].kwargs.get("quantization_config"):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    torch.manual_seed(plan.call("SFTConfig").kwargs["seed"])
    return get_peft_model(model, LoraConfig(**plan.call("LoraConfig").kwargs))


def is_in_4bit(model: Any) -> bool:
    """Whether bitsandbytes holds the base in 4 bits; transformers sets the attribute on such models alone."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def trained_weights(model: Any) -> tuple[int, int]:
    """The number of weights that are trained, and of all. A 4-bit weight counts as one."""
    trained = total = 0
    for parameter in model.parameters():
        # bitsandbytes stores two 4-bit weights in each byte; quant_state knows the true shape.
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total


def save_weights(model: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan, run: RunDir) -> Path:
    """Write the trained weights and the tokenizer, read them back, and return their folder.

    An adapter goes to `adapter/`; with full fine-tuning the whole model goes to `exports/merged_16bit/`.

    Raises:
        TrainingError: what was written does not hold the trained weights.
    """
    adapted = any(call.name.endswith(("get_peft_model", "LoraConfig")) for call in plan.calls)
    final = run.adapter if adapted else run.exports / "merged_16bit"
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if adapted:
            # A name that others can load; a folder or a converted file keeps its path.
            name = plan.base_model if is_hub_id(plan.base_model) else None
            model.peft_config["default"].base_model_name_or_path = name or _model_path(plan)
        else:
            # The folder promises 16 bits; training is over, so that nothing is lost but the last digits.
            model.to(torch.bfloat16)
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
    except OSError as error:
        wrong = f"the weights could not be written: {error}"
        raise TrainingError(Problem(Where(str(partial)), "", wrong, "free some space, then use --resume")) from error
    if adapted:
        _prove_adapter(model, partial)
    seal(partial, final)
    return final


def _model_path(plan: Plan) -> str:
    load = plan.calls[0].kwargs
    return str(load.get("model_name") or load["pretrained_model_name_or_path"])


def _prove_adapter(model: Any, folder: Path) -> None:
    """Compare the adapter on disk with the one in memory: an empty or unchanged file must not pass for a result."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(model)
    file = folder / "adapter_model.safetensors"
    written = load_file(file) if file.is_file() else {}
    same = expected.keys() == written.keys() and all(
        torch.equal(value.detach().cpu().to(written[key].dtype), written[key]) for key, value in expected.items()
    )
    moved = any(bool(value.any()) for key, value in written.items() if "lora_B" in key)
    if not written:
        wrong = "the saved adapter is empty: no weights were written"
    elif not moved:
        wrong = "the saved adapter is empty: training moved nothing"
    elif not same:
        wrong = "the saved adapter is not the trained one"
    else:
        return
    raise TrainingError(Problem(Where(str(folder)), "", wrong, "see the log of this attempt"))
