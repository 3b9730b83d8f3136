"""How many bytes a run writes, against what is free."""

from __future__ import annotations

from dataclasses import dataclass

from fastft.planning.trained import count_trained_weights
from fastft.probe.architecture import Architecture
from fastft.probe.base_model import BaseModel
from fastft.recipe.export_formats import FOLDER_FORMATS, GGUF
from fastft.recipe.model import Recipe
from fastft.recipe.quantizations import DEFAULT_QUANTIZATION, QUANTIZATIONS

# Metrics, logs, tokenizer files and the manifest of a run, measured on the quickstart and rounded up.
SMALL_FILES_BYTES = 32 * 1024**2
# Tokenizer, template and configuration of a base model: 17 MB of tokenizer.json for Llama 3, 33 MB for Gemma 3.
SMALL_MODEL_BYTES = 32 * 1024**2
# A trained weight in float32 with its two AdamW moments.
CHECKPOINT_BYTES_PER_WEIGHT = 12


@dataclass(frozen=True)
class Disk:
    """Bytes that a run needs where it is written. Parts are None while the base model's sizes are unknown.

    `download_bytes`: what the base model adds to its cache, 0 once it is there. `free_cache_bytes`: free space of a
    cache that stands on another disk; None where it shares that of the run.
    """

    adapter_weights: int | None
    adapter_bytes: int | None
    checkpoints_bytes: int | None
    merged_bytes: int | None
    gguf_bytes: int | None
    download_bytes: int | None
    needed_bytes: int
    free_bytes: int
    free_cache_bytes: int | None

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes and self.download_fits

    @property
    def download_fits(self) -> bool:
        """Whether a cache of its own has room for the base model."""
        return self.free_cache_bytes is None or (self.download_bytes or 0) <= self.free_cache_bytes


def _download(model: BaseModel, architecture: Architecture | None) -> int | None:
    """Bytes that the base model adds to its cache, None where unknown: 16 bits a weight, converted ones 32."""
    if model.is_here:
        return 0
    weight_bytes = 4 if model.source == "package" else 2
    return None if architecture is None else weight_bytes * architecture.weights + SMALL_MODEL_BYTES


def make_disk(
    recipe: Recipe,
    model: BaseModel,
    architecture: Architecture | None,
    free_bytes: int,
    free_cache_bytes: int | None,
) -> Disk:
    """The bytes of checkpoints (one more than is kept, while the newest is written), adapter, exports and download."""
    weights = adapter = checkpoints = whole = None
    if architecture is not None:
        whole, weights = architecture.weights, count_trained_weights(recipe, architecture)
        kept = 0 if recipe.train.save_strategy == "no" else recipe.train.save_total_limit + 1
        adapter, checkpoints = 4 * weights, weights * CHECKPOINT_BYTES_PER_WEIGHT * kept
    elif model.weight_bytes is not None:
        whole = model.weight_bytes // 2
    merged = gguf = None
    if whole is not None:
        folders = (row for name, row in FOLDER_FORMATS.items() if name in recipe.export.formats)
        merged = sum(round(whole * row.weight_bytes) for row in folders)
        types = recipe.export.quantization or (DEFAULT_QUANTIZATION,)
        bits = sum(QUANTIZATIONS[name].bits for name in types)
        gguf = round(whole * bits / 8) if GGUF in recipe.export.formats else 0
    download = _download(model, architecture)
    parts = (adapter, checkpoints, merged, gguf, download if free_cache_bytes is None else 0)
    return Disk(
        adapter_weights=weights,
        adapter_bytes=adapter,
        checkpoints_bytes=checkpoints,
        merged_bytes=merged,
        gguf_bytes=gguf,
        download_bytes=download,
        needed_bytes=SMALL_FILES_BYTES + sum(part or 0 for part in parts),
        free_bytes=free_bytes,
        free_cache_bytes=free_cache_bytes,
    )
