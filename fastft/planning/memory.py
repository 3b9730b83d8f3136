"""Peak memory of a training step, by part. Every count is in bytes; n is the number of tokens in one micro-batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fastft.planning.trained import NO_LAYERS, FullLayers
from fastft.probe.architecture import Architecture
from fastft.recipe.optimizers import OPTIMIZERS, Value

Checkpointing = Literal["none", "keep", "offload"]
Head = Literal["plain", "fused"]

# NF4 with double quantization: 4 bits a weight, 8 bits for each block of 64, 32 for each 256 of those (Dettmers et al.
# 2023, section 3): 4.127 bits.
NF4_BYTES_PER_WEIGHT, NF4_BLOCK = 0.5159, 64
# Bytes a vocabulary entry of a token's logits: 16-bit logits 2, float32 copy 4, shifted copy 4, float32 gradient 4,
# 16-bit gradient 2. On a processor in float32: logits, the shifted copy, the log-softmax, its gradient, that of the
# logits, and the copy that TRL takes its accuracy from (measured: benchmarks/forecast_cpu.json).
PLAIN_HEAD_BYTES = 16.0
CPU_HEAD_BYTES = 24.0
# Unsloth's fused loss makes float32 logits of some rows at a time (unsloth_zoo/fused_losses/fused_linear.py,
# fused_linear_rows and _budget_bytes): a power of two, at least 512 and at most 4,096, within 2 GiB.
FUSED_BYTES, FUSED_LEAST_LOGITS, FUSED_MOST_ROWS, FUSED_BUDGET_BYTES = 4, 512 * 151_936, 4096, 2 * 1024**3
# CUDA context, cuBLAS, workspaces: with it, the sum meets the published peaks of tests/planning/memory_cases.toml.
GPU_FRAMEWORK_BYTES = 600_000_000


@dataclass(frozen=True)
class MemorySettings:
    """What the peak depends on besides the model and the number of tokens.

    `weight_bytes`: of one weight that is not quantized. `trained_bytes`: of one trained weight and of its gradient.
    `keeps_head_in_float32`: PEFT's preparation of a 4-bit model does, Unsloth does not. `fused_layers`: whether
    activations inside a layer are recomputed by fused kernels (Unsloth) or kept as plain operations leave them.
    `keeps_attention`: whether attention is computed as a whole matrix, heads x length numbers a token, and kept.
    `texts_per_row`: 2 where a row is a pair, whose texts attend each to itself alone.
    `full_layers`: those that are trained in full beside the adapter.
    `holds_gradients`: gradients of an earlier micro-batch are there while the next one runs. Without accumulation they
    take the room that activations leave.
    """

    load_in_4bit: bool
    full_finetuning: bool
    rank: int
    targets: tuple[str, ...]
    optimizer: str
    checkpointing: Checkpointing
    head: Head
    fused_layers: bool
    keeps_head_in_float32: bool
    weight_bytes: int = 2
    trained_bytes: int = 4
    head_bytes: float = PLAIN_HEAD_BYTES
    keeps_attention: bool = False
    holds_gradients: bool = True
    framework_bytes: int = GPU_FRAMEWORK_BYTES
    texts_per_row: int = 1
    full_layers: FullLayers = NO_LAYERS
    optim_args: Mapping[str, Value] = field(default_factory=dict)

    def trained_weights(self, model: Architecture) -> int:
        """The number of weights that get a gradient and the optimizer's state."""
        if self.full_finetuning:
            return model.weights
        return model.adapter_weights(self.rank, self.targets) + self.full_layers.weights(model)


@dataclass(frozen=True)
class PeakMemory:
    """Peak bytes of a training step by part, against what the device has.

    `activations_bytes`: saved for the backward pass, and what one layer works on. `logits_bytes`: the output layer.
    `framework_bytes`: context, workspaces and libraries. None of it is measured here: the formulas say how they fare.
    """

    base_weights_bytes: int
    kept_weights_bytes: int
    adapter_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    workspace_bytes: int
    framework_bytes: int
    tokens: int
    device_bytes: int

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.device_bytes

    @property
    def parts(self) -> dict[str, int]:
        """Every part by its name, in the order in which they are filled."""
        whole = ("tokens", "device_bytes")
        return {name.removesuffix("_bytes"): value for name, value in vars(self).items() if name not in whole}


def forecast_memory(
    model: Architecture, settings: MemorySettings, tokens: int, device_bytes: int, length: int = 0
) -> PeakMemory:
    """The peak of one step on a micro-batch of `tokens`, padding included, in rows of `length`.

    Weights are there all the time. Beside them stands either what a layer works on or what the output layer works on,
    whichever is more: the two are not alive together.
    """
    layers, head = _per_token(model, settings)
    # What the output layer needs beyond a layer counts as logits.
    activations = tokens * (_saved_per_token(model, settings, length) + layers)
    logits = max(0.0, tokens * (head - layers) + _fused_logits(model, settings, tokens))
    size = settings.weight_bytes
    head_size = 4 if settings.keeps_head_in_float32 and settings.load_in_4bit else size
    trained = settings.trained_weights(model)
    gradients = settings.trained_bytes * trained
    return PeakMemory(
        base_weights_bytes=round((NF4_BYTES_PER_WEIGHT if settings.load_in_4bit else size) * model.body_weights),
        kept_weights_bytes=head_size * model.vocabulary_weights + size * model.small_weights,
        adapter_bytes=0 if settings.full_finetuning else settings.trained_bytes * trained,
        gradients_bytes=round(max(0.0, gradients if settings.holds_gradients else gradients - activations - logits)),
        optimizer_bytes=round(OPTIMIZERS[settings.optimizer].state_bytes_with(settings.optim_args) * trained),
        activations_bytes=round(activations),
        logits_bytes=round(logits),
        # One projection is expanded at a time.
        workspace_bytes=size * model.largest_projection_weights if settings.load_in_4bit else 0,
        framework_bytes=settings.framework_bytes,
        tokens=tokens,
        device_bytes=device_bytes,
    )


def most_tokens(model: Architecture, settings: MemorySettings, limit_bytes: float, length: int = 0) -> int:
    """The largest number of tokens, in rows of `length`, whose peak stays within `limit_bytes`; 0 if nothing fits."""
    empty = forecast_memory(model, settings, 0, 0).peak_bytes
    per_token = _saved_per_token(model, settings, length) + max(_per_token(model, settings))
    # More than fit: what the fused loss works on is not counted in it.
    most = max(0, int((limit_bytes - empty) / per_token))

    def peak_bytes(tokens: int) -> int:
        return forecast_memory(model, settings, tokens, 0, length).peak_bytes

    return bisect_right(range(1, most + 1), limit_bytes, key=peak_bytes)


def _fused_logits(model: Architecture, settings: MemorySettings, tokens: int) -> int:
    """Bytes of the logits that Unsloth's fused loss works on at once, however many tokens there are.

    TRL's own kernel, which plain transformers take, keeps none.
    """
    if settings.head != "fused" or not settings.fused_layers:
        return 0
    least = min(max(_power_of_two(FUSED_LEAST_LOGITS / model.vocabulary), 512), FUSED_MOST_ROWS)
    rows = max(_power_of_two(tokens * model.hidden / model.vocabulary), least)
    rows = min(rows, FUSED_MOST_ROWS, FUSED_BUDGET_BYTES // (model.vocabulary * FUSED_BYTES), tokens)
    return rows * model.vocabulary * FUSED_BYTES


def _power_of_two(value: float) -> int:
    """The largest power of two that is at most `value`, and 1 for less."""
    return 1 << max(0, int(value).bit_length() - 1)


def _saved_per_token(model: Architecture, settings: MemorySettings, length: int) -> float:
    """Bytes a token that every layer keeps for the backward pass.

    With checkpointing, the input of each layer in 16 bits; Unsloth moves it to main memory, through two buffers of that
    size. Without, all that the layer's backward pass reads.
    """
    if settings.checkpointing == "offload":
        return 2.0 * settings.weight_bytes * model.hidden
    if settings.checkpointing == "keep":
        return settings.weight_bytes * model.hidden * model.layers
    # transformers has no fused attention for BLOOM's position biases.
    keeps_attention = settings.keeps_attention or model.layout == "bloom"
    matrix = settings.weight_bytes * model.heads * length / settings.texts_per_row if keeps_attention else 0
    return model.layers * (saved_in_layer(model, settings) + matrix)


def saved_in_layer(model: Architecture, settings: MemorySettings) -> float:
    """Bytes a token that one layer keeps for its backward pass when nothing is recomputed.

    Frozen projections keep nothing; LoRA keeps each input it reads (the normed states, the attention's output, the
    product of the gate) and its r values; the norms keep their inputs, attention its query, key, value and output, the
    gate its two halves, the activated one and their product. Fused kernels recompute these two (an H100 allocates 63.7
    KB a token and layer of Llama-3.2-1B: measured in memory_cases.toml); without them keys and values stand repeated
    for every head. The same tensors are kept when the projections themselves are trained.
    """
    hidden, query, inner = model.hidden, model.query_width, model.inner
    key_value = model.key_value_width if settings.fused_layers else query
    kept = 4 * hidden + 3 * query + 2 * key_value + (2 if settings.fused_layers else 4) * inner + 7 * settings.rank
    # The attention's backward pass also reads one float32 number a head.
    return float(settings.weight_bytes * kept + 4 * model.heads)


def _per_token(model: Architecture, settings: MemorySettings) -> tuple[float, float]:
    """Bytes a token that one layer, and that the output layer, work on at their peak.

    Layer, fused (Unsloth's kernels): what it saves, the gradient of the gate's product and those of three hidden
    states. Layer of plain operations (transformers and PEFT): 16-bit copies of 14 hidden states, three times query, key
    and value, 7 of the inner width, and one float32 hidden state. Head, plain: see PLAIN_HEAD_BYTES. Head, fused (cut
    cross-entropy: Wijmans et al. 2024; TRL 1.15's own kernel): 6 hidden states beside what `_fused_logits` counts. They
    meet the measured and the published peaks in tests/planning/memory_cases.toml.
    """
    hidden, inner, scale = model.hidden, model.inner, settings.weight_bytes / 2
    saved = saved_in_layer(model, settings)
    if settings.fused_layers:
        layer = saved + scale * 2 * (inner + 3 * hidden)
    else:
        attention = model.query_width + 2 * model.key_value_width
        layer = scale * 2 * (14 * hidden + 3 * attention + 7 * inner) + 8 * hidden
    if settings.checkpointing == "none":
        # The layer's working set is what it saves; only what the backward pass adds comes on top.
        layer -= min(layer, saved)
    head = settings.head_bytes * model.vocabulary if settings.head == "plain" else 12.0 * hidden
    return layer, head
