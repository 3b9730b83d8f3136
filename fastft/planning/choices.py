"""What fastft decides itself, each with its reason: engine, precision, optimizer, batching, accumulation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastft.probe.device import Device
from fastft.probe.software import NEEDED
from fastft.recipe.model import Recipe


@dataclass(frozen=True)
class Choice:
    """A value that was decided here, and why."""

    value: Any
    reason: str


# Optimizers whose state bitsandbytes keeps on a GPU, and what does the same sums on a processor.
_ON_CPU = {
    "adamw_torch": "adamw_torch_fused",
    "adamw_8bit": "adamw_torch_fused",
    "paged_adamw_8bit": "adamw_torch_fused",
    "paged_adamw_32bit": "adamw_torch_fused",
}


def choose_engine(recipe: Recipe, installed: Mapping[str, str]) -> Choice:
    """The engine that loads and trains."""
    asked = recipe.model.engine
    if asked != "auto":
        return Choice(asked, "asked for by model.engine")
    if "unsloth" in installed:
        return Choice("unsloth", "installed, and the faster one")
    if not installed.keys() & set(NEEDED):
        return Choice("unsloth", "the faster one; not installed here yet")
    return Choice("transformers", "Unsloth is not installed")


def choose_precision(recipe: Recipe, device: Device) -> dict[str, Choice]:
    """`dtype` of the weights that are not quantized, and the `bf16` and `fp16` switches of the trainer."""
    train, dtype = recipe.train, recipe.model.dtype
    has_bf16 = device.computes_bfloat16
    blocked = train.fp16 is True or dtype in ("float16", "float32")
    if train.bf16 != "auto":
        bf16 = Choice(train.bf16, "asked for by train.bf16")
    elif blocked:
        bf16 = Choice(False, "train.fp16 or model.dtype asks for another precision")
    elif not device.is_gpu:
        bf16 = Choice(False, "float32 on a processor: the same result on every machine")
    else:
        bf16 = Choice(has_bf16, f"{device.name} {'computes' if has_bf16 else 'does not compute'} in bfloat16")
    if train.fp16 != "auto":
        fp16 = Choice(train.fp16, "asked for by train.fp16")
    elif device.is_gpu and not bf16.value and dtype != "float32" and train.bf16 == "auto":
        fp16 = Choice(True, f"{device.name} has no bfloat16")
    else:
        fp16 = Choice(False, "bf16 is on" if bf16.value else "not needed in float32")
    if dtype != "auto":
        kind = Choice(dtype, "asked for by model.dtype")
    elif bf16.value and (device.is_gpu or recipe.model.load_in_4bit):
        kind = Choice("bfloat16", "bf16 is on")
    elif fp16.value:
        kind = Choice("float16", "fp16 is on")
    else:
        kind = Choice(
            "float32", "full precision on a processor" if not device.is_gpu else "neither bf16 nor fp16 is on"
        )
    return {"model.dtype": kind, "train.bf16": bf16, "train.fp16": fp16}


def choose_optimizer(recipe: Recipe, device: Device) -> Choice:
    """The optimizer that really runs: 8-bit and paged AdamW keep their state on a GPU."""
    asked = recipe.train.optim
    if device.is_gpu:
        return Choice(asked, "as train.optim says")
    value = _ON_CPU.get(asked, asked)
    if value == asked:
        return Choice(asked, "as train.optim says")
    why = (
        "the fused form of the same sums"
        if asked == "adamw_torch"
        else f"{asked} needs a GPU; the same AdamW in float32"
    )
    return Choice(value, why)


# Below it Unsloth recomputes without moving anything to main memory (unsloth/models/_utils.py,
# apply_unsloth_gradient_checkpointing).
OFFLOADED_FROM_TOKENS = 512


def choose_checkpointing(recipe: Recipe, engine: str, device: Device) -> Choice:
    """How activations are kept: `"unsloth"` is only known to Unsloth, and is plain recomputation on a processor."""
    asked = recipe.train.gradient_checkpointing
    if asked == "unsloth" and engine != "unsloth":
        return Choice(True, 'plain recomputation: "unsloth" checkpointing belongs to Unsloth')
    if asked == "unsloth" and device.is_gpu and recipe.model.max_seq_length < OFFLOADED_FROM_TOKENS:
        return Choice(True, f"plain recomputation: Unsloth offloads from max_seq_length {OFFLOADED_FROM_TOKENS} on")
    if asked == "unsloth" and not device.is_gpu:
        return Choice("unsloth", "plain recomputation on a processor; false would be about twice as fast")
    return Choice(asked, "as train.gradient_checkpointing says")


def choose_batching(recipe: Recipe, engine: str, device: Device) -> dict[str, Choice]:
    """Whether `packing` and `group_by_length` are active: packed where examples stay apart, else grouped."""
    train, attention = recipe.train, recipe.model.attn_implementation
    if not train.packing:
        packing = Choice(False, "not asked for")
    elif engine == "unsloth" and device.is_gpu:
        packing = Choice(True, "Unsloth's attention keeps packed examples apart")
    elif engine == "unsloth":
        packing = Choice(False, "Unsloth's CPU backend switches it off")
    elif attention == "flex_attention":
        packing = Choice(False, "not proven to keep packed examples apart with flex_attention")
    else:
        # transformers masks by position (masking_utils.py, find_packed_sequence_indices); a test proves it.
        packing = Choice(True, "transformers keeps packed examples apart by their positions")
    if not train.group_by_length:
        grouping = Choice(False, "not asked for")
    elif packing.value:
        grouping = Choice(False, "packing is active: packed rows are all of one length")
    elif device.is_gpu and engine == "unsloth":
        grouping = Choice(True, "asked for; Unsloth flattens batches on this GPU, so it saves no padding here")
    else:
        grouping = Choice(True, "batches of like length need little padding")
    return {"train.packing": packing, "train.group_by_length": grouping}


def choose_accumulation(recipe: Recipe, devices: int, packing: bool, per_row: float | None) -> Choice:
    """Micro-batches per optimizer step; value None while it depends on token lengths that are not known yet.

    `per_row`: examples in a packed row, None before they are tokenized.
    """
    train = recipe.train
    batch = train.per_device_train_batch_size
    if train.effective_batch_size is None:
        if train.gradient_accumulation_steps is None:
            return Choice(1, "the default")
        return Choice(train.gradient_accumulation_steps, "asked for")
    size = train.effective_batch_size
    if not packing:
        value = max(1, math.ceil(size / (batch * devices)))
        return Choice(value, f"{size} examples per step / (batch {batch} x {devices} device{'s' * (devices > 1)})")
    if per_row is None:
        return Choice(None, "depends on how many examples a packed row holds; known once the rows are tokenized")
    value = max(1, round(size / (batch * devices * per_row)))
    return Choice(
        value, f"{size} examples per step / (batch {batch} x {devices} x {per_row:.2f} examples in a packed row)"
    )
