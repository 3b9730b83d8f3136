"""One attempt before training: the rows, the plan for them, a rehearsal of the exports, and where it begins."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.console import redact_value
from fastft.data.added_tokens import write_grown
from fastft.data.answer_format import AnswerFormat, wanted_format
from fastft.data.general import General, general_prompts
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt, render_prompt
from fastft.errors import DataError, Interrupted, MachineError, Problem, Where
from fastft.files.atomic import write_text
from fastft.files.records import write_checked
from fastft.planning.chooser import PINNED
from fastft.planning.facts import Facts, with_rows
from fastft.planning.learning_rates import kept_range_tests, range_tests_file
from fastft.planning.plan import Plan, make_plan
from fastft.planning.probes import probes_key
from fastft.planning.products import keep_products, products_file, products_key
from fastft.probe.architecture import architecture_of
from fastft.recipe.loader import LoadedRecipe
from fastft.report.live import LiveView
from fastft.report.rows import accounts, reject_lines
from fastft.runs.checkpoints import checkpoints, newest_checkpoint, set_aside, step_of
from fastft.runs.classification import Classifier
from fastft.runs.directory import RunDir, run_name
from fastft.runs.held_out import HeldOut
from fastft.runs.history import rewind
from fastft.runs.manifest import Manifest, changes, make_manifest, with_hashes
from fastft.runs.measured import refuse_unmeasured
from fastft.runs.planned import Planned
from fastft.runs.ranks import Ranks
from fastft.runs.rows_seen import rows_seen
from fastft.runs.state import keep_begin
from fastft.stages.beside import Beside
from fastft.stages.inputs import convert, prepare_rows
from fastft.stages.stopping import Stopping

if TYPE_CHECKING:
    from fastft.exports.job import Job

# Rendered held-out prompts that llama.cpp must read as training does, before a GGUF file is promised.
REHEARSED_PROMPTS = 64


@dataclass(frozen=True)
class Attempt:
    """What one attempt needs: the recipe, the machine with its engine, the run's folder, the view, the stop signals.

    `facts` are from before the rows are read; the base model is on this machine.
    """

    loaded: LoadedRecipe
    facts: Facts
    engine: str
    run: RunDir
    view: LiveView
    stopping: Stopping
    accepted_drift: tuple[str, ...]
    ranks: Ranks
    like: Path | None = None
    """A run whose data, base and versions this one must have."""
    until: float | None = None
    """The share of the optimizer steps after which the attempt ends; the run is continued later."""
    beside: list[Beside] = dataclasses.field(default_factory=list)
    """What a checkpoint, and the end of the run, must wait for."""

    def settle(self) -> None:
        """Wait for what is done beside the run."""
        for work in self.beside:
            work.wait()

    def stage(self, text: str) -> None:
        """Show the next step before training, or end here when the run was asked to stop."""
        if self.stopping.asked is not None:
            raise KeyboardInterrupt
        self.view.stage(text)

    def last_step(self, plan: Plan) -> int:
        """The optimizer step of this attempt's end where it is not that of the run; 0 elsewhere."""
        steps = plan.schedule.optimizer_steps
        return 0 if self.until is None or steps is None else min(steps, max(1, math.ceil(self.until * steps)))

    def interrupted(self, where: Path, *, saved: bool, step: int = 0) -> Interrupted:
        """The error of an attempt that was asked to stop, by a signal or after `step`."""
        if self.until is not None and self.stopping.asked is None:
            wrong = f"stopped after optimizer step {step}, as --until asks"
            return Interrupted(Problem(Where(str(where)), "", wrong, "the same command without it continues"))
        other = "the keyboard" if self.ranks.world.size == 1 else "a signal to another process"
        name = self.stopping.asked.name if self.stopping.asked else other
        wrong = f"stopped by {name}" + (" after a checkpoint" if saved else " before a checkpoint could be written")
        return Interrupted(Problem(Where(str(where)), "", wrong, "the same command continues"))


@dataclass(frozen=True)
class Ready:
    """What training and exporting need, after the rows are read and every export is rehearsed."""

    facts: Facts
    plan: Plan
    rows: Prepared
    base: Path
    prompts: list[Prompt]
    general: General
    held_out: HeldOut
    job: Job
    answer_format: AnswerFormat


def _began(run: RunDir) -> dict[str, object]:
    """What an earlier attempt at this run chose where the recipe leaves it open; nothing for the first attempt."""
    plan = run.read(Planned)
    chosen = {} if plan is None else plan.choices
    names = {key: f"{section}.{key}" for key, section in PINNED.items()}
    values = {key: chosen[name].value for key, name in names.items() if name in chosen}
    if values.get("dtype") == "float16":  # of a GPU: a processor does not train in it
        del values["dtype"]
    return values


def agree_on_plan(loaded: LoadedRecipe, facts: Facts, run: RunDir, ranks: Ranks) -> Plan:
    """The plan for the rows as read; where the recipe leaves something open, every rank takes what rank 0 chose.

    Raises:
        MachineError: this rank's plan is another one than that of rank 0, for a reason that no recipe leaves open.
    """
    own = ranks.first(lambda: make_plan(loaded, facts, str(run.path), began=_began(run)))
    chosen = ranks.share("choices", lambda: {} if own is None else own.chosen)
    plan = own or make_plan(loaded, facts, str(run.path), began=chosen)
    ranks.agree("plan", repr((plan.schedule, [call.kwargs for call in plan.calls.in_order])), "plan")
    return plan


def _with_products(attempt: Attempt, facts: Facts) -> Facts:
    """`facts` with what this processor multiplies; the first run with a model of these sizes measures it.

    Rank 0 of several does it alone: what it chooses goes for all.
    """
    model = architecture_of(facts.base_model.id, facts.base_model.config)
    if facts.device.is_gpu or model is None or not attempt.ranks.world.is_first or facts.product(model, "float32"):
        return facts
    attempt.stage("measuring the processor, once")
    from fastft.engine.products import measure_products

    key = products_key(facts.device, model, facts.installed)
    found = measure_products(model, bfloat16=facts.device.computes_bfloat16)
    with contextlib.suppress(OSError):  # a lost figure is no reason to lose a run
        keep_products(products_file(), key, found)
    return dataclasses.replace(facts, products={**facts.products, key: found})


def prepare_run(attempt: Attempt) -> Ready:
    """The rows, the plan for them, and a rehearsal of every export.

    Raises:
        FastftError: data, plan or exports have a problem that would stop the run later.
    """
    loaded, run = attempt.loaded, attempt.run
    ranks = attempt.ranks
    base = ranks.in_turn("base", lambda: convert(attempt.facts.base_model, loaded.where("model.id"), attempt.stage))
    attempt.stage("reading the rows")
    rows = ranks.in_turn("rows", lambda: prepare_rows(loaded, base, _every_few_seconds(attempt.stage)))
    for counts, notes in accounts(rows):
        attempt.stage(counts)
        for note in notes:
            attempt.view.note(note)
    facts = _with_products(attempt, with_rows(attempt.facts, loaded.recipe, rows))
    ranks.agree("rows as read", rows.train_sha256 + (rows.eval_sha256 or ""), "training data")
    plan = agree_on_plan(loaded, facts, run, ranks)
    if plan.obstacles:
        raise MachineError(plan.obstacles)
    for warning in plan.warnings:
        attempt.view.note(str(warning))
    from fastft.exports.parity import comparable  # numpy, which planning does without

    ends = [token for text in rows.renderer.end_of_turn if (token := rows.renderer.tokenizer.id_of(text)) is not None]
    held_out = HeldOut(comparable([] if rows.eval is None else rows.eval.examples), tuple(ends))
    wanted = loaded.recipe.eval
    asked = rows.eval.examples[: wanted.max_examples] if wanted.exact_match and rows.eval is not None else []
    prompts = [render_prompt(example, rows.renderer) for example in asked]
    general = _general(attempt, rows) if prompts and wanted.regression_set else General()
    job = _export_job(attempt, base, rows, held_out.end_ids)
    answers = wanted_format(wanted, loaded.folder)
    return Ready(facts, plan, rows, base, prompts, general, held_out, job, answers)


def _general(attempt: Attempt, rows: Prepared) -> General:
    """The questions of the regression set; a template that refuses them is said.

    Raises:
        RecipeError: it refuses them, and a condition of eval.fail_if needs their answers.
    """
    general = general_prompts(rows.renderer)
    if general.missing:
        attempt.view.note(f"the general questions are not asked: {general.missing}")
        refuse_unmeasured(attempt.loaded, "regression", general.missing)
    return general


def _export_job(attempt: Attempt, base: Path, rows: Prepared, end_ids: tuple[int, ...]) -> Job:
    """The exports besides the weights that every run saves; proves before training that they are possible."""
    from fastft.exports.job import ADAPTER, MERGED, Job, rehearse, wanted_kinds

    recipe, run = attempt.loaded.recipe, attempt.run
    whole = recipe.model.full_finetuning
    saved = MERGED if whole else ADAPTER
    kinds = tuple(kind for kind in wanted_kinds(recipe.export.formats, recipe.export.quantization) if kind != saved)
    job = Job(base, None if whole else run.adapter, run.exports, kinds, run_name(attempt.loaded.path), end_ids)
    if rows.labels is not None or not attempt.ranks.world.is_first:  # a classifier is merged by PEFT itself
        return job
    if kinds:
        attempt.stage(f"rehearsing the export of {', '.join(kinds)}")
        template = rows.template
        asked = [] if rows.eval is None or template is None else rows.eval.examples[:REHEARSED_PROMPTS]
        prompts = tuple(render_prompt(example, rows.renderer).text for example in asked if example.answers)
        source = None if template is None else template.source
        with tempfile.TemporaryDirectory() as folder:
            grown = Path(folder) if recipe.adds_tokens else None
            if grown is not None:
                write_grown(rows.renderer.tokenizer, base, grown)
            rehearse(job, chat_template=source, prompts=prompts, tokenizer=grown)
    return job


def begin(attempt: Attempt, ready: Ready) -> Path | None:
    """Record the data, model and versions of the run, and go back to the checkpoint that it continues from.

    Raises:
        DataError: an earlier attempt had other data, another template or other versions.
        MachineError: the adapter or a record that an earlier attempt wrote is damaged.
    """
    from fastft.stages.weights import refuse_damaged  # numpy, which light commands do without

    run = attempt.run
    refuse_damaged(run.adapter)
    # A checkpoint of unknown origin is not continued.
    before = run.require(Manifest) if checkpoints(run) else run.read(Manifest)

    manifest = make_manifest(attempt.loaded, ready.facts, ready.rows, ready.plan, ready.base)
    if attempt.like is not None:
        _refuse_other(attempt.like, with_hashes(manifest, ready.base))
    if before is None:  # only a checkpoint needs the hashes
        attempt.beside.append(Beside(lambda: run.write(with_hashes(manifest, ready.base))))
    else:
        run.write(_accept_changes(attempt, before, with_hashes(manifest, ready.base)))
    rejects = reject_lines(ready.rows)
    if rejects:
        write_text(run.rejects, rejects)
    write_checked(run.plan, redact_value("", ready.plan.as_json()))
    run.write(ready.held_out)
    _write_range_test(attempt, ready)
    tokenizer = ready.rows.renderer.tokenizer
    run.write(rows_seen(accounts(ready.rows), ready.rows.train.rows, tokenizer, has_masks=ready.rows.labels is None))
    labels, recipe = ready.rows.labels, attempt.loaded.recipe
    if labels is not None:
        longest = recipe.model.max_seq_length
        run.write(Classifier(labels.names, labels.several, recipe.classification.truncation, longest))
    checkpoint, damaged = newest_checkpoint(run)
    for sentence in damaged:
        attempt.view.note(f"{sentence}: skipped")
    set_aside(run, newer_than=step_of(checkpoint))
    keep_begin(run, step_of(checkpoint))
    rewind(run, checkpoint)
    return checkpoint


def _write_range_test(attempt: Attempt, ready: Ready) -> None:
    """Keep what `fastft tune --learning-rate` measured of such a run, for its report."""
    model = architecture_of(ready.facts.base_model.id, ready.facts.base_model.config)
    key = probes_key(attempt.loaded.recipe, ready.facts, attempt.engine, model)
    test = kept_range_tests(range_tests_file()).get(key or "")
    if test is not None:
        attempt.run.write(test)


def _refuse_other(like: Path, now: Manifest) -> None:
    """Stop where a run that repeats another has other data, another base, other versions or another device.

    Raises:
        DataError: something differs.
    """
    found = changes(RunDir(like).require(Manifest), now)
    if found:
        wrong = f"changed since that run: {', '.join(map(str, found))}"
        instead = "restore it; for a new run with what is here, fastft run"
        raise DataError(Problem(Where(str(like / Manifest.FILE)), "", wrong, instead))


def _accept_changes(attempt: Attempt, before: Manifest, now: Manifest) -> Manifest:
    """`now`, with a record of every change that the user accepted, in this attempt or an earlier one.

    Raises:
        DataError: something else changed.
    """
    found = changes(before, now)
    refused = [change for change in found if not change.is_accepted(attempt.accepted_drift)]
    if refused:
        wrong = f"changed since the run began: {', '.join(map(str, refused))}"
        keys = " ".join(f"--accept-drift {change.key}" for change in refused)
        instead = f"restore it, start a new run with --fresh, or continue knowingly with {keys}"
        raise DataError(Problem(Where(str(attempt.run.path / Manifest.FILE)), "", wrong, instead))
    for change in found:
        attempt.view.note(f"accepted: {change}")
    return dataclasses.replace(now, accepted_drift=(*before.accepted_drift, *map(str, found)))


def _every_few_seconds(say: Callable[[str], None], pause: float = 5.0) -> Callable[[int], None]:
    """A callback that shows how many rows were read, at most every `pause` seconds."""
    last = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= pause:
            last = time.monotonic()
            say(f"{rows:,} rows tokenized")

    return progress
