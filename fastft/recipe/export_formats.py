"""The formats that `export.formats` can name. GGUF has a file for each of its types; the others are folders, here."""

from __future__ import annotations

from dataclasses import dataclass

GGUF = "gguf"


@dataclass(frozen=True)
class FolderFormat:
    """One format that is a folder of safetensors: disk forecast, export, parity gate and model card read it here."""

    name: str
    library: str
    """What loads it, as the Hub's model cards call it."""
    weight_bytes: float
    """Bytes a weight of the base model that it takes; an adapter holds none of them."""
    most_mean_kl: float
    """The largest mean KL divergence from the trained model, in nats a token (see fastft.recipe.quantizations)."""
    most_kl: float
    """The largest KL divergence at one token."""
    bar: float
    """Share of positions whose next token must be the trained model's (see fastft.exports.parity)."""


_ROWS = (
    FolderFormat("adapter", "peft", 0.0, 0.0045, 0.13, bar=0.99),
    FolderFormat("merged_16bit", "transformers", 2.0, 0.0045, 0.13, bar=0.99),
    # NF4 with double quantization takes 0.516 bytes; embeddings and head keep 16 bits, an eighth of an 8B model.
    FolderFormat("merged_4bit", "transformers", 0.71, 0.7, 4.8, bar=0.85),
)
FOLDER_FORMATS = {row.name: row for row in _ROWS}

# What users of other programs ask for: why fastft does not write it, and what to do.
REFUSED_FORMATS = {
    "merged_fp8": (
        "8-bit floats load only on GPUs that compute with them, so that a file could not be compared everywhere, and"
        " vLLM and SGLang make them of 16 bits while they load",
        "write merged_16bit, and serve it with --quantization fp8",
    ),
}


def export_formats() -> tuple[str, ...]:
    """Every name that `export.formats` takes."""
    return (*FOLDER_FORMATS, GGUF)
