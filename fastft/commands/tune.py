"""`fastft tune`: measure what a recipe leaves open, keep the figures for later plans, and write the fastest down."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastft.console import library_output_to, private_console, redact
from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.files.atomic import write_text
from fastft.files.cache import cache_folder
from fastft.planning.check import check
from fastft.planning.choices import Choice
from fastft.planning.chooser import WRITTEN, Candidate, candidates
from fastft.planning.devices import named_device
from fastft.planning.facts import Facts, find_facts, with_rows
from fastft.planning.measured import keep_rate
from fastft.planning.plan import Plan, make_plan
from fastft.planning.probes import Probe, SetUp, keep_probes, probes_file, probes_key
from fastft.planning.timing import Time
from fastft.probe.architecture import Architecture, architecture_of
from fastft.probe.hub import fetch
from fastft.probe.world import find_world
from fastft.recipe.loader import LoadedRecipe, check_text, load
from fastft.recipe.rewriting import with_keys
from fastft.report.tuning import tuning_page
from fastft.report.units import size
from fastft.stages.inputs import convert, prepare_rows
from fastft.stages.probing import Order, Question, overrides_of
from fastft.stages.tuning import Prober, rate_of, search

# A step of a probe is cut to so many seconds by the forecast, with fewer rows of the same lengths.
STEP_SECONDS = 12.0
# No new probe after so much time.
GPU_SECONDS, CPU_SECONDS = 150.0, 240.0


@dataclass(frozen=True)
class Tuned:
    """What was measured. `best`: the fastest that fits, None where none does.

    `faster_dtype`: a probe in another precision that was faster by far, None without one. `written`: the recipe with
    the best set-up.
    """

    probes: tuple[Probe, ...]
    forecast: Mapping[SetUp, float]
    best: Probe | None
    faster_dtype: Probe | None
    seconds: float
    stopped_early: bool
    written: Path | None

    def as_json(self) -> dict[str, object]:
        """Every probe with its forecast, the best one, and the recipe that was written."""
        return {
            "probes": [
                {**dataclasses.asdict(probe), "forecast_tokens_per_second": self.forecast.get(probe.set_up)}
                for probe in self.probes
            ],
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "faster_dtype": None if self.faster_dtype is None else dataclasses.asdict(self.faster_dtype),
            "seconds": round(self.seconds, 1),
            "stopped_early": self.stopped_early,
            "written": None if self.written is None else str(self.written),
        }


@dataclass(frozen=True)
class Subject:
    """A recipe with its rows and its plan, before anything is measured."""

    loaded: LoadedRecipe
    facts: Facts
    plan: Plan
    model: Architecture
    key: str
    log: Path
    """Where libraries print."""

    @property
    def order(self) -> Order:
        """The same for the process that measures."""
        overrides = tuple(f"{key}={value}" for key, value in self.loaded.overrides.items())
        memory = self.facts.device.memory_bytes
        return Order(str(self.loaded.path), overrides, self.plan.engine, memory, str(self.log))

    @property
    def open_keys(self) -> frozenset[str]:
        """`section.key` of what the recipe leaves open, and of the precision where that is open too."""
        recipe = self.loaded.recipe
        found = {
            f"{section}.{key}" for key, section in WRITTEN.items() if getattr(getattr(recipe, section), key) == "auto"
        }
        may_change = recipe.model.dtype == "auto" and recipe.train.bf16 == "auto" and recipe.train.fp16 == "auto"
        return frozenset(found | ({"model.dtype"} if may_change else set()))


def tune(recipe: Path, overrides: Sequence[str], memory: str | None, tell: Callable[[str], None]) -> Tuned:
    """Measure the set-ups of a recipe, on rows of its own, keep them, and write `RECIPE.tuned.toml` beside it.

    Raises:
        FastftError: the recipe cannot be run here, or leaves nothing open.
    """
    return _measure(find_subject(recipe, overrides, memory, tell), tell)


def _measure(subject: Subject, tell: Callable[[str], None]) -> Tuned:
    began = time.monotonic()
    forecasts = _candidates(subject)
    if len(forecasts) < 2:
        wrong = "leaves nothing open that could be measured"
        instead = 'leave out, or write "auto" at: ' + ", ".join(f"{section}.{key}" for key, section in WRITTEN.items())
        raise UsageError(Problem(Where(str(subject.loaded.path)), "", wrong, instead))
    budget = GPU_SECONDS if subject.facts.device.is_gpu else CPU_SECONDS
    tell(f"measuring up to {len(forecasts)} set-ups with {subject.plan.engine}, for at most {budget / 60:.0f} minutes")
    probes: list[Probe] = []

    def may_go_on() -> bool:
        return time.monotonic() - began < budget

    with Prober(subject.order) as prober:

        def ask(set_up: SetUp) -> Probe:
            probe = prober.ask(_question(subject, set_up, forecasts))
            tell(_in_words(probe))
            if probe.tokens_per_second is not None or probe.out_of_memory:
                keep_probes(probes_file(), subject.key, [probe])
            return probe

        probes += search(forecasts, ask, may_go_on)
    best, faster = _best(probes, subject.plan.choices.dtype.value)
    if best is not None:
        _keep_rate(subject, best)
    written = None if best is None else _write(subject, best, probes)
    rates = {each.set_up: each.tokens_per_second for each in forecasts}
    return Tuned(tuple(probes), rates, best, faster, time.monotonic() - began, not may_go_on(), written)


def find_subject(recipe: Path, overrides: Sequence[str], memory: str | None, tell: Callable[[str], None]) -> Subject:
    """The recipe with its rows and its plan; `memory`: at most so much, as in `--memory`.

    Raises:
        FastftError: the recipe cannot be run here, or this is one of several processes.
    """
    if find_world().size > 1:
        wrong, instead = "measures in one process", "start it without torchrun; the set-up is that of each process"
        raise UsageError(Problem(Where("fastft tune"), "", wrong, instead))
    folder = cache_folder() / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{recipe.stem}.log"
    with library_output_to(log):
        return _read(recipe, overrides, memory, tell, log)


def _read(
    recipe: Path, overrides: Sequence[str], memory: str | None, tell: Callable[[str], None], log: Path
) -> Subject:
    loaded = load(recipe, overrides)
    check(loaded)
    runs = Path("runs")
    facts = find_facts(loaded, runs)
    facts = dataclasses.replace(facts, device=named_device(None, memory, facts.device))
    wanted, where = loaded.recipe.model, loaded.where("model.id")
    facts = dataclasses.replace(facts, base_model=fetch(facts.base_model, wanted.revision, where, tell))
    base = convert(facts.base_model, where, tell)
    facts = with_rows(facts, loaded.recipe, prepare_rows(loaded, base))
    plan = make_plan(loaded, facts, str(runs / "tune"))
    if plan.obstacles:
        raise MachineError(plan.obstacles)
    model = architecture_of(wanted.id, facts.base_model.config)
    key = probes_key(loaded.recipe, facts, plan.engine, model)
    if model is None or key is None:
        raise MachineError(Problem(where, "model.id", "the sizes of this model are unknown", "write the set-up"))
    return Subject(loaded, facts, plan, model, key, log)


def _candidates(subject: Subject) -> list[Candidate]:
    """All set-ups, in each precision that is open and that the device computes in."""
    recipe, facts = subject.loaded.recipe, subject.facts
    engine = Choice(subject.plan.engine, "as planned")
    found = candidates(recipe, facts, engine, subject.model)
    if "model.dtype" in subject.open_keys and not facts.device.is_gpu and facts.device.computes_bfloat16:
        other = {"float32": "bfloat16", "bfloat16": "float32"}[subject.plan.choices.dtype.value]
        changed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": other})})
        found += candidates(changed, facts, engine, subject.model)
    return found


def _question(subject: Subject, set_up: SetUp, forecasts: Sequence[Candidate]) -> Question:
    """What is asked of the process: the keys of the set-up, and steps that are no longer than they need to be."""
    recipe, batch = subject.loaded.recipe, set_up.per_device_train_batch_size
    size = recipe.train.examples_per_step
    keys = subject.open_keys
    if set_up.dtype == subject.plan.choices.dtype.value:
        keys -= {"model.dtype"}
    asked = overrides_of(set_up, tuple(keys), subject.plan.engine, size)
    rows = size or batch * (recipe.train.gradient_accumulation_steps or 1)
    lengths = subject.facts.lengths or [1]
    rate = next(each.tokens_per_second for each in forecasts if each.set_up == set_up)
    affordable = int(STEP_SECONDS * rate / (sum(lengths) / len(lengths)))
    rows = max(batch, min(rows, affordable // batch * batch))
    return Question(set_up, tuple(f"{key}={value}" for key, value in asked.items()), rows)


def _in_words(probe: Probe) -> str:
    words = probe.set_up.words
    if probe.tokens_per_second is None or probe.peak_bytes is None:
        return f"{words}: {'out of memory' if probe.out_of_memory else probe.wrong}"
    return f"{words}: {probe.tokens_per_second:,.0f} tokens/s, {size(probe.peak_bytes)}"


def _best(probes: Sequence[Probe], dtype: str) -> tuple[Probe | None, Probe | None]:
    """The fastest in the precision of the plan, and a faster one in another precision."""
    fitting = sorted((probe for probe in probes if rate_of(probe)), key=rate_of, reverse=True)
    own = next((probe for probe in fitting if probe.set_up.dtype == dtype), None)
    faster = fitting[0] if fitting and fitting[0] != own else None
    return own, faster


def _keep_rate(subject: Subject, best: Probe) -> None:
    """Keep what share of the device's peak was reached, so that forecasts of time agree with what was measured."""
    probes = {**subject.facts.probes, subject.key: (best,)}
    facts = dataclasses.replace(subject.facts, probes=probes)
    plan = make_plan(subject.loaded, facts, subject.plan.run_dir)
    if isinstance(plan.time, Time) and best.tokens_per_second:
        keep_rate(subject.loaded.recipe, facts, plan, subject.model, plan.time.tokens / best.tokens_per_second)


def _write(subject: Subject, best: Probe, probes: Sequence[Probe]) -> Path:
    """The recipe with the keys of the fastest set-up, beside the recipe."""
    loaded = subject.loaded
    size_ = loaded.recipe.train.examples_per_step
    values = overrides_of(best.set_up, tuple(subject.open_keys - {"model.dtype"}), subject.plan.engine, size_)
    comments = {key: _compared(key, best, probes) for key in values}
    batch = "train.per_device_train_batch_size"
    if batch in comments:
        comments[batch] = "; ".join(filter(None, (_in_words(best).partition(": ")[2], comments[batch])))
    text = with_keys(loaded.text, values, {key: text for key, text in comments.items() if text}, loaded.path)
    return save_tuned(subject, text)


def save_tuned(subject: Subject, text: str) -> Path:
    """The recipe `text` under the name of a tuned one, beside the recipe."""
    loaded = subject.loaded
    head = f"# Tuned from {loaded.path.name} by `fastft tune` on {subject.plan.device}.\n"
    path = loaded.path.with_name(f"{loaded.path.stem}.tuned.toml")
    check_text(head + text, path)
    try:
        write_text(path, head + text)
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        raise MachineError(Problem(Where(str(path)), "", wrong, "copy the recipe to a folder of yours")) from error
    return path


def _compared(key: str, best: Probe, probes: Sequence[Probe]) -> str:
    """The figure of the fastest set-up that differs in `key`."""
    name = {"gradient_checkpointing": "recomputes"}.get(key.partition(".")[2], key.partition(".")[2])
    if not hasattr(best.set_up, name):
        return ""
    own = getattr(best.set_up, name)
    alike = [each for each in probes if each.set_up.dtype == best.set_up.dtype and rate_of(each)]
    others = [each for each in alike if getattr(each.set_up, name) != own]
    other = max(others, key=rate_of, default=None)
    return "" if other is None else f"{other.set_up.words}: {rate_of(other):,.0f} tokens/s"


def tune_in_terminal(recipe: Path, overrides: Sequence[str], memory: str | None, *, as_json: bool) -> None:
    """Measure with progress on standard error, and print the table.

    Raises:
        MachineError: no set-up fits.
    """
    with private_console() as console:
        tuned = tune(recipe, overrides, memory, telling(console))
    if as_json:
        print(json.dumps(tuned.as_json(), indent=2))
    else:
        _print(Console(highlight=False), tuned)
    if tuned.best is None:
        wrong, instead = "no set-up could be trained in the memory that is there", "see the table; --json has it all"
        raise MachineError(Problem(Where(str(recipe)), "", wrong, instead))


def tune_first(recipe: Path, overrides: Sequence[str]) -> None:
    """Measure before a run, unless set-ups of this recipe were measured here before; progress on standard error.

    Raises:
        FastftError: as `tune`, but for a recipe that leaves nothing open: then there is nothing to do.
    """
    with private_console() as console:
        tell = telling(console)
        subject = find_subject(recipe, overrides, None, tell)
        if subject.key in subject.facts.probes:
            tell("measured before on this machine; `fastft tune` measures again")
        elif len(_candidates(subject)) < 2:
            tell("the recipe leaves nothing open that could be measured")
        else:
            tuned = _measure(subject, tell)
            tell("no set-up could be measured" if tuned.best is None else f"the fastest: {_in_words(tuned.best)}")


def telling(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"• {redact(text)}")


def _print(console: Console, tuned: Tuned) -> None:
    best = tuned.best
    console.print(tuning_page(tuned.probes, tuned.forecast, None if best is None else best.set_up))
    if tuned.stopped_early:
        console.print("time was up: what is missing in the table was not measured")
    if tuned.faster_dtype is not None and best is not None:
        faster = tuned.faster_dtype
        console.print(
            f"{faster.set_up.dtype} would be {rate_of(faster) / rate_of(best):.2f} times as fast, with other numbers: "
            f'model.dtype = "{faster.set_up.dtype}"',
            soft_wrap=True,
        )
    if tuned.written is not None:
        console.print(f"written: {tuned.written}; plans here use these figures from now on", soft_wrap=True)
