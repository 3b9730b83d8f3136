"""What makes training on a processor fast: the numbers it multiplies, and how attention is computed."""

from __future__ import annotations

from fastft.planning.choices import Choice
from fastft.planning.facts import Facts
from fastft.probe.architecture import Architecture
from fastft.recipe.model import Recipe

# Below it little time is spent in products, and rounding gains nothing.
LEAST_WEIGHTS = 50_000_000
# Products in bfloat16 must be faster by this, as measured, before weights are rounded.
FASTER = 1.3
# Forward and backward of torch's fused attention against plain products, ms in bfloat16 on one thread (9 heads of 64):
# 12.5 and 6.6 at 4 x 128 tokens, 23.6 and 19.1 at 1 x 512, 54 and 94 at 1 x 1024. In float32 they are equal up to 512.
PLAIN_ATTENTION_TOKENS = 512


def choose_weights(recipe: Recipe, facts: Facts, model: Architecture | None) -> Choice[str]:
    """The type of frozen weights on a processor where the recipe leaves it open; adapters are in float32 always."""
    device = facts.device
    if not device.computes_bfloat16:
        return Choice("float32", f"{device.name} does not multiply bfloat16 in hardware")
    if recipe.train.bf16 is False:
        return Choice("float32", "train.bf16 asks for no bfloat16")
    if recipe.model.full_finetuning:
        return Choice("float32", "weights that are trained would lose small steps to rounding")
    if recipe.model.load_in_4bit is True:
        return Choice("float32", "4-bit weights are unpacked to float32 on a processor")
    if recipe.task != "sft" or facts.processes > 1 or recipe.train.deepspeed is not None:
        return Choice("float32", "bfloat16 on a processor is proven for answers learnt by one process")
    if model is None or model.weights < LEAST_WEIGHTS:
        return Choice("float32", "the model is too small to gain from bfloat16, or its size is unknown")
    own, rounded = facts.product(model, "float32"), facts.product(model, "bfloat16")
    if own is None or rounded is None:
        return Choice("bfloat16", f"{device.name} multiplies bfloat16 in hardware; the adapter stays in float32")
    times = rounded.flops / own.flops
    if times < FASTER:
        return Choice("float32", f"bfloat16 was measured to be {times:.1f} times as fast as float32 here")
    return Choice("bfloat16", f"measured {times:.1f} times as fast as float32 here; the adapter stays in float32")


def choose_attention(recipe: Recipe, facts: Facts, dtype: str, *, packing: bool) -> Choice[str]:
    """How attention is computed: "auto" is the default of the library that loads the model."""
    asked = recipe.model.attn_implementation
    if asked != "auto":
        return Choice(asked, "asked for by model.attn_implementation")
    longest = recipe.row_tokens
    if facts.lengths and not packing:
        longest = min(longest, max(facts.lengths))
    if facts.device.is_gpu or dtype != "bfloat16":
        return Choice("auto", "the default of the library that loads the model")
    if longest > PLAIN_ATTENTION_TOKENS:
        return Choice("auto", f"the library's default: rows of up to {longest:,} tokens")
    return Choice("eager", f"plain products: up to 3 times as fast in bfloat16 with rows of up to {longest:,} tokens")
