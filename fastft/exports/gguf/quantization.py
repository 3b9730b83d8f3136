"""Which number type each tensor of a GGUF file gets: llama.cpp's own mixes, as functions of names and shapes.

The rules follow `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp` for dense models without an importance
matrix; a test compares every mix with `llama_model_quantize` itself.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fastft.errors import Problem, RecipeError, Where, nearest
from fastft.recipe.quantizations import QUANTIZATIONS

# (elements, bytes) of one block of each type, from ggml-common.h.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
# What llama.cpp takes where rows are no multiple of 256.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class ModelFacts:
    """What the mixes ask of the model as a whole."""

    layers: int
    tied: bool
    """The output matrix is the token embedding."""
    grouped_heads: int
    """Query heads for each key-value head."""
    seventy_billion: bool
    """llama.cpp's 70B class (80 layers with grouped heads), whose value matrices get more bits."""


def check_quantization(name: str) -> str:
    """`name` in lower case, if it is known.

    Raises:
        RecipeError: it is not.
    """
    lower = name.lower()
    if lower not in QUANTIZATIONS:
        close = nearest(lower, QUANTIZATIONS)
        known = f"write {close}" if close else f"write one of {', '.join(QUANTIZATIONS)}"
        raise RecipeError(Problem(Where("export"), "quantization", "unknown GGUF quantization", known, got=name))
    return lower


def tensor_type(name: str, shape: tuple[int, ...], quantization: str, model: ModelFacts) -> tuple[str, str | None]:
    """(type, type that the shape did not allow or None) of the GGUF tensor `name` with shape (rows, columns)."""
    default = QUANTIZATIONS[quantization].tensor_type
    if len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return "F32", None
    if default in ("F32", "F16", "BF16"):
        return default, None
    columns = shape[-1]
    wanted = _mixed(name, columns, default, quantization, model)
    chosen = FALLBACKS.get(wanted, "F16") if columns % BLOCKS[wanted][0] else wanted
    if columns % BLOCKS[chosen][0]:
        chosen = "F16"
    return chosen, None if chosen == wanted else wanted


def tensor_bytes(shape: tuple[int, ...], kind: str) -> int:
    """The bytes of a tensor of `shape` in type `kind`."""
    elements, size = BLOCKS[kind]
    return math.prod(shape) // elements * size


def _mixed(name: str, columns: int, default: str, quantization: str, model: ModelFacts) -> str:
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        if columns % BLOCKS[default][0] or default == "Q8_0":
            return "Q8_0"
        return "Q6_K"
    match = LAYER.match(name)
    if match is None:
        return default
    layer = int(match[1])
    if name.endswith(("attn_v.weight", "attn_qkv.weight")):
        return _value_type(layer, default, quantization, model)
    if name.endswith("ffn_down.weight"):
        return _down_type(layer, default, quantization, model.layers)
    if name.endswith("attn_output.weight"):
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(quantization, default)
    return default


def _value_type(layer: int, default: str, quantization: str, model: ModelFacts) -> str:
    chosen = default
    if quantization == "q2_k":
        chosen = "Q4_K" if model.grouped_heads >= 4 else "Q3_K"
    elif quantization == "q3_k_m":
        chosen = "Q5_K" if layer < 2 else "Q4_K"
    elif quantization == "q3_k_l":
        chosen = "Q5_K"
    elif quantization in ("q4_k_m", "q5_k_m") and _gets_more_bits(layer, model.layers):
        chosen = "Q6_K"
    elif quantization == "q4_k_s" and layer < 4:
        chosen = "Q5_K"
    return "Q5_K" if model.seventy_billion and chosen in ("Q3_K", "Q4_K") else chosen


def _down_type(layer: int, default: str, quantization: str, layers: int) -> str:
    if quantization == "q2_k":
        return "Q3_K"
    if quantization == "q3_k_m":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if quantization == "q3_k_l":
        return "Q5_K"
    if quantization in ("q4_k_m", "q5_k_m") and _gets_more_bits(layer, layers):
        return "Q6_K"
    if quantization == "q4_k_s" and layer < layers // 8:
        return "Q5_K"
    return default


def _gets_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
