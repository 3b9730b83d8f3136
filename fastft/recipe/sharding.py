"""How several processes can share one training, in the words of the recipe and of `fastft launch --engine`."""

from __future__ import annotations

from collections.abc import Mapping

from fastft.recipe.model import Recipe

# DeepSpeed's stages: 1 shares the optimizer's state among the ranks, 2 the gradients too, 3 the weights too.
ZERO_STAGES: Mapping[str, int] = {"zero1": 1, "zero2": 2, "zero3": 3}


def is_sharded(recipe: Recipe) -> bool:
    """Whether the ranks share more than rows: state, gradients or weights."""
    return recipe.train.deepspeed is not None or recipe.train.fsdp is not None


def sharding_override(engine: str) -> str | None:
    """What `--engine` sets in the recipe; None for DDP, which needs no key."""
    if engine == "ddp":
        return None
    return 'train.fsdp="fsdp2"' if engine == "fsdp2" else f'train.deepspeed="{engine}"'
