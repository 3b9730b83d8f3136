"""The facts that a plan is made from, and how they are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.added_tokens import unused_tokens
from fastft.data.sources import count_training_rows, evaluation_source
from fastft.data.unused import unused_notes
from fastft.files.atomic import free_bytes, may_write, on_one_disk
from fastft.files.cache import cache_folder
from fastft.planning.measured import Measured, measured_shares, throughput_file
from fastft.planning.probes import Probe, kept_probes, probes_file
from fastft.planning.products import Product, Products, kept_products, products_file, products_key
from fastft.probe.architecture import Architecture, architecture_of
from fastft.probe.base_model import BaseModel, find_base_model, hub_cache
from fastft.probe.device import Device, find_device
from fastft.probe.software import COMPILERS, find_compilers, installed
from fastft.probe.world import world_size
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.model import Recipe
from fastft.recipe.shardings import ZERO_STAGES

if TYPE_CHECKING:
    from fastft.data.prepare import Prepared


@dataclass(frozen=True)
class Estimate:
    """How token lengths were estimated where the tokenizer is not here. `error`: as a share, 0.2 is a fifth either way.

    `why`: what is missing.
    """

    how: str
    error: float
    why: str


@dataclass(frozen=True)
class RowFacts:
    """What is known of the training rows after tokenizing, and of the tokenizer.

    `lengths`: tokens of each training row, of a pair twice those of its longer text, as they are computed.
    `padded_tokens`: how many of them only fill up the shorter text. `unused_tokens`: added ones that no row holds.
    `trained_tokens`: those that carry loss.
    `lost_rows`, `lost_tokens`: what max_seq_length costs, by `overlong` ("drop", "truncate", ...); `longest`: tokens of
    the longest row before that.
    `notes`: what the rows say and has no effect.
    `split_rows`: conversations that became one row an answer, with `extra_tokens` more. `dropped`: how many rows lost
    what data.may_drop allows, by its name. `written_date`: the date that the chat template writes, if it does.
    `estimate`: None if the tokenizer counted; otherwise no count of tokens is exact, and `trained_tokens` is 0.
    """

    lengths: Sequence[int]
    eval_rows: int | None
    trained_tokens: int
    lost_rows: int
    lost_tokens: int
    longest: int
    overlong: str
    pads_with_end: bool
    template: str | None
    notes: tuple[str, ...] = ()
    split_rows: int = 0
    extra_tokens: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    written_date: str | None = None
    estimate: Estimate | None = None
    labels: tuple[str, ...] = ()
    padded_tokens: int = 0
    unused_tokens: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """The real tokens of all training rows."""
        return sum(self.lengths) - self.padded_tokens


@dataclass(frozen=True)
class Facts:
    """The inputs of a plan besides the recipe.

    `train_examples`, `eval_examples`: rows in the data, None where they cannot be counted here. `rows`: what is known
    once they are tokenized or estimated, else None and `rows_missing` says why. `free_disk_bytes`: free space where
    runs are written; `free_cache_bytes`: where base models are kept, None if that is the same disk. `read_only`: the
    folder of the runs where nothing may be written there, else None. `measured`: the
    rates of earlier runs here; `products`: what processors were measured to multiply; `probes`: what `fastft tune`
    measured. `processes`: how many this run is
    made of, one a GPU (see probe/world.py). `deepspeed`: the text of the configuration file that the recipe names.
    """

    device: Device
    installed: Mapping[str, str]
    base_model: BaseModel
    train_examples: int | None
    eval_examples: int | None
    free_disk_bytes: int
    rows: RowFacts | None = None
    rows_missing: str = "the rows are not tokenized yet"
    processes: int = 1
    measured: Measured = field(default_factory=dict)
    products: Mapping[str, Products] = field(default_factory=dict)
    probes: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)
    free_cache_bytes: int | None = None
    deepspeed: str | None = None
    read_only: str | None = None
    compilers: tuple[str, ...] = COMPILERS
    """Those of COMPILERS that are here: torch.compile calls the C++ one on a processor, Triton the C one on a GPU."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the rows, empty before they are read and where they have none."""
        return () if self.rows is None else self.rows.labels

    @property
    def lengths(self) -> Sequence[int] | None:
        """Tokens of each training row, None before they are tokenized."""
        return None if self.rows is None else self.rows.lengths

    def product(self, model: Architecture | None, dtype: str) -> Product | None:
        """What this processor was measured to multiply at the sizes of `model`; None on a GPU, or before a run."""
        if model is None or self.device.is_gpu:
            return None
        return self.products.get(products_key(self.device, model, self.installed), {}).get(dtype)


def find_facts(loaded: LoadedRecipe, runs_dir: Path) -> Facts:
    """The facts of this machine and the data that need no model and no tokenizer.

    Raises:
        MachineError: a local model that the recipe names is not there.
        DataError: a data file cannot be read.
    """
    recipe = loaded.recipe
    train_examples, eval_examples = example_counts(loaded)
    wanted = recipe.model
    pickled, where = not wanted.use_safetensors, loaded.where("model.id")
    base = find_base_model(wanted.id, wanted.revision, loaded.folder, where, pickled=pickled)
    cache = hub_cache() if base.source == "hub" else cache_folder()
    return Facts(
        device=find_device(),
        installed=installed(),
        compilers=find_compilers(),
        base_model=base,
        train_examples=train_examples,
        eval_examples=eval_examples,
        free_disk_bytes=free_bytes(runs_dir),
        read_only=None if may_write(runs_dir) else str(runs_dir),
        free_cache_bytes=None if on_one_disk(runs_dir, cache) else free_bytes(cache),
        processes=world_size(),
        measured=measured_shares(throughput_file()),
        deepspeed=_deepspeed_text(loaded),
        products=kept_products(products_file()),
        probes=kept_probes(probes_file()),
    )


def _deepspeed_text(loaded: LoadedRecipe) -> str | None:
    name = loaded.recipe.train.deepspeed
    path = None if name is None or name in ZERO_STAGES else loaded.folder / name
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None


def with_rows(facts: Facts, recipe: Recipe, prepared: Prepared) -> Facts:
    """`facts` with those of the prepared rows."""
    train, held_out = prepared.train, prepared.eval
    tokenizer = prepared.renderer.tokenizer
    read = sum(row.tokens for row in train.overlong)
    lengths = train.rows.widths
    rows = RowFacts(
        lengths=lengths,
        eval_rows=None if held_out is None else len(held_out.rows),
        trained_tokens=train.rows.trained_tokens,
        lost_rows=sum(1 for row in train.overlong if not row.kept_tokens),
        lost_tokens=read - sum(row.kept_tokens for row in train.overlong),
        longest=max((row.tokens for row in train.overlong), default=max(lengths, default=0)),
        overlong=recipe.data.overlong,
        pads_with_end=tokenizer.pad_token is not None and tokenizer.pad_token in tokenizer.stop_tokens,
        template=None if prepared.template is None else prepared.template.name,
        notes=tuple(unused_notes("training", train.unused)),
        split_rows=len(train.split),
        extra_tokens=sum(one.extra_tokens for one in train.split),
        dropped=dict(train.dropped),
        labels=() if prepared.labels is None else prepared.labels.names,
        padded_tokens=sum(lengths) - train.rows.tokens,
        written_date=None if prepared.template is None else prepared.template.written_date,
        unused_tokens=unused_tokens(tokenizer, train.rows),
    )
    return replace(facts, train_examples=len(lengths), eval_examples=rows.eval_rows, rows=rows)


def with_estimated_rows(facts: Facts, loaded: LoadedRecipe, why: str) -> Facts:
    """`facts` with lengths estimated from the text of the rows, because `why`; unchanged where none can be read.

    Raises:
        DataError: the data cannot be read.
        RecipeError: the chat template is unknown.
    """
    from fastft.data.estimate import estimate_rows

    recipe, architecture = loaded.recipe, architecture_of(loaded.recipe.model.id, facts.base_model.config)
    found = estimate_rows(
        recipe.data,
        loaded.folder,
        vocabulary=None if architecture is None else architecture.vocabulary,
        max_seq_length=recipe.model.max_seq_length,
        seed=recipe.train.seed,
        examples=facts.train_examples or 0,
        locate=loaded.where,
        own=recipe.labelled,
    )
    rows = RowFacts(
        lengths=[recipe.texts_per_row * length for length in found.lengths],
        eval_rows=facts.eval_examples,
        trained_tokens=0,
        lost_rows=found.lost_rows,
        lost_tokens=found.lost_tokens,
        longest=found.longest,
        overlong=recipe.data.overlong,
        pads_with_end=False,
        template=None,
        estimate=Estimate(found.how, found.error, why),
    )
    return replace(facts, train_examples=len(found.lengths), rows=rows) if found.lengths else facts


def example_counts(loaded: LoadedRecipe) -> tuple[int | None, int | None]:
    """Training and held-out rows in the data; None for rows on the Hub."""
    data = loaded.recipe.data
    trained, held_out = count_training_rows(data, loaded.folder), evaluation_source(data)
    if held_out is not None:
        return trained, held_out.count(loaded.folder)
    if data.eval_fraction is None or trained is None:
        return trained, None
    everything = count_training_rows(data.model_copy(update={"eval_fraction": None}), loaded.folder)
    return trained, None if everything is None else everything - trained
