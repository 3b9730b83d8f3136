"""What would fit: the largest batch, the longest row, and whether checkpointing or 4-bit weights are needed at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastft.planning.choices import Choice
from fastft.planning.memory import (
    CPU_HEAD_BYTES,
    PLAIN_HEAD_BYTES,
    Memory,
    MemorySettings,
    forecast_memory,
    most_tokens,
)
from fastft.probe.architecture import Architecture
from fastft.probe.device import Device
from fastft.recipe.model import Recipe

# The rest stays free for fragmentation and for what the formulas miss; they meet published peaks within a tenth.
TARGET_SHARE = 0.9
# Python, torch, transformers and Unsloth in one process, without a model (measured: benchmarks/forecast_cpu.json).
CPU_FRAMEWORK_BYTES = 420_000_000


@dataclass(frozen=True)
class Fitting:
    """What the device has room for, each with the other settings as they are, within 90 % of its memory.

    `target_batch` x `target_accumulation` keeps the rows of an optimizer step and fills the device as far as that goes.
    """

    largest_batch: int
    longest_row: int
    needs_checkpointing: bool
    needs_4bit: bool
    target_batch: int | None
    target_accumulation: int | None
    target_peak_bytes: int | None


@dataclass(frozen=True)
class MemoryForecast:
    """The peak of a step on a device; `memory` and `fitting` are None while the base model's sizes are unknown.

    `micro_batch`: where the number of tokens comes from. `missing` says why nothing is known.
    """

    device: str
    device_bytes: int
    micro_batch: str
    memory: Memory | None
    fitting: Fitting | None
    missing: str

    @property
    def peak_bytes(self) -> int | None:
        return None if self.memory is None else self.memory.peak_bytes

    @property
    def fits(self) -> bool | None:
        return None if self.memory is None else self.memory.fits

    def as_json(self) -> dict[str, Any]:
        """`peak_bytes`, `device_bytes`, `fits`, each part under its own name, and what would fit."""
        memory = {} if self.memory is None else {f"{name}_bytes": value for name, value in self.memory.parts.items()}
        return {
            "device": self.device,
            "peak_bytes": self.peak_bytes,
            "device_bytes": self.device_bytes,
            "fits": self.fits,
            "micro_batch_tokens": None if self.memory is None else self.memory.tokens,
            "micro_batch": self.micro_batch,
            **memory,
            "fitting": None if self.fitting is None else asdict(self.fitting),
            "missing": self.missing,
        }


def memory_settings(recipe: Recipe, device: Device, choices: Mapping[str, Choice], engine: str) -> MemorySettings:
    """What the peak depends on, as the engine and the device really do it.

    On a GPU Unsloth fuses layers and loss, and its checkpointing moves the saved inputs to main memory; plain
    transformers with TRL 1.15 keeps layers and fuses the loss. On a processor everything is plain float32, and
    attention is computed as a whole matrix.
    """
    checkpointing = choices["train.gradient_checkpointing"].value
    unsloth = engine == "unsloth" and device.is_gpu
    number = 4 if choices["model.dtype"].value == "float32" else 2
    whole = recipe.model.full_finetuning
    return MemorySettings(
        load_in_4bit=recipe.model.load_in_4bit,
        full_finetuning=whole,
        rank=0 if whole else recipe.lora.r,
        targets=recipe.lora.target_modules,
        optimizer=str(choices["train.optim"].value),
        checkpointing="none"
        if checkpointing is False
        else "offload"
        if checkpointing == "unsloth" and unsloth
        else "keep",
        head="fused" if device.is_gpu else "plain",
        fused_layers=unsloth,
        keeps_head_in_float32=engine == "transformers" and recipe.model.load_in_4bit,
        weight_bytes=number,
        # Adapters are trained in float32; with full fine-tuning the weights themselves are.
        trained_bytes=number if whole else 4,
        head_bytes=PLAIN_HEAD_BYTES if device.is_gpu else CPU_HEAD_BYTES,
        keeps_attention=not device.is_gpu,
        holds_gradients=(choices["train.gradient_accumulation_steps"].value or 1) > 1,
        **({} if device.is_gpu else {"framework_bytes": CPU_FRAMEWORK_BYTES}),
    )


def fit(
    model: Architecture,
    settings: MemorySettings,
    memory: Memory,
    *,
    batch: int,
    row_tokens: int,
    rows_per_step: int | None,
) -> Fitting:
    """What fits the device of `memory`, when a micro-batch of `batch` rows has `row_tokens` tokens a row."""
    limit = TARGET_SHARE * memory.device_bytes
    largest = most_tokens(model, settings, limit, row_tokens) // row_tokens
    target = None
    if rows_per_step and largest:
        # The largest batch that divides the rows of a step, so that the effective batch stays what it was.
        target = max(size for size in range(1, min(largest, rows_per_step) + 1) if rows_per_step % size == 0)

    def fits(changed: MemorySettings) -> bool:
        return forecast_memory(model, changed, memory.tokens, 0, row_tokens).peak_bytes <= limit

    return Fitting(
        largest_batch=largest,
        longest_row=_longest_row(model, settings, limit, batch),
        needs_checkpointing=settings.checkpointing != "none" and not fits(replace(settings, checkpointing="none")),
        needs_4bit=settings.load_in_4bit
        and not fits(replace(settings, load_in_4bit=False, keeps_head_in_float32=False)),
        target_batch=target,
        target_accumulation=None if target is None or rows_per_step is None else rows_per_step // target,
        target_peak_bytes=None
        if target is None
        else forecast_memory(model, settings, target * row_tokens, 0, row_tokens).peak_bytes,
    )


def _longest_row(model: Architecture, settings: MemorySettings, limit: float, batch: int) -> int:
    """The longest row of which `batch` fit, found by halving: kept attention grows with the square of the length."""
    low, high = 0, most_tokens(model, settings, limit) // batch
    while low < high:
        middle = (low + high + 1) // 2
        if forecast_memory(model, settings, batch * middle, 0, middle).peak_bytes <= limit:
            low = middle
        else:
            high = middle - 1
    return low
