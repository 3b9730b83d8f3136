"""How many bytes a run writes, against what is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastft.probe.architecture import Architecture
from fastft.probe.base_model import BaseModel
from fastft.recipe.model import Recipe

# Metrics, logs, tokenizer files and the manifest of a run, measured on the quickstart and rounded up.
SMALL_FILES_BYTES = 32 * 1024**2
# A trained weight in float32 with its two AdamW moments.
CHECKPOINT_BYTES_PER_WEIGHT = 12
# Bytes a weight of a merged model. NF4 with double quantization takes 0.516; embeddings and head keep 16 bits, an
# eighth of an 8B model's weights.
MERGED_BYTES: Mapping[str, float] = {"merged_16bit": 2, "merged_4bit": 0.71}
# Bits a weight of each GGUF type. The k-quants, q8_0 and f16: llama.cpp, tools/quantize/README.md, Llama 3.1 8B
# (q3_k_m, which it leaves out, counts as q3_k_l); q4_0 to q5_1: their blocks, with the output layer in q6_k.
GGUF_BITS: Mapping[str, float] = {
    "f32": 32.0,
    "f16": 16.0005,
    "bf16": 16.0005,
    "q8_0": 8.5008,
    "q6_k": 6.5633,
    "q5_0": 5.57,
    "q5_1": 6.04,
    "q5_k_m": 5.7036,
    "q5_k_s": 5.5704,
    "q4_0": 4.64,
    "q4_1": 5.1,
    "q4_k_m": 4.8944,
    "q4_k_s": 4.6672,
    "q3_k_l": 4.2979,
    "q3_k_m": 4.2979,
    "q3_k_s": 3.6429,
}


@dataclass(frozen=True)
class Disk:
    """Bytes that a run needs where it is written. Parts are None while the base model's sizes are unknown."""

    adapter_weights: int | None
    adapter_bytes: int | None
    checkpoints_bytes: int | None
    merged_bytes: int | None
    gguf_bytes: int | None
    needed_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes


def count_trained_weights(recipe: Recipe, architecture: Architecture) -> int:
    """The number of trained weights: of the adapter, or with full fine-tuning all."""
    if recipe.model.full_finetuning:
        return architecture.weights
    return architecture.adapter_weights(recipe.lora.r, recipe.lora.target_modules)


def make_disk(recipe: Recipe, model: BaseModel, architecture: Architecture | None, free_bytes: int) -> Disk:
    """The bytes of checkpoints (one more than is kept, while the newest is written), adapter and exports."""
    weights = adapter = checkpoints = whole = None
    if architecture is not None:
        whole, weights = architecture.weights, count_trained_weights(recipe, architecture)
        kept = 0 if recipe.train.save_strategy == "no" else recipe.train.save_total_limit + 1
        adapter, checkpoints = 4 * weights, weights * CHECKPOINT_BYTES_PER_WEIGHT * kept
    elif model.weight_bytes is not None:
        whole = model.weight_bytes // 2
    merged = gguf = None
    if whole is not None:
        merged = sum(round(whole * size) for name, size in MERGED_BYTES.items() if name in recipe.export.formats)
        types = recipe.export.quantization or ("q8_0",)
        bits = sum(GGUF_BITS.get(name, 16.0) for name in types)
        gguf = round(whole * bits / 8) if "gguf" in recipe.export.formats else 0
    parts = (adapter, checkpoints, merged, gguf)
    return Disk(
        adapter_weights=weights,
        adapter_bytes=adapter,
        checkpoints_bytes=checkpoints,
        merged_bytes=merged,
        gguf_bytes=gguf,
        needed_bytes=SMALL_FILES_BYTES + sum(part or 0 for part in parts),
        free_bytes=free_bytes,
    )
