"""The process in which `fastft tune` takes its steps: reads set-ups from standard input, writes a probe for each.

One JSON object a line, in both directions: first `Order`, then `Question` after `Question`. Memory that runs out, or a
library that crashes, ends this process and not the one that asked.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastft.console import library_output_to
from fastft.engine_choice import select
from fastft.errors import FastftError, OutOfMemoryError
from fastft.planning.facts import Facts, find_facts, with_rows
from fastft.planning.learning_rates import RangePoint
from fastft.planning.plan import Plan, make_plan
from fastft.planning.probes import Probe, SetUp
from fastft.recipe.loader import LoadedRecipe, load
from fastft.runs.directory import RunDir
from fastft.stages.inputs import convert, prepare_rows

if TYPE_CHECKING:
    from fastft.data.prepare import Prepared
    from fastft.engine.model import Model, Tokenizer

# What the parent waits for before its first question.
READY = "ready"


@dataclass(frozen=True)
class Order:
    """What is trained: a recipe, in an engine, with so much memory; and the log for what libraries print."""

    recipe: str
    overrides: tuple[str, ...]
    engine: str
    limit_bytes: int
    log: str


@dataclass(frozen=True)
class Question:
    """A set-up, the keys of the recipe that ask for it, and the rows of each of its steps.

    `rates`: a learning rate for each step, where they are asked about: then each step is a line, the probe the last.
    """

    set_up: SetUp
    overrides: tuple[str, ...]
    rows_per_step: int
    rates: tuple[float, ...] = ()


def main() -> None:
    """Answer one question after another, until standard input ends."""
    order = Order(**_with_tuple(json.loads(sys.stdin.readline())))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with library_output_to(Path(order.log)), answers, tempfile.TemporaryDirectory() as folder:
        select(order.engine)
        try:
            for answer in _answers(order, sys.stdin, Path(folder), lambda line: print(line, file=answers, flush=True)):
                print(answer, file=answers, flush=True)
        except Exception:
            traceback.print_exc()  # while standard error is the log
            raise


def _with_tuple(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "overrides": tuple(values["overrides"])}


def _answers(order: Order, questions: TextIO, folder: Path, say: Callable[[str], None]) -> Iterator[str]:
    loaded = load(Path(order.recipe), order.overrides)
    facts = find_facts(loaded, folder)
    base = convert(facts.base_model, loaded.where("model.id"), print)
    rows = prepare_rows(loaded, base)
    facts = dataclasses.replace(with_rows(facts, loaded.recipe, rows), probes={})
    from fastft.engine.train import ran_out_of_memory

    yield READY
    bench = _Bench(rows, folder, lambda point: say(json.dumps(dataclasses.asdict(point))))
    for line in questions:
        values = json.loads(line)
        set_up, rates = SetUp(**values["set_up"]), tuple(values["rates"])
        question = Question(**_with_tuple({**values, "set_up": set_up, "rates": rates}))
        probe = Probe(question.set_up, order.limit_bytes)
        try:
            probe = bench.measure(probe, load(loaded.path, (*order.overrides, *question.overrides)), facts, question)
        except (FastftError, ValueError, RuntimeError, MemoryError) as error:
            traceback.print_exc()  # to the log
            said = error.problems[0].wrong if isinstance(error, FastftError) else " ".join(str(error).split())[:300]
            lacking = isinstance(error, OutOfMemoryError) or ran_out_of_memory(error)
            probe = dataclasses.replace(probe, out_of_memory=lacking, wrong=said)
        yield json.dumps(dataclasses.asdict(probe))


class _Bench:
    """Measures set-ups one after another, and loads a model only where the last one will not do."""

    def __init__(self, rows: Prepared, folder: Path, show: Callable[[RangePoint], None]) -> None:
        self._rows, self._folder, self._show = rows, folder, show
        self._loaded: tuple[object, Model, Tokenizer] | None = None

    def measure(self, probe: Probe, loaded: LoadedRecipe, facts: Facts, question: Question) -> Probe:
        """`probe` with its figures.

        Raises:
            OutOfMemoryError: memory ran out.
            FastftError: the set-up is not possible.
        """
        from fastft.engine.memory import limit_memory
        from fastft.engine.probing import measure_set_up, train_at_rates
        from fastft.engine.train import material_of

        plan = make_plan(loaded, facts, str(self._folder / "run"))
        if plan.set_up != question.set_up:
            return dataclasses.replace(probe, wrong=f"the plan makes {plan.set_up.words} of it")
        model, tokenizer = self._model(plan)
        limit_memory(probe.limit_bytes, facts.device.memory_bytes)
        material = material_of(loaded.recipe, self._rows, plan, tokenizer, 1)
        run = RunDir(self._folder / "run")
        if question.rates:
            rows, rates = question.rows_per_step, question.rates
            train_at_rates(plan, model, tokenizer, material, rates, rows, run, self._show)
            self._loaded = None  # its adapter is trained
            return probe
        found = measure_set_up(plan, model, tokenizer, material, question.rows_per_step, run)
        rate = float(f"{found.tokens_per_second:.4g}")
        return dataclasses.replace(probe, tokens_per_second=rate, peak_bytes=found.peak_bytes)

    def _model(self, plan: Plan) -> tuple[Model, Tokenizer]:
        from fastft.engine.memory import lift_limit
        from fastft.engine.model import load_model

        lift_limit()
        needs = (plan.calls.load, plan.calls.adapter, plan.choices.recomputes)
        if self._loaded is None or self._loaded[0] != needs:
            self._loaded = None  # makes room
            template = self._rows.template
            self._loaded = (needs, *load_model(plan, None if template is None else template.source))
        return self._loaded[1], self._loaded[2]


def overrides_of(set_up: SetUp, open_keys: Sequence[str], engine: str, examples_per_step: int | None) -> dict[str, str]:
    """The keys, as TOML, that ask for `set_up` where a recipe leaves `open_keys` open ("train.packing", ...)."""
    recomputed = '"unsloth"' if engine == "unsloth" else "true"
    asked = {
        "train.per_device_train_batch_size": str(set_up.per_device_train_batch_size),
        "train.packing": str(set_up.packing).lower(),
        "train.gradient_checkpointing": recomputed if set_up.recomputes else "false",
        "model.load_in_4bit": str(set_up.load_in_4bit).lower(),
        "model.dtype": f'"{set_up.dtype}"',
    }
    found = {key: value for key, value in asked.items() if key in open_keys}
    if "train.per_device_train_batch_size" in found and examples_per_step is not None:
        return {"train.effective_batch_size": str(examples_per_step), **found}
    return found


if __name__ == "__main__":
    main()
