"""The measurement of a processor's matrix products, at the sizes of a model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from fastft.planning.products import Product, Products
from fastft.probe.architecture import Architecture

# Tokens of a small and of a large micro-batch.
FEW, MANY = 32, 512
# More weights than a cache holds, so that they are read from main memory, as in training.
WEIGHT_BYTES = 128 * 1024**2
# The best of so many rounds, but no new round after so many seconds: 4 times this in all.
ROUNDS, SECONDS = 20, 0.5


def measure_products(model: Architecture, *, bfloat16: bool) -> Products:
    """FLOP/s and the cost of reading the weights, in float32 and, where the processor computes in it, in bfloat16."""
    kinds = (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)
    return {str(kind).removeprefix("torch."): _measure(model, kind) for kind in kinds}


def _measure(model: Architecture, kind: torch.dtype) -> Product:
    count = max(1, min(model.layers, WEIGHT_BYTES // (model.inner * model.hidden * kind.itemsize)))
    weights = [torch.full((model.inner, model.hidden), 0.01, dtype=kind) for _ in range(count)]
    few, many = (_seconds(weights, tokens) for tokens in (FEW, MANY))
    per_token = many / MANY
    return Product(
        flops=round(2.0 * count * model.inner * model.hidden / per_token),
        reading_tokens=round(max(0.0, few / per_token - FEW), 1),
    )


def _seconds(weights: Sequence[torch.Tensor], tokens: int) -> float:
    """The shortest time of one round over all weights."""
    rows = torch.full((tokens, weights[0].shape[1]), 0.01, dtype=weights[0].dtype)
    best, end = float("inf"), time.perf_counter() + SECONDS
    with torch.inference_mode():
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(rows, weight)
            now = time.perf_counter()
            best = min(best, now - began)
            if now > end:
                break
    return best
