"""What share of a device's peak earlier runs reached on this machine: kept in the cache folder, read by plans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fastft.errors import MachineError
from fastft.files.cache import cache_folder
from fastft.files.records import read_record, write_record
from fastft.planning.batching import UnknownBatching
from fastft.planning.products import forget_products, products_file, products_key
from fastft.planning.throughput import kind_of
from fastft.planning.timing import Time, UnknownTime
from fastft.probe.architecture import Architecture

if TYPE_CHECKING:
    from fastft.planning.batching import Mode, Padding
    from fastft.planning.choices import Choices
    from fastft.planning.facts import Facts
    from fastft.planning.plan import Plan
    from fastft.recipe.model import Recipe

# A shorter training is mostly kernels that are compiled and memory that is first touched.
SHORTEST_SECONDS = 60.0
KEPT_RUNS = 5
# More than this of what a processor was measured to multiply is no training: then the measurement was wrong.
MOST_SHARE = 0.95
VERSIONS = ("torch", "transformers", "unsloth")
Measured = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Throughput:
    """throughput.json: by the kind of run (`rate_key`), the shares of the peak that the newest runs reached."""

    SCHEMA: ClassVar[int] = 1

    shares: dict[str, tuple[float, ...]] = field(default_factory=dict)


def throughput_file() -> Path:
    """Where the shares are kept."""
    return cache_folder() / "throughput.json"


def measured_shares(path: Path) -> Measured:
    """The shares in the file at `path`; none where it is missing or damaged, since a run can measure them again."""
    try:
        found = read_record(path, Throughput)
    except MachineError:
        return {}
    # A share of 0 would be a run without an end: version 0.1 rounded those of tiny models on a stalled machine to it.
    kept = {} if found is None else {key: tuple(filter(_is_share, shares)) for key, shares in found.shares.items()}
    return {key: shares for key, shares in kept.items() if shares}


def _is_share(number: float) -> bool:
    return math.isfinite(number) and number > 0


def rate_key(recipe: Recipe, facts: Facts, choices: Choices, model: Architecture | None, mode: Mode) -> str:
    """What runs must have in common for one's share of the peak to forecast another's."""
    sizes = "" if model is None else f"{model.layers}x{model.hidden}x{model.inner}, {model.vocabulary} tokens"
    batch = f"batch {choices.per_device_train_batch_size.value}, at most {recipe.row_tokens}"
    versions = ", ".join(f"{name} {facts.installed.get(name, 'none')}" for name in VERSIONS)
    parts = (
        facts.device.name,
        sizes,
        kind_of(recipe, choices),
        f"{mode}, {batch}",
        choices.dtype.value,
        choices.engine.value,
    )
    # A share of a measured peak is none of one by cores and clock.
    peak = "of measured products" if facts.product(model, choices.dtype.value) else "of a table"
    return " | ".join((*parts, "recomputed" if choices.recomputes else "kept", peak, versions))


def keep_rate(recipe: Recipe, facts: Facts, plan: Plan, model: Architecture | None, seconds: float) -> None:
    """Keep what was reached where the training that `plan` forecasts took `seconds`, for the next such plan.

    Where that is more than the processor was measured to multiply, it was measured while it was busy: the measurement
    is forgotten instead, and made again.
    """
    if isinstance(plan.batching, UnknownBatching) or isinstance(plan.time, UnknownTime):
        return
    key = rate_key(recipe, facts, plan.choices, model, plan.batching.active)
    share = share_of(plan.time, plan.batching.padding, seconds)
    if share > MOST_SHARE:
        if model is not None:
            forget_products(products_file(), products_key(facts.device, model, facts.installed))
    elif share > 0 and seconds >= SHORTEST_SECONDS:
        keep_share(throughput_file(), key, share)


def share_of(time: Time, padding: Padding, seconds: float) -> float:
    """The share of the peak that a run of `time` reached, whose training took `seconds`; 0 where it cannot be known."""
    at_peak = time.tokens / (1 - padding.padding_share) * time.work.total / time.rate.peak
    # What is forecast beyond the arithmetic, such as expanding 4-bit weights, is no part of the share.
    beside = time.seconds.likely - at_peak / time.rate.share.middle
    return at_peak / (seconds - beside) if seconds > beside else 0.0


def keep_share(path: Path, key: str, share: float) -> None:
    """Add a share to those of the newest runs in the file at `path`."""
    known = measured_shares(path)
    newest = (*known.get(key, ()), float(f"{share:.4g}"))[-KEPT_RUNS:]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, Throughput({**known, key: newest}))
