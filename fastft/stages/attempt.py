"""One attempt at a run, in its locked folder: prepare, train, evaluate, save, export."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastft.console import library_output_to, redact_value
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt, render_prompt
from fastft.engine_choice import select
from fastft.errors import (
    DataError,
    ExportError,
    FastftError,
    Interrupted,
    MachineError,
    OutOfMemoryError,
    Problem,
    TrainingError,
    Where,
)
from fastft.files.atomic import write_json, write_text
from fastft.planning.batching import Batching
from fastft.planning.facts import Facts, with_rows
from fastft.planning.measured import keep_share, rate_key, throughput_file
from fastft.planning.plan import Plan, make_plan, with_less_memory
from fastft.planning.timing import Time
from fastft.probe.architecture import architecture_of
from fastft.recipe.loader import LoadedRecipe
from fastft.report.live import LiveView
from fastft.report.rows import accounts, reject_lines
from fastft.runs.checkpoints import checkpoints, evaluations_at, newest_checkpoint, set_aside, step_of
from fastft.runs.directory import RunDir, locked, new_attempt, run_name
from fastft.runs.held_out import HeldOut, Untrained
from fastft.runs.manifest import Manifest, changes, make_manifest
from fastft.runs.metrics import MetricsFile, OutOfMemory, StepMetrics, Totals
from fastft.runs.result import ExportedFile, Result, SavedWeights, Trained, make_result
from fastft.stages.ending import reported
from fastft.stages.faults import explain
from fastft.stages.inputs import convert, prepare_rows
from fastft.stages.stopping import Stopping

if TYPE_CHECKING:
    from fastft.engine.model import Model, Tokenizer
    from fastft.exports.job import Job
    from fastft.exports.parity import Reference


@dataclass(frozen=True)
class Start:
    """Which run a command continues: by default the newest unfinished run of the same recipe, or else a new one.

    `resume`: return a finished run instead of a new one. `fresh`: always begin a new run. `run`: continue this folder.
    `accepted_drift`: keys of the manifest that may have changed since the run began.
    """

    resume: bool = False
    fresh: bool = False
    run: Path | None = None
    accepted_drift: tuple[str, ...] = ()


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

    def stage(self, text: str) -> None:
        """Show the next step before training, or end here when the run was asked to stop."""
        if self.stopping.asked is not None:
            raise KeyboardInterrupt
        self.view.stage(text)

    def interrupted(self, where: Path, *, saved: bool) -> Interrupted:
        """The error of an attempt that was asked to stop."""
        name = self.stopping.asked.name if self.stopping.asked else "the keyboard"
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
    held_out: HeldOut
    job: Job


@dataclass(frozen=True)
class Outcome:
    """The result of training: the plan at its end, its figures, the weights on disk."""

    plan: Plan
    trained: Trained
    saved: SavedWeights


def run_attempt(
    loaded: LoadedRecipe, facts: Facts, engine: str, run: RunDir, console: Console, start: Start, notes: Sequence[str]
) -> None:
    """Run to the end, in a folder that is locked against other processes.

    Raises:
        FastftError: anything that a user can fix.
        Interrupted: the run was asked to stop.
        TrainingError: an unexpected error; its traceback is in the log of the attempt.
    """
    with locked(run), Stopping() as stopping, LiveView(console) as view:
        if run.is_finished:  # another process finished it before this one got the lock
            return
        for note in notes:
            view.stage(note)
        attempt = Attempt(loaded, facts, engine, run, view, stopping, start.accepted_drift)
        log = new_attempt(run)
        with library_output_to(log), reported(run, log.parent, view.note):
            try:
                _run(attempt)
            except FastftError as error:
                if error.__cause__ is not None:
                    traceback.print_exc()  # to the log
                    view.note(f"the log of this attempt: {log}")
                raise
            except KeyboardInterrupt:
                raise attempt.interrupted(log, saved=bool(checkpoints(run))) from None
            except OSError as error:
                traceback.print_exc()
                raise explain(error, run) from error
            except Exception as error:
                traceback.print_exc()
                wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                instead = "this is a bug of fastft or of a library; the traceback is in the log"
                raise TrainingError(Problem(Where(str(log)), "", wrong, instead)) from error


def _run(attempt: Attempt) -> None:
    started = time.perf_counter()
    select(attempt.engine)
    ready = _prepare(attempt)
    checkpoint = _begin(attempt, ready)
    outcome, model, tokenizer = _train(attempt, ready, checkpoint)
    totals, seconds = MetricsFile(attempt.run.metrics).totals(), time.perf_counter() - started
    _keep_throughput(attempt, ready, outcome.plan, totals)
    result = make_result(outcome.plan, ready.rows, outcome.trained, ready.prompts, outcome.saved, totals, seconds)
    if ready.job.kinds:
        from fastft.engine.export import load_trained, trained_reference
        from fastft.engine.model import is_in_4bit

        if is_in_4bit(model):
            # Users load the adapter on the 16-bit base, so an export must equal that.
            attempt.view.stage("loading the 16-bit base, which exports are made of and compared with")
            del model
            model, tokenizer = load_trained(ready.job.base, ready.job.adapter)
        held_out = ready.held_out
        reference = trained_reference(model, tokenizer, held_out.conversations, held_out.end_ids, attempt.view.stage)
        del model  # makes room for what is loaded to be compared
        try:
            result = dataclasses.replace(result, exports=_export(attempt, ready, reference, result))
        except ExportError:
            attempt.run.write(result)  # training is done; `fastft export` can try again
            raise
    attempt.run.write(result)


def _prepare(attempt: Attempt) -> Ready:
    """The rows, the plan for them, and a rehearsal of every export.

    Raises:
        FastftError: data, plan or exports have a problem that would stop the run later.
    """
    loaded, run = attempt.loaded, attempt.run
    base = convert(attempt.facts.base_model, loaded.where("model.id"), attempt.stage)
    attempt.stage("reading the rows")
    rows = prepare_rows(loaded, base, _every_few_seconds(attempt.stage))
    for counts, notes in accounts(rows):
        attempt.stage(counts)
        for note in notes:
            attempt.view.note(note)
    facts = with_rows(attempt.facts, loaded.recipe, rows)
    plan = make_plan(loaded, facts, str(run.path))
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
    return Ready(facts, plan, rows, base, prompts, held_out, _export_job(attempt, base, held_out.end_ids))


def _export_job(attempt: Attempt, base: Path, end_ids: tuple[int, ...]) -> Job:
    """The exports besides the weights that every run saves; proves before training that they are possible."""
    from fastft.exports.job import ADAPTER, MERGED, Job, rehearse, wanted_kinds

    recipe, run = attempt.loaded.recipe, attempt.run
    whole = recipe.model.full_finetuning
    saved = MERGED if whole else ADAPTER
    kinds = tuple(kind for kind in wanted_kinds(recipe.export.formats, recipe.export.quantization) if kind != saved)
    job = Job(base, None if whole else run.adapter, run.exports, kinds, run_name(attempt.loaded.path), end_ids)
    shutil.rmtree(job.out, ignore_errors=True)  # of an attempt that did not finish
    if kinds:
        attempt.stage(f"rehearsing the export of {', '.join(kinds)}")
        rehearse(job)
    return job


def _begin(attempt: Attempt, ready: Ready) -> Path | None:
    """Record the data, model and versions of the run, and find the checkpoint that it continues from.

    Raises:
        DataError: an earlier attempt had other data, another template or other versions.
    """
    run = attempt.run
    manifest = make_manifest(attempt.loaded, ready.facts, ready.rows, ready.plan, ready.base)
    before = run.read(Manifest)
    if before is not None:
        manifest = _accept_changes(attempt, before, manifest)
    rejects = reject_lines(ready.rows)
    if rejects:
        write_text(run.rejects, rejects)
    write_json(run.plan, redact_value("", ready.plan.as_json()))
    run.write(manifest)
    run.write(ready.held_out)
    checkpoint, damaged = newest_checkpoint(run)
    for sentence in damaged:
        attempt.view.note(f"{sentence}: skipped")
    set_aside(run, newer_than=step_of(checkpoint))
    return checkpoint


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


def _train(attempt: Attempt, ready: Ready, checkpoint: Path | None) -> tuple[Outcome, Model, Tokenizer]:
    """(outcome, model, tokenizer); while memory runs out, with less of it for the same optimizer steps."""
    plan = ready.plan
    while True:
        try:
            return _train_once(attempt, ready, plan, checkpoint)
        except OutOfMemoryError:
            less = with_less_memory(attempt.loaded, plan)
            if less is None or plan.schedule.devices > 1:
                raise
        plan, checkpoint = _with_less_memory(attempt, ready, plan, less)


def _train_once(
    attempt: Attempt, ready: Ready, plan: Plan, checkpoint: Path | None
) -> tuple[Outcome, Model, Tokenizer]:
    attempt.stage(f"starting {plan.engine} on {plan.device}")
    from fastft.engine.model import load_model, save_weights, trained_weights
    from fastft.engine.train import Material, train
    from fastft.engine.trainer import Hooks

    attempt.stage(f"loading {plan.base_model}")
    template, recipe = ready.rows.template, attempt.loaded.recipe
    model, tokenizer = load_model(plan, None if template is None else template.source)
    trained_count, total = trained_weights(model)
    attempt.stage(f"training {trained_count:,} of {total:,} weights ({100 * trained_count / total:.2f} %)")
    metrics = MetricsFile(attempt.run.metrics)
    step = step_of(checkpoint)
    # Without a checkpoint, the evaluation before training is the one of step 0.
    known = attempt.run.read(Untrained) is not None if checkpoint is None else evaluations_at(checkpoint, step)
    metrics.rewind(step, int(known))
    if checkpoint is not None:
        attempt.view.note(f"continuing from step {step_of(checkpoint)}")

    def show(line: StepMetrics) -> None:
        if not attempt.run.recipe.is_file():  # saving would make the folder anew, without what was in it
            raise FileNotFoundError(attempt.run.path)
        metrics.append(line)
        attempt.view.step(line)

    material = Material(
        train=ready.rows.train.rows,
        eval=None if ready.rows.eval is None else ready.rows.eval.rows,
        prompts=ready.prompts,
        stop_ids=ready.held_out.end_ids,
        max_new_tokens=recipe.eval.max_new_tokens,
        early_stopping_patience=recipe.train.early_stopping_patience,
    )
    hooks = Hooks(
        attempt.view.stage, attempt.view.note, show, metrics.append, lambda: attempt.stopping.asked is not None
    )
    with contextlib.ExitStack() as until_saved:
        until_saved.enter_context(attempt.stopping.deferred())
        trained = train(plan, model, tokenizer, material, attempt.run, hooks, checkpoint)
        if not trained.finished:
            raise attempt.interrupted(attempt.run.path, saved=True)
        if trained.steps in dict(checkpoints(attempt.run)):
            until_saved.close()  # a stop loses nothing from here on
            attempt.stage("saving the weights")
        folder = save_weights(model, tokenizer, plan, attempt.run)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Outcome(plan, trained, SavedWeights(trained_count, total, str(folder), size)), model, tokenizer


def _with_less_memory(attempt: Attempt, ready: Ready, plan: Plan, less: LoadedRecipe) -> tuple[Plan, Path | None]:
    """After memory ran out: the plan of `less`, with the same optimizer steps, and its checkpoint."""
    from fastft.engine.memory import free_memory

    free_memory()
    smaller = make_plan(less, ready.facts, plan.run_dir)
    checkpoint, _ = newest_checkpoint(attempt.run)
    before, after = (
        f"{each.schedule.per_device_train_batch_size} x {each.schedule.gradient_accumulation_steps}"
        for each in (plan, smaller)
    )
    if smaller.choices.recomputes and not plan.choices.recomputes:
        after += " recomputed"
    begins = f"from step {step_of(checkpoint)}" if checkpoint else "from the start"
    attempt.view.note(f"out of memory with {before} rows; {begins} with {after}, the same rows in each optimizer step")
    MetricsFile(attempt.run.metrics).append(OutOfMemory(step_of(checkpoint), before, after))
    write_json(attempt.run.plan, redact_value("", smaller.as_json()))
    return smaller, checkpoint


def _keep_throughput(attempt: Attempt, ready: Ready, plan: Plan, totals: Totals) -> None:
    """Keep the rate of this run for the next plan of such a run; a lost figure is no reason to lose a run."""
    recipe, batching, time = attempt.loaded.recipe, plan.batching, plan.time
    if not isinstance(time, Time) or not isinstance(batching, Batching) or plan.schedule.devices > 1:
        return
    # With max_steps the tokens of the planned epochs are near those that were trained, not equal to them.
    if abs(totals.tokens - time.tokens) > 0.05 * time.tokens or totals.out_of_memory:
        return
    architecture = architecture_of(recipe.model.id, ready.facts.base_model.config)
    key = rate_key(recipe, ready.facts, plan.choices, architecture, batching.active)
    with contextlib.suppress(OSError):
        keep_share(throughput_file(), key, time, batching.padding, totals.seconds)


def _export(attempt: Attempt, ready: Ready, reference: Reference | None, result: Result) -> tuple[ExportedFile, ...]:
    """Write the exports and compare them with the trained model.

    Raises:
        ExportError: one does not match the trained model.
    """
    from fastft.engine.export import export_weights
    from fastft.exports.card import card_facts

    job = ready.job
    if job.adapter is None:
        job = dataclasses.replace(job, base=Path(result.weights_folder))
    model_id, rows, text = attempt.facts.base_model.id, ready.rows.train_sha256, attempt.loaded.text
    card = card_facts(model_id, job.base, rows, text, result.card_figures())
    made = export_weights(job, reference, card, attempt.view.stage, attempt.view.writing)
    return tuple(ExportedFile(one.kind, str(one.path), one.size_bytes) for one in made.artefacts)


def _every_few_seconds(say: Callable[[str], None], pause: float = 5.0) -> Callable[[int], None]:
    """A callback that shows how many rows were read, at most every `pause` seconds."""
    last = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= pause:
            last = time.monotonic()
            say(f"{rows:,} rows tokenized")

    return progress
