"""How many bytes a run writes, against what is free."""

from __future__ import annotations

from dataclasses import dataclass

from fastft.probe.base_model import BaseModel
from fastft.recipe.model import Recipe

# Metrics, logs, tokenizer files and the manifest of a run, measured on the quickstart and rounded up.
SMALL_FILES_BYTES = 32 * 1024**2
# A float32 adapter weight with its two AdamW moments.
CHECKPOINT_BYTES_PER_WEIGHT = 12


@dataclass(frozen=True)
class Disk:
    """Bytes that a run needs where it is written. Parts are None while the base model's sizes are unknown."""

    adapter_weights: int | None
    checkpoints_bytes: int | None
    export_bytes: int | None
    needed_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes


def adapter_weights(recipe: Recipe, model: BaseModel) -> int | None:
    """The number of trained weights: r (in + out) for each adapted projection of a Llama-shaped model (Hu et al. 2021).

    With full fine-tuning, all weights. None where the sizes are not known.
    """
    config = model.config
    if recipe.model.full_finetuning:
        return None if model.weight_bytes is None else model.weight_bytes // 2
    try:
        hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
    except KeyError:
        return None
    head = config.get("head_dim") or hidden // heads
    key_value = head * config.get("num_key_value_heads", heads)
    sides = {
        "q_proj": hidden + head * heads,
        "k_proj": hidden + key_value,
        "v_proj": hidden + key_value,
        "o_proj": head * heads + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    return int(recipe.lora.r * layers * sum(sides.get(name, 0) for name in recipe.lora.target_modules))


def make_disk(recipe: Recipe, model: BaseModel, free_bytes: int) -> Disk:
    """The bytes of checkpoints (one more than is kept, while the newest is written), adapter and exports."""
    weights = adapter_weights(recipe, model)
    checkpoints = None
    if weights is not None:
        kept = 0 if recipe.train.save_strategy == "no" else recipe.train.save_total_limit + 1
        checkpoints = weights * (CHECKPOINT_BYTES_PER_WEIGHT * kept + 4)
    export: int | None = 0
    if set(recipe.export.formats) - {"adapter"}:
        # 16-bit weights once for each merged copy; a GGUF is never larger.
        copies = ("merged_16bit" in recipe.export.formats) + max(1, len(recipe.export.quantization)) * (
            "gguf" in recipe.export.formats
        )
        export = None if model.weight_bytes is None else model.weight_bytes * copies
    return Disk(
        adapter_weights=weights,
        checkpoints_bytes=checkpoints,
        export_bytes=export,
        needed_bytes=SMALL_FILES_BYTES + (checkpoints or 0) + (export or 0),
        free_bytes=free_bytes,
    )
