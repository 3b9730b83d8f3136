"""What fastft decides itself, each with its reason: engine, precision, optimizer, batching, accumulation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from fastft.probe.base_model import BaseModel
from fastft.probe.device import Device
from fastft.probe.layers import usual_targets
from fastft.probe.software import NEEDED
from fastft.recipe.model import LoraSection, ModelSection, Recipe, TrainSection
from fastft.recipe.optimizers import OPTIMIZERS

T = TypeVar("T")
CheckpointingMode = Literal["unsloth"] | bool


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value that was decided here, and why. `runner_up`: the value in the second best set-up, None without one."""

    value: T
    reason: str
    runner_up: T | None = None


@dataclass(frozen=True)
class Choices:
    """Everything that is decided here; a field has the name of the recipe key that it decides.

    `gradient_accumulation_steps`: None while it depends on token lengths that are not known yet.
    """

    engine: Choice[str]
    dtype: Choice[str]
    attn_implementation: Choice[str]
    bf16: Choice[bool]
    fp16: Choice[bool]
    optim: Choice[str]
    gradient_checkpointing: Choice[CheckpointingMode]
    packing: Choice[bool]
    group_by_length: Choice[bool]
    gradient_accumulation_steps: Choice[int | None]
    per_device_train_batch_size: Choice[int]
    load_in_4bit: Choice[bool]
    target_modules: Choice[tuple[str, ...]]

    @property
    def recomputes(self) -> bool:
        """Whether gradient checkpointing is on, of either kind."""
        return self.gradient_checkpointing.value is not False

    def by_key(self) -> dict[str, Choice[Any]]:
        """Each choice by its key in the recipe, such as "train.optim"."""
        homes = {**dict.fromkeys(ModelSection.model_fields, "model"), **dict.fromkeys(LoraSection.model_fields, "lora")}
        return {f"{homes.get(name, 'train')}.{name}": choice for name, choice in vars(self).items()}


def choose_engine(recipe: Recipe, installed: Mapping[str, str], *, ranks_on_cpu: bool = False) -> Choice[str]:
    """The engine that loads and trains."""
    asked = recipe.model.engine
    if asked != "auto":
        return Choice(asked, "asked for by model.engine")
    if recipe.train.shares_model:
        return Choice("transformers", "the model is shared among processes: Unsloth shares rows alone")
    if recipe.task == "classification":
        return Choice("transformers", "classification: Unsloth's trainer and its fused loss are of language models")
    if recipe.task == "preference":
        return Choice("transformers", "preferences are made of logits, which Unsloth does not keep in training")
    if ranks_on_cpu:
        return Choice("transformers", "several processes on processors: Unsloth shares work among GPUs alone")
    if "unsloth" in installed:
        return Choice("unsloth", "installed, and the faster one")
    if not installed.keys() & set(NEEDED):
        return Choice("unsloth", "the faster one; not installed here yet")
    return Choice("transformers", "Unsloth is not installed")


def make_choices(
    recipe: Recipe,
    device: Device,
    processes: int,
    engine: Choice[str],
    packing: Choice[bool],
    per_row: float | None,
    model: BaseModel,
    *,
    flat: bool,
    on_processor: Choice[str],
) -> Choices:
    """All choices, from the two that the rows depend on; `per_row`: examples in a packed row, None while unknown.

    `flat`: whether Unsloth can flatten batches of this model (`can_flatten`). `on_processor`: the type of the weights
    there. Attention is left to the library; see `planning/processor.py` for what a processor gets.
    """
    bf16 = choose_bf16(recipe, device)
    fp16 = choose_fp16(recipe, device, bf16.value)
    return Choices(
        engine=engine,
        dtype=choose_dtype(recipe, device, bf16.value, fp16.value, on_processor),
        attn_implementation=Choice("auto", "the default of the library that loads the model"),
        bf16=bf16,
        fp16=fp16,
        optim=choose_optimizer(recipe, device),
        gradient_checkpointing=choose_checkpointing(recipe, engine.value, device),
        packing=packing,
        group_by_length=choose_grouping(recipe, engine.value, device, packing.value, flat=flat),
        gradient_accumulation_steps=choose_accumulation(recipe, processes, packing.value, per_row),
        per_device_train_batch_size=Choice(written_batch(recipe.train), "as train.per_device_train_batch_size says"),
        load_in_4bit=Choice(recipe.model.load_in_4bit is True, "as model.load_in_4bit says"),
        target_modules=choose_targets(recipe, model),
    )


# The batch where a recipe counts micro-batches instead of examples: with it a step is the same on every device.
BATCH_BY_ACCUMULATION = 2


def written_batch(train: TrainSection) -> int:
    """The micro-batch that a recipe writes, or the one that goes with a written accumulation."""
    batch = train.per_device_train_batch_size
    return BATCH_BY_ACCUMULATION if batch == "auto" else batch


def choose_targets(recipe: Recipe, model: BaseModel) -> Choice[tuple[str, ...]]:
    """The layers that get an adapter, by the names that they have in this architecture."""
    asked = recipe.lora.target_modules
    if recipe.model.full_finetuning and OPTIMIZERS[recipe.train.optim].whole_layers:
        return Choice(usual_targets(model) or asked, "every weight is trained; gradients of these layers are projected")
    if recipe.model.full_finetuning:
        return Choice((), "every weight is trained")
    if "target_modules" in recipe.lora.model_fields_set:
        return Choice(asked, "asked for by lora.target_modules")
    own = usual_targets(model)
    return Choice(asked, "all projections") if own is None else Choice(own, "the names of this architecture")


def choose_bf16(recipe: Recipe, device: Device) -> Choice[bool]:
    """Whether the trainer computes in bfloat16."""
    asked = recipe.train.bf16
    if asked != "auto":
        return Choice(asked, "asked for by train.bf16")
    if recipe.train.fp16 is True or recipe.model.dtype in ("float16", "float32"):
        return Choice(False, "train.fp16 or model.dtype asks for another precision")
    if not device.is_gpu:
        return Choice(False, "a processor computes in the type of the weights: see model.dtype")
    can = device.computes_bfloat16
    return Choice(can, f"{device.name} {'computes' if can else 'does not compute'} in bfloat16")


def choose_fp16(recipe: Recipe, device: Device, bf16: bool) -> Choice[bool]:
    """Whether the trainer computes in float16: on a GPU without bfloat16."""
    asked = recipe.train.fp16
    if asked is True and not device.is_gpu:
        # accelerate/accelerator.py, 1.15: with "fp16" it scales and casts nothing on a processor, without a word.
        return Choice(False, "asked for, but Accelerate has no float16 on a processor: float32 here")
    if asked != "auto":
        return Choice(asked, "asked for by train.fp16")
    if device.is_gpu and not bf16 and recipe.model.dtype != "float32" and recipe.train.bf16 == "auto":
        return Choice(True, f"{device.name} has no bfloat16")
    return Choice(False, "bf16 is on" if bf16 else "not needed in float32")


def choose_dtype(
    recipe: Recipe, device: Device, bf16: bool, fp16: bool, on_processor: Choice[str] | None = None
) -> Choice[str]:
    """The type of the weights that are not quantized; `on_processor`: that of a processor, None for float32."""
    asked = recipe.model.dtype
    if asked != "auto":
        return Choice(asked, "asked for by model.dtype")
    if bf16 and (device.is_gpu or recipe.model.load_in_4bit is True):
        return Choice("bfloat16", "bf16 is on")
    if fp16:
        return Choice("float16", "fp16 is on")
    if not device.is_gpu and on_processor is not None:
        return on_processor
    return Choice("float32", "neither bf16 nor fp16 is on" if device.is_gpu else "full precision on a processor")


def choose_optimizer(recipe: Recipe, device: Device) -> Choice[str]:
    """The optimizer that really runs: on a processor, the default is the same AdamW in its fastest form."""
    asked = OPTIMIZERS[recipe.train.optim]
    if recipe.train.shares_model and "optim" not in recipe.train.model_fields_set:
        return Choice("adamw_torch", "its state is split among processes, number by number")
    if device.is_gpu or recipe.train.shares_model:
        return Choice(asked.name, "as train.optim says")
    if asked.on_cpu is not None and not asked.packages:
        return Choice(asked.on_cpu, "the fused form of the same sums")
    if asked.on_cpu is not None and "optim" not in recipe.train.model_fields_set:
        # Measured: 7.1 million weights take 0.13 s of one core fused, 6.7 s in 8 bits (bitsandbytes 0.50.2).
        return Choice(asked.on_cpu, f"the same {asked.family} in float32, far faster than 8 bits on a processor")
    if asked.paged:
        return Choice(asked.name, "as train.optim says; nothing is paged here: all of its state is in main memory")
    return Choice(asked.name, "as train.optim says")


# Below it Unsloth recomputes without moving anything to main memory (unsloth/models/_utils.py,
# apply_unsloth_gradient_checkpointing).
OFFLOADED_FROM_TOKENS = 512


def choose_checkpointing(recipe: Recipe, engine: str, device: Device) -> Choice[CheckpointingMode]:
    """How activations are kept: `"unsloth"` is only known to Unsloth, and is plain recomputation on a processor."""
    asked = recipe.train.gradient_checkpointing
    if asked == "auto":
        # Where it recomputes; whether it does is decided by what fits (planning/chooser.py).
        asked = "unsloth"
    if asked == "unsloth" and engine != "unsloth":
        return Choice(True, 'plain recomputation: "unsloth" checkpointing belongs to Unsloth')
    if asked == "unsloth" and device.is_gpu and recipe.model.max_seq_length < OFFLOADED_FROM_TOKENS:
        return Choice(True, f"plain recomputation: Unsloth offloads from max_seq_length {OFFLOADED_FROM_TOKENS} on")
    if asked == "unsloth" and not device.is_gpu:
        return Choice("unsloth", "plain recomputation on a processor; false would be about twice as fast")
    return Choice(asked, "as train.gradient_checkpointing says")


# Models whose examples Unsloth keeps apart in no batch: unsloth/trainer.py, PADDING_FREE_BLOCKLIST, and those with
# layers that carry a state from token to token (_HYBRID_CONFIG_MARKERS; with kernels of their own some could).
_NOT_FLATTENED = ("gemma2", "gpt_oss")
_HYBRID = ("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "full_attention_interval")
# The same models by their Hub ids, before their config.json is here.
_NAMES_NOT_FLATTENED = re.compile(r"gemma-2-|gpt-oss|qwen3-next|qwen3\.5")


def can_flatten(model: BaseModel) -> bool:
    """Whether Unsloth's attention for this model keeps examples apart in one row, packed or padding-free."""
    if not model.config:
        return _NAMES_NOT_FLATTENED.search(model.id.lower()) is None
    config = model.config.get("text_config") or model.config
    hybrid = config.keys() & set(_HYBRID) or "linear_attention" in str(config.get("layer_types"))
    return config.get("model_type") not in _NOT_FLATTENED and not hybrid


def choose_packing(recipe: Recipe, engine: str, device: Device, *, flat: bool) -> Choice[bool]:
    """Whether `packing` is active: where packed examples stay apart; `flat`: see `can_flatten`."""
    if recipe.train.packing is not True:
        return Choice(False, "not asked for")
    if recipe.task != "sft":
        return Choice(False, f"each row of a {recipe.task} is one of its own")
    if engine == "unsloth" and device.is_gpu and not flat:
        return Choice(False, "Unsloth cannot keep packed examples of this model apart; transformers can")
    if engine == "unsloth" and device.is_gpu:
        return Choice(True, "Unsloth's attention keeps packed examples apart")
    if engine == "unsloth":
        return Choice(False, "Unsloth's CPU backend switches it off")
    if recipe.model.attn_implementation == "flex_attention":
        return Choice(False, "not proven to keep packed examples apart with flex_attention")
    # transformers masks by position (masking_utils.py, find_packed_sequence_indices); a test proves it.
    return Choice(True, "transformers keeps packed examples apart by their positions")


def choose_grouping(recipe: Recipe, engine: str, device: Device, packing: bool, *, flat: bool) -> Choice[bool]:
    """Whether `group_by_length` is active: where rows are not packed; `flat`: see `can_flatten`."""
    asked = recipe.train.group_by_length
    if asked is False:
        return Choice(False, "not asked for")
    if packing:
        return Choice(False, "packing is active: packed rows are all of one length")
    flattens = device.is_gpu and engine == "unsloth" and flat
    if asked == "auto" and flattens:
        return Choice(False, "Unsloth flattens micro-batches on a GPU, so nothing is padded")
    if asked == "auto":
        return Choice(False, "the rows of a step are sorted by length already, which changes no gradient")
    if flattens:
        return Choice(True, "asked for; Unsloth flattens batches on this GPU, so it saves no padding here")
    return Choice(True, "batches of like length need little padding")


def choose_accumulation(recipe: Recipe, devices: int, packing: bool, per_row: float | None) -> Choice[int | None]:
    """Micro-batches per optimizer step; value None while it depends on token lengths that are not known yet.

    `per_row`: examples in a packed row, None before they are tokenized.
    """
    train = recipe.train
    batch, size = written_batch(train), train.examples_per_step
    if size is None:
        if train.gradient_accumulation_steps is None:
            return Choice(1, "the default")
        return Choice(train.gradient_accumulation_steps, "asked for")
    if not packing:
        value = max(1, math.ceil(size / (batch * devices)))
        return Choice(value, f"{size} examples per step / (batch {batch} x {devices} device{'s' * (devices > 1)})")
    if per_row is None:
        return Choice(None, "depends on how many examples a packed row holds; known once the rows are tokenized")
    value = max(1, round(size / (batch * devices * per_row)))
    reason = f"{size} examples per step / (batch {batch} x {devices} x {per_row:.2f} examples in a packed row)"
    return Choice(value, reason)
