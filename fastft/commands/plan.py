"""`fastft plan`: the plan of a recipe on this or a named device, once, or for several values of a key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastft.errors import MachineError, Problem, UsageError, Where, nearest
from fastft.planning.check import check
from fastft.planning.devices import named_device
from fastft.planning.facts import Facts, find_facts, with_estimated_rows, with_rows
from fastft.planning.plan import Plan, make_plan
from fastft.planning.scaling import Scaling, make_layout, make_scaling
from fastft.planning.sharding import sharing
from fastft.probe.hub import fetch_small_files
from fastft.recipe.loader import LoadedRecipe, load
from fastft.recipe.reference import fields
from fastft.recipe.wording import named_here
from fastft.report.plan import plan_page
from fastft.report.scaling import scaling_page
from fastft.report.what_if import what_if_page
from fastft.runs.directory import next_run_dir, run_name
from fastft.stages.inputs import prepare_rows

# Keys that change the rows: for each value the rows are prepared again.
_ROW_KEYS = ("data.", "model.id", "model.revision", "model.max_seq_length", "train.seed")


@dataclass(frozen=True)
class Question:
    """The options of `fastft plan`: another device, its memory, the price of its hour; and of a run on several."""

    runs_dir: Path
    device: str | None = None
    memory: str | None = None
    price_per_hour: float | None = None
    devices: int | None = None
    hosts: int | None = None
    link: str | None = None
    engine: str | None = None

    @property
    def is_of_several(self) -> bool:
        """Whether a run on several devices is asked about."""
        return any(option is not None for option in (self.devices, self.hosts, self.link, self.engine))


def scale(recipe: Path, overrides: Sequence[str], question: Question) -> tuple[Plan, Scaling]:
    """The plan of one GPU, and what several make of it.

    Raises:
        FastftError: the recipe, an option, the data or the base model cannot be used.
    """
    loaded = load(recipe, overrides)
    check(loaded)
    facts = dataclasses.replace(_facts(loaded, question), processes=1)
    layout = make_layout(
        facts, question.devices, question.hosts, question.link, question.engine or sharing(loaded, facts)
    )
    if layout.sharding.splits_weights:
        if loaded.recipe.model.engine == "unsloth":
            wrong = f"Unsloth keeps whole weights on each GPU, {layout.sharding.name} splits them"
            raise UsageError(Problem(Where("--engine"), "", wrong, 'write model.engine = "transformers"'))
        loaded = load(recipe, [*overrides, "model.engine=transformers"])
    made = _plan(loaded, facts, question)
    return made, make_scaling(loaded.recipe, facts, made, layout, question.price_per_hour)


def plan(recipe: Path, overrides: Sequence[str], question: Question) -> Plan:
    """The plan of a recipe, with real token lengths if the tokenizer is here or on the Hub, else with estimated ones.

    Raises:
        FastftError: the recipe, the device, the data, the template or the base model cannot be used.
    """
    loaded = load(recipe, overrides)
    check(loaded)
    return _plan(loaded, _facts(loaded, question), question)


def compare(loaded: LoadedRecipe, text: str, question: Question) -> tuple[str, list[tuple[str, Plan]]]:
    """The field of `key=v1,v2,...`, and the plan for each value; `key` may leave its section out.

    Raises:
        UsageError: the key is unknown or no value is given.
        FastftError: a value is not possible, or the data cannot be used.
    """
    field, values = _field_and_values(text)
    facts = None if field.startswith(_ROW_KEYS) else _facts(loaded, question)
    plans = []
    for value in values:
        changed = load(loaded.path, [*(f"{key}={raw}" for key, raw in loaded.overrides.items()), f"{field}={value}"])
        plans.append((value, _plan(changed, facts or _facts(changed, question), question)))
    return field, plans


def _facts(loaded: LoadedRecipe, question: Question) -> Facts:
    """With real or estimated lengths of the rows; without rows on this machine, with the reason why not."""
    facts = find_facts(loaded, question.runs_dir)
    facts = dataclasses.replace(facts, device=named_device(question.device, question.memory, facts.device))
    return _tokenized(loaded, facts)


def _tokenized(loaded: LoadedRecipe, facts: Facts) -> Facts:
    """`facts` with real lengths, if the tokenizer is here or can be downloaded; otherwise with estimated ones."""
    if facts.train_examples is None:
        return dataclasses.replace(
            facts, rows_missing="the training rows are on the Hub, and not in the cache: the run reads them"
        )
    wanted = loaded.recipe.model
    try:
        model = fetch_small_files(facts.base_model, wanted.revision, loaded.where("model.id"))
    except MachineError as error:
        return with_estimated_rows(facts, loaded, f"{wanted.id} {error.problems[0].wrong}")
    facts = dataclasses.replace(facts, base_model=model)
    if model.folder is None or not (model.folder / "tokenizer.json").is_file():
        return with_estimated_rows(facts, loaded, f"the tokenizer of {wanted.id} is not on this machine")
    return with_rows(facts, loaded.recipe, prepare_rows(loaded, model.folder))


def _plan(loaded: LoadedRecipe, facts: Facts, question: Question) -> Plan:
    run_dir = next_run_dir(question.runs_dir, run_name(loaded.path)).path
    return make_plan(loaded, facts, str(run_dir), question.price_per_hour)


def _field_and_values(text: str) -> tuple[str, list[str]]:
    key, _, listed = text.partition("=")
    key, values = key.strip(), [value.strip() for value in listed.split(",") if value.strip()]
    known = {field.split(".")[1]: field for field in fields()}
    field = key if key in fields() else known.get(key)
    if field is None or not values:
        close = named_here(key.rpartition(".")[2]) or nearest(key, [*known, *fields()])
        wrong = "there is no such key" if field is None else "names no value"
        example = "write --what-if per_device_train_batch_size=1,2,4"
        instead = example if field or not close else f"did you mean {close}?"
        raise UsageError(Problem(Where("--what-if"), "", wrong, instead, json.dumps(text)))
    return field, values


def plan_in_terminal(
    recipe: Path, overrides: Sequence[str], question: Question, *, what_if: str | None, calls: bool, as_json: bool
) -> None:
    """Print the plan, or with `what_if` one line for each value of a key, or the table of several devices."""
    console = Console(highlight=False)
    if question.is_of_several:
        if what_if is not None:
            wrong, instead = "is a forecast of one device", "ask for one of --what-if and --devices"
            raise UsageError(Problem(Where("--what-if"), "", wrong, instead))
        alone, scaling = scale(recipe, overrides, question)
        if as_json:
            print(json.dumps(alone.as_json() | {"scaling": scaling.as_json()}, indent=2))
        else:
            console.print(scaling_page(alone, scaling), crop=False)
        return
    if what_if is not None:
        loaded = load(recipe, overrides)
        check(loaded)
        field, plans = compare(loaded, what_if, question)
        if as_json:
            print(json.dumps([{"value": value, **made.as_json()} for value, made in plans], indent=2))
        else:
            console.print(what_if_page(field, plans), crop=False)
        return
    made = plan(recipe, overrides, question)
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        console.print(plan_page(made, with_calls=calls), crop=False)
