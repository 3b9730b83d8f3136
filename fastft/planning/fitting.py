"""What would fit: the largest batch, the longest row, and whether checkpointing or 4-bit weights are needed at all."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields, replace
from typing import Any

from fastft.planning.choices import CheckpointingMode, Choice, Choices
from fastft.planning.memory import (
    CPU_HEAD_BYTES,
    PLAIN_HEAD_BYTES,
    MemorySettings,
    PeakMemory,
    forecast_memory,
    most_tokens,
)
from fastft.planning.trained import full_layers
from fastft.probe.architecture import Architecture
from fastft.probe.device import GIB, Device
from fastft.recipe.model import Recipe

# The rest stays free for fragmentation and for errors of the formulas; they meet published peaks within a tenth.
TARGET_SHARE = 0.9
# Python, torch, transformers and Unsloth in one process, without a model (measured: benchmarks/forecast_cpu.json).
CPU_FRAMEWORK_BYTES = 420_000_000


@dataclass(frozen=True)
class Target:
    """A batch and an accumulation that keep the rows of an optimizer step, and the peak of that step."""

    batch: int
    accumulation: int
    peak_bytes: int


@dataclass(frozen=True)
class Fitting:
    """What fits in 90 % of the device's memory, each with the other settings unchanged.

    `target` fills the device as far as that goes; None where no row fits, or where the rows of a step are unknown.
    """

    largest_batch: int
    longest_row: int
    needs_checkpointing: bool
    needs_4bit: bool
    target: Target | None

    def as_json(self) -> dict[str, Any]:
        """Every figure, those of the target as `target_batch`, `target_accumulation` and `target_peak_bytes`."""
        target = dict.fromkeys(field.name for field in fields(Target)) if self.target is None else vars(self.target)
        own = {name: value for name, value in vars(self).items() if name != "target"}
        return {**own, **{f"target_{name}": value for name, value in target.items()}}


@dataclass(frozen=True)
class MemoryForecast:
    """The peak of a step on a device, and what fits. `micro_batch`: the source of the number of tokens."""

    device: str
    micro_batch: str
    peak: PeakMemory
    fitting: Fitting

    def as_json(self) -> dict[str, Any]:
        """`peak_bytes`, `device_bytes`, `fits`, each part under its own name, and what would fit."""
        return {
            "device": self.device,
            "peak_bytes": self.peak.peak_bytes,
            "device_bytes": self.peak.device_bytes,
            "fits": self.peak.fits,
            "micro_batch_tokens": self.peak.tokens,
            "micro_batch": self.micro_batch,
            **{f"{name}_bytes": value for name, value in self.peak.parts.items()},
            "fitting": self.fitting.as_json(),
            "missing": "",
        }


@dataclass(frozen=True)
class UnknownMemory:
    """Why there is no forecast of memory, and its device and micro-batch."""

    device: str
    device_bytes: int
    micro_batch: str
    missing: str

    def as_json(self) -> dict[str, Any]:
        """What is known under the names of `MemoryForecast.as_json`, null for the rest; the parts are left out."""
        return {
            "device": self.device,
            "peak_bytes": None,
            "device_bytes": self.device_bytes,
            "fits": None,
            "micro_batch_tokens": None,
            "micro_batch": self.micro_batch,
            "fitting": None,
            "missing": self.missing,
        }


def memory_settings(recipe: Recipe, device: Device, choices: Choices) -> MemorySettings:
    """What the peak depends on, as the engine and the device really do it.

    On a GPU Unsloth fuses layers and loss, and its checkpointing moves the saved inputs to main memory; plain
    transformers with TRL 1.15 keeps layers and fuses the loss. On a processor everything is plain float32, and
    attention is computed as a whole matrix.
    """
    unsloth = choices.engine.value == "unsloth" and device.is_gpu
    offloads = choices.gradient_checkpointing.value == "unsloth" and unsloth
    number = 4 if choices.dtype.value == "float32" else 2
    whole = recipe.model.full_finetuning
    return MemorySettings(
        load_in_4bit=choices.load_in_4bit.value,
        full_finetuning=whole,
        rank=0 if whole else recipe.lora.r,
        targets=recipe.lora.target_modules,
        optimizer=choices.optim.value,
        optim_args=recipe.train.optim_args,
        checkpointing="none" if not choices.recomputes else "offload" if offloads else "keep",
        # A classifier's head has a row a label: next to nothing, as a fused loss.
        # Log-probabilities of preferences are taken from plain logits.
        head="fused" if recipe.task == "classification" or (device.is_gpu and recipe.task != "preference") else "plain",
        fused_layers=unsloth,
        keeps_head_in_float32=choices.engine.value == "transformers" and choices.load_in_4bit.value,
        weight_bytes=number,
        # Adapters are trained in float32; with full fine-tuning the weights themselves are.
        trained_bytes=number if whole else 4,
        head_bytes=PLAIN_HEAD_BYTES if device.is_gpu else CPU_HEAD_BYTES,
        keeps_attention=not device.is_gpu,
        texts_per_row=recipe.texts_per_row,
        full_layers=full_layers(recipe),
        holds_gradients=(choices.gradient_accumulation_steps.value or 1) > 1,
        **({} if device.is_gpu else {"framework_bytes": CPU_FRAMEWORK_BYTES}),
    )


def fit_checkpointing(
    choices: Choices, device: Device, model: Architecture | None, settings: MemorySettings, batch: int, row_tokens: int
) -> Choice[CheckpointingMode]:
    """What "auto" is: activations are kept where a micro-batch of `batch` full rows then stays within 90 % of memory.

    `settings`: those of `choices`, with recomputation.
    """
    on = choices.gradient_checkpointing
    if model is None:
        return replace(on, reason="the sizes of the base model are unknown, so activations are recomputed")
    kept = replace(settings, checkpointing="none")
    peak = forecast_memory(model, kept, batch * row_tokens, device.memory_bytes, row_tokens).peak_bytes
    needed = f"{peak / GIB:.1f} of {device.memory_bytes / GIB:.1f} GiB"
    if peak <= TARGET_SHARE * device.memory_bytes:
        return Choice(False, f"activations fit: {needed} with {batch} x {row_tokens:,} tokens; faster than recomputing")
    return replace(on, reason=f"keeping activations would take {needed}, more than {TARGET_SHARE:.0%}")


def find_fitting(
    model: Architecture,
    settings: MemorySettings,
    peak: PeakMemory,
    *,
    batch: int,
    row_tokens: int,
    rows_per_step: int | None,
) -> Fitting:
    """What fits the device of `peak`, when a micro-batch of `batch` rows has `row_tokens` tokens a row."""
    limit = TARGET_SHARE * peak.device_bytes
    largest = most_tokens(model, settings, limit, row_tokens) // row_tokens
    target = None
    if rows_per_step and largest:
        # The largest batch that divides the rows of a step, so that the effective batch stays the same.
        size = max(size for size in range(1, min(largest, rows_per_step) + 1) if rows_per_step % size == 0)
        filled = forecast_memory(model, settings, size * row_tokens, 0, row_tokens)
        target = Target(size, rows_per_step // size, filled.peak_bytes)

    def fits(changed: MemorySettings) -> bool:
        return forecast_memory(model, changed, peak.tokens, 0, row_tokens).peak_bytes <= limit

    return Fitting(
        largest_batch=largest,
        longest_row=_longest_row(model, settings, limit, batch),
        needs_checkpointing=settings.checkpointing != "none" and not fits(replace(settings, checkpointing="none")),
        needs_4bit=settings.load_in_4bit
        and not fits(replace(settings, load_in_4bit=False, keeps_head_in_float32=False)),
        target=target,
    )


def _longest_row(model: Architecture, settings: MemorySettings, limit: float, batch: int) -> int:
    """The longest row of which `batch` fit, found by halving: kept attention grows with the square of the length."""

    def peak_bytes(length: int) -> int:
        return forecast_memory(model, settings, batch * length, 0, length).peak_bytes

    lengths = range(1, most_tokens(model, settings, limit) // batch + 1)
    return bisect_right(lengths, limit, key=peak_bytes)
