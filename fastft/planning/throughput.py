"""What training reaches of a GPU's peak: published rates of tokens, and the interval that they give a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastft.planning.choices import Choices
from fastft.planning.devices import SHEETS, Sheet
from fastft.planning.work import expand_seconds, work_per_token
from fastft.probe.architecture import KNOWN, PROJECTIONS, Architecture
from fastft.recipe.model import Recipe

Kind = Literal["4-bit LoRA", "16-bit LoRA", "full"]

LLAMA_FACTORY = "LLaMA-Factory wiki, Performance comparison: rank 8, batch 1"
TORCHTUNE = "torchtune README, Llama-3.1-8B: batch 2 x 2048, packed, compiled"
QWEN = "Qwen README, Profiling of Memory and Speed: FlashAttention 2, batch 1"
# Nobody published such a rate for the other cards. Their balance of arithmetic and bandwidth differs: an H100 has 3.2
# times an A100's arithmetic and 1.6 times its bandwidth, so what waits for memory takes up to twice the share.
OTHER_CARD = (0.6, 1.1)
# All rows are of 7 and 8 billion weights; below 3 billion the products are small and the kernels' start shows.
SMALL_WEIGHTS, SMALL_MODEL = 3e9, 0.6
# Other versions, drivers and clocks than those that were published; a single row is no interval.
MARGIN, MARGIN_OF_ONE = 0.1, 0.2


@dataclass(frozen=True)
class Published:
    """A published rate of training on one GPU: `tokens` in a micro-batch, none of them padding."""

    card: str
    model: str
    kind: Kind
    engine: str
    tokens: int
    tokens_per_second: float
    source: str
    rank: int = 8

    @property
    def sheet(self) -> Sheet:
        return SHEETS[self.card]

    @property
    def utilisation(self) -> float:
        """The share of the peak that the arithmetic reaches, recomputation included, without expanding 4-bit weights.

        All rows recompute activations, and their attention spans what a row holds.
        """
        model, whole = MODELS[self.model], self.kind == "full"
        work = work_per_token(
            model,
            adapter_weights=model.adapter_weights(self.rank, PROJECTIONS),
            full_finetuning=whole,
            recomputes=True,
            span=min(self.tokens, 2048) if self.source == TORCHTUNE else self.tokens,
        )
        seconds = 1 / self.tokens_per_second
        if self.kind == "4-bit LoRA":
            seconds -= expand_seconds(model, work, self.sheet.bandwidth) / self.tokens
        return work.total / seconds / self.sheet.flops


MODELS = {
    **KNOWN,
    "qwen-7b": Architecture(32, 4096, 11_008, 32, 32, 128, 151_936, False, has_attention_bias=True),
}
PUBLISHED = (
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "unsloth", 1024, 2556, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "unsloth", 2048, 3178, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "unsloth", 4096, 3413, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "unsloth", 8192, 3632, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "unsloth", 16_384, 4050, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "unsloth", 32_768, 2456, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "transformers", 1024, 2295, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "transformers", 2048, 2741, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "transformers", 4096, 2926, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "transformers", 8192, 3128, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "transformers", 16_384, 3542, LLAMA_FACTORY),
    Published("a100-40gb", "llama-2-7b", "4-bit LoRA", "transformers", 32_768, 2216, LLAMA_FACTORY),
    Published("a100-80gb", "qwen-7b", "16-bit LoRA", "transformers", 2048, 8 * 2048 / 5.2, QWEN, rank=64),
    Published("a100-80gb", "qwen-7b", "16-bit LoRA", "transformers", 4096, 8 * 4096 / 10.1, QWEN, rank=64),
    Published("a100-80gb", "qwen-7b", "16-bit LoRA", "transformers", 8192, 8 * 8192 / 21.3, QWEN, rank=64),
    Published("rtx4090", "llama-3.1-8b", "4-bit LoRA", "torchtune", 4096, 2413, TORCHTUNE),
    Published("rtx4090", "llama-3.1-8b", "16-bit LoRA", "torchtune", 4096, 3083, TORCHTUNE),
    Published("rtx4090", "llama-3.1-8b", "full", "torchtune", 4096, 1650, TORCHTUNE),
)


@dataclass(frozen=True)
class Share:
    """The share of a device's peak that training reaches, from `low` to `high`, and where that is known from."""

    low: float
    high: float
    source: str

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)


def kind_of(recipe: Recipe, choices: Choices) -> Kind:
    """What is trained, on weights of how many bits."""
    if recipe.model.full_finetuning:
        return "full"
    return "4-bit LoRA" if choices.load_in_4bit.value else "16-bit LoRA"


def published_share(sheet: Sheet, model: Architecture, kind: Kind, engine: str, tokens: float) -> Share:
    """The interval of the published rows that are most like a run on this card with `tokens` in a micro-batch."""
    rows = [row for row in PUBLISHED if row.kind == kind]
    # An A100 of either size is one chip, an H200 an H100 with other memory.
    same_card = any(row.sheet.flops == sheet.flops for row in rows)
    likeness: tuple[Callable[[Published], bool], ...] = (
        lambda row: row.sheet.flops == sheet.flops,
        lambda row: row.engine == engine,
        lambda row: tokens / 2 <= row.tokens <= tokens * 2,
    )
    for alike in likeness:
        rows = [row for row in rows if alike(row)] or rows
    shares = [row.utilisation for row in rows]
    margin = MARGIN_OF_ONE if len(rows) == 1 else MARGIN
    low, high = min(shares) * (1 - margin), max(shares) * (1 + margin)
    notes = [f"{len(rows)} published rate{'s' * (len(rows) > 1)} of {kind} on {' and '.join(_cards(rows))}"]
    if not same_card:
        low, high = low * OTHER_CARD[0], high * OTHER_CARD[1]
        notes.append(f"none on {sheet.name}")
    if model.weights < SMALL_WEIGHTS:
        low *= SMALL_MODEL
        notes.append("all of larger models")
    return Share(low, min(high, 0.9), ", ".join(notes))


def _cards(rows: list[Published]) -> list[str]:
    return list(dict.fromkeys(row.sheet.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for row in rows))
