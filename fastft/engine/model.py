"""Loading the base model and attaching the adapter, with the very arguments that the plan shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NewType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastft.engine.adapter_precision import compute_in_bfloat16
from fastft.engine.added_tokens import add_tokens
from fastft.engine.fsdp import split_model
from fastft.engine.memory import free_memory
from fastft.engine.sharding import sharded_loading, splits_weights, whole_weights
from fastft.errors import Problem, TrainingError, Where
from fastft.files.atomic import remove_leftovers
from fastft.files.seal import sealed_folder
from fastft.planning.memory import NF4_BLOCK
from fastft.planning.plan import Plan
from fastft.recipe.hub_id import is_hub_id
from fastft.runs.directory import RunDir


class _Untyped:
    """What a library without types hands out: each attribute is Any, but the object itself has a type."""

    def __getattr__(self, name: str) -> Any: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


# torch and transformers are not type-checked, so their objects would be Any, and arguments that are swapped would pass.
# At run time these names are the libraries' own objects.
Model = NewType("Model", _Untyped)
Tokenizer = NewType("Tokenizer", _Untyped)
Weights = dict[str, torch.Tensor]


def load_model(plan: Plan, chat_template: str | None) -> tuple[Model, Tokenizer]:
    """The model that is trained (base and adapter, or all weights) and its tokenizer with `chat_template`.

    Raises:
        TrainingError: the loader or the adapter refused, in the library's own words, or gave other weights.
    """
    free_memory()  # of an earlier run in this process
    try:
        with sharded_loading(plan):
            model, tokenizer = _load(plan)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        wrong = f"{plan.calls.load.name} or its adapter failed: {' '.join(str(error).split())[:300]}"
        raise TrainingError(Problem(Where(plan.recipe), "model.id", wrong, "see the log of this attempt")) from error
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return Model(model), Tokenizer(tokenizer)


def _load(plan: Plan) -> tuple[Any, Any]:
    """The model, with its adapter where the plan has one, and its tokenizer."""
    if plan.engine == "unsloth":
        from fastft.engine.backends import unsloth as backend
    else:
        from fastft.engine.backends import transformers as backend  # type: ignore[no-redef]
    model, tokenizer = backend.load(plan.calls, getattr(torch, plan.choices.dtype.value))
    _refuse_other_weights(plan, model)
    if is_in_4bit(model) and model.device.type == "cpu":
        _keep_4_bits_right(plan, model)
    add_tokens(plan, model, tokenizer)
    rounded = is_rounded_on_cpu(model)
    model = backend.attach(plan.calls, model)
    if rounded and plan.calls.adapter is not None and plan.task == "sft":
        compute_in_bfloat16(model)
    return split_model(plan.calls, model), tokenizer


def _refuse_other_weights(plan: Plan, model: Any) -> None:
    """Stop when the weights are not those of the plan: Unsloth falls back to 16 bits, and only prints it.

    Raises:
        TrainingError: they are not.
    """
    load = plan.calls.load.kwargs
    if (load.get("load_in_4bit") or load.get("quantization_config")) and not is_in_4bit(model):
        wrong = f"the plan says 4-bit weights, the loader gave {model.dtype} ones"
        instead = "see `fastft doctor`: bitsandbytes' library for this CUDA may be missing; or write false"
        raise TrainingError(Problem(Where(plan.recipe), "model.load_in_4bit", wrong, instead))
    if not load.get("full_finetuning") and model.dtype != getattr(torch, load["dtype"]):
        wrong = f"the plan says {load['dtype']}, the loader gave {model.dtype} weights"
        raise TrainingError(Problem(Where(plan.recipe), "model.dtype", wrong, "write the type that the loader gives"))


def _keep_4_bits_right(plan: Plan, model: Any) -> None:
    """Work around what bitsandbytes 0.50.2 does wrong with 4-bit weights on a processor; tests show both.

    Its kernel reads a row that is no multiple of a block at the wrong places. And where the processor has AVX512-BF16,
    the first evaluation packs the weights for a kernel without a backward pass: training after it would get no gradient
    through them, and they would lose precision at each change.

    Raises:
        TrainingError: a layer has rows that are read wrongly.
    """
    for name, layer in model.named_modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is None:
            continue
        layer.support_avx512bf16_for_cpu = False
        if state.shape[-1] % NF4_BLOCK:
            wrong = f"bitsandbytes misreads 4-bit rows of {state.shape[-1]} weights ({name}) on a processor"
            instead = f"write false: only rows of a multiple of {NF4_BLOCK} are read right without a GPU"
            raise TrainingError(Problem(Where(plan.recipe), "model.load_in_4bit", wrong, instead))


def is_in_4bit(model: Model) -> bool:
    """Whether bitsandbytes holds the base in 4 bits; transformers sets the attribute on such models alone."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def is_rounded_on_cpu(model: Model) -> bool:
    """Whether a processor holds the base in bfloat16."""
    return bool(model.device.type == "cpu" and model.dtype == torch.bfloat16)


def other_than_its_files(model: Model, plan: Plan) -> str:
    """What the base in memory stands for, where it is not that of the files: 4 bits, rounded, or split; else ""."""
    if is_in_4bit(model) or splits_weights(plan):
        return "the 16-bit base"
    return "the base in float32" if is_rounded_on_cpu(model) and plan.calls.adapter is not None else ""


def trained_weights(model: Model) -> tuple[int, int]:
    """The number of weights that are trained, and of all. A 4-bit weight counts as one."""
    trained = total = 0
    for parameter in model.parameters():
        # bitsandbytes stores two 4-bit weights in each byte; quant_state knows the true shape.
        state = getattr(parameter, "quant_state", None)
        # ZeRO-3 leaves an empty tensor, and says what it stands for.
        count = state.shape.numel() if state is not None else getattr(parameter, "ds_numel", parameter.numel())
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total


def gather_weights(model: Model, plan: Plan) -> Weights | None:
    """The trained weights of a model that is split among the ranks, all of which must ask; None of one that is not."""
    return whole_weights(model, trained_alone=plan.calls.adapter is not None) if splits_weights(plan) else None


def save_weights(model: Model, tokenizer: Tokenizer, plan: Plan, run: RunDir, gathered: Weights | None = None) -> Path:
    """Write the trained weights and the tokenizer, read them back, and return their folder.

    An adapter goes to `adapter/`; with full fine-tuning the whole model goes to `exports/merged_16bit/`. `gathered`:
    the weights of a model that is split among ranks.

    Raises:
        TrainingError: what was written does not hold the trained weights.
    """
    adapted = plan.calls.adapter is not None
    final = run.adapter if adapted else run.exports / "merged_16bit"
    remove_leftovers(final)  # the run is locked
    try:
        with sealed_folder(final) as stage:
            if adapted:
                # A name that others can load; a folder or a converted file keeps its path.
                name = plan.base_model if is_hub_id(plan.base_model) else None
                model.peft_config["default"].base_model_name_or_path = name or _model_path(plan)
            # The folder promises 16 bits; training is over, so that nothing is lost but the last digits.
            elif gathered is None:
                model.to(torch.bfloat16)
            else:
                gathered = {name: weight.to(torch.bfloat16) for name, weight in gathered.items()}
            # PEFT would write an embedding that grew, and is trained in full, three times.
            once = {"save_embedding_layers": False} if adapted and plan.calls.tokens else {}
            model.save_pretrained(stage, safe_serialization=True, state_dict=gathered, **once)
            tokenizer.save_pretrained(stage)
            if adapted:
                _prove_adapter(model, stage, final, gathered, once)
    except OSError as error:
        wrong = f"the weights could not be written: {error}"
        raise TrainingError(Problem(Where(str(final)), "", wrong, "free some space, then use --resume")) from error
    return final


def _model_path(plan: Plan) -> str:
    load = plan.calls.load.kwargs
    return str(load.get("model_name") or load["pretrained_model_name_or_path"])


def _prove_adapter(
    model: Model, folder: Path, final: Path, gathered: Weights | None, settings: dict[str, bool]
) -> None:
    """Compare the adapter on disk with the one in memory: an empty or unchanged file must not pass for a result."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(model, gathered, **settings)
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
    raise TrainingError(Problem(Where(str(final)), "", wrong, "see the log of this attempt"))
