"""What `fastft tune` measured of set-ups of what a recipe leaves open: kept in the cache folder, read by plans."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fastft.errors import MachineError
from fastft.files.cache import cache_folder
from fastft.files.records import read_record, write_record
from fastft.planning.choices import Choices
from fastft.planning.measured import VERSIONS
from fastft.probe.architecture import Architecture
from fastft.recipe.model import Recipe

if TYPE_CHECKING:
    from fastft.planning.facts import Facts


@dataclass(frozen=True)
class SetUp:
    """What a recipe may leave open, decided in one of the possible ways."""

    per_device_train_batch_size: int
    packing: bool
    recomputes: bool
    load_in_4bit: bool
    dtype: str

    @property
    def words(self) -> str:
        """`batch 8, recomputed, packed, 4-bit, bfloat16`, without what is off."""
        on = {"packed": self.packing, "recomputed": self.recomputes, "4-bit": self.load_in_4bit}
        batch = f"batch {self.per_device_train_batch_size}"
        return ", ".join((batch, *(name for name, is_on in on.items() if is_on), self.dtype))


@dataclass(frozen=True)
class Probe:
    """A few real steps with one set-up, in a process that was given `limit_bytes` of memory.

    `tokens_per_second`: real ones, padding not counted; `peak_bytes`: of a step with the longest rows, with all that
    the process holds. None where it failed: then `wrong` says why, and `out_of_memory` whether memory was too small.
    """

    set_up: SetUp
    limit_bytes: int
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    out_of_memory: bool = False
    wrong: str = ""


@dataclass(frozen=True)
class KeptProbes:
    """probes.json: by what probes must have in common with a run to tell of it (`probes_key`), the newest of each."""

    SCHEMA: ClassVar[int] = 1

    probes: dict[str, tuple[Probe, ...]] = field(default_factory=dict)


def probes_file() -> Path:
    """Where the probes are kept."""
    return cache_folder() / "probes.json"


def kept_probes(path: Path) -> Mapping[str, tuple[Probe, ...]]:
    """The probes in the file at `path`; none where it is missing or damaged, since they can be made again."""
    try:
        found = read_record(path, KeptProbes)
    except MachineError:
        return {}
    return {} if found is None else found.probes


def keep_probes(path: Path, key: str, probes: Sequence[Probe]) -> None:
    """Add probes to the file at `path`; each replaces an older one of the same set-up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = dict(kept_probes(path))
    newest = {probe.set_up: probe for probe in (*known.get(key, ()), *probes)}
    write_record(path, KeptProbes({**known, key: tuple(newest.values())}))


def set_up_of(choices: Choices) -> SetUp:
    """The set-up of a plan."""
    return SetUp(
        choices.per_device_train_batch_size.value,
        choices.packing.value,
        choices.recomputes,
        choices.load_in_4bit.value,
        choices.dtype.value,
    )


def probes_key(recipe: Recipe, facts: Facts, engine: str, model: Architecture | None) -> str | None:
    """What a probe and a run must have in common; None while the lengths of the rows are unknown or estimated."""
    if model is None or not facts.lengths or (facts.rows is not None and facts.rows.estimate is not None):
        return None
    mean, longest = sum(facts.lengths) / len(facts.lengths), max(facts.lengths)
    trained = "all weights" if recipe.model.full_finetuning else f"rank {recipe.lora.r}"
    parts = (
        f"{facts.device.name}, threads {os.environ.get('OMP_NUM_THREADS', 'all')}, {facts.processes} processes",
        f"{model.layers}x{model.hidden}x{model.inner}, {model.vocabulary} tokens",
        f"{recipe.task}, {engine}, {trained}, {recipe.train.optim}",
        f"rows of {mean:.2g}, at most {longest:.2g} of {recipe.row_tokens}",
        f"{recipe.train.examples_per_step or 'written'} examples a step",
        ", ".join(f"{name} {facts.installed.get(name, 'none')}" for name in VERSIONS),
    )
    return " | ".join(parts)
