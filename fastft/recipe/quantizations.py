"""The GGUF types that `export.quantization` can name: one row says all that any module asks of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    """One GGUF type: check, plan, disk forecast, export, parity gate, `explain` and the docs read it here."""

    name: str
    """What recipe and command line call it: llama.cpp's name in lower case."""
    tensor_type: str
    """The number type of most tensors; the K mixes give some of them more bits."""
    file_type: str
    """`gguf.LlamaFileType` of the file."""
    bits: float
    """Bits a weight, all tensors of Llama-3.1-8B together: those of llama.cpp's tools/quantize/README.md. A test adds
    them up from the mixes, which also gives the figures that llama.cpp does not list."""
    most_mean_kl: float
    """The largest mean KL divergence from the trained model, in nats a token: a few times what was measured
    (docs/benchmarks.md); 16 bits and more have room for larger models than those."""
    most_kl: float
    """The largest KL divergence at one token."""
    bar: float = 0.85
    """Share of positions whose next token must be the trained model's (see fastft.exports.parity)."""
    by_converter: bool = False
    """llama.cpp's convert_hf_to_gguf.py writes it by itself; the others need its quantizer after that."""


_ROWS = (
    Quantization("f32", "F32", "ALL_F32", 32.0, 0.0001, 0.002, bar=0.99, by_converter=True),
    Quantization("f16", "F16", "MOSTLY_F16", 16.0005, 0.0005, 0.01, bar=0.99, by_converter=True),
    Quantization("bf16", "BF16", "MOSTLY_BF16", 16.0005, 0.002, 0.025, bar=0.99, by_converter=True),
    Quantization("q8_0", "Q8_0", "MOSTLY_Q8_0", 8.5008, 0.022, 0.36, bar=0.98, by_converter=True),
    Quantization("q6_k", "Q6_K", "MOSTLY_Q6_K", 6.5633, 0.17, 2.8, bar=0.97),
    Quantization("q5_k_m", "Q5_K", "MOSTLY_Q5_K_M", 5.7036, 0.11, 0.8, bar=0.95),
    Quantization("q5_k_s", "Q5_K", "MOSTLY_Q5_K_S", 5.5704, 0.2, 0.9, bar=0.95),
    Quantization("q5_1", "Q5_1", "MOSTLY_Q5_1", 6.0377, 0.2, 1.5),
    Quantization("q5_0", "Q5_0", "MOSTLY_Q5_0", 5.5704, 0.2, 1.5),
    Quantization("q4_k_m", "Q4_K", "MOSTLY_Q4_K_M", 4.8944, 0.16, 4.8, bar=0.92),
    Quantization("q4_k_s", "Q4_K", "MOSTLY_Q4_K_S", 4.6672, 0.45, 4.8),
    Quantization("q4_1", "Q4_1", "MOSTLY_Q4_1", 5.1031, 0.45, 4.8),
    Quantization("q4_0", "Q4_0", "MOSTLY_Q4_0", 4.6358, 0.45, 4.8),
    Quantization("q3_k_l", "Q3_K", "MOSTLY_Q3_K_L", 4.2979, 0.45, 7.5),
    Quantization("q3_k_m", "Q3_K", "MOSTLY_Q3_K_M", 3.996, 0.45, 7.5),
    Quantization("q3_k_s", "Q3_K", "MOSTLY_Q3_K_S", 3.6429, 1.9, 8),
    Quantization("q2_k", "Q2_K", "MOSTLY_Q2_K", 3.1593, 3.8, 11),
)
QUANTIZATIONS = {row.name: row for row in _ROWS}
# What "gguf" alone asks for.
DEFAULT_QUANTIZATION = "q8_0"
