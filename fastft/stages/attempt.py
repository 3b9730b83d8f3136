"""One attempt at a run, in its locked folder: prepare, train, evaluate, save, export."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastft.console import library_output_to, redact_value
from fastft.engine_choice import select
from fastft.errors import (
    ExportError,
    FastftError,
    MachineError,
    OutOfMemoryError,
    Problem,
    TrainingError,
    Where,
)
from fastft.files.records import write_checked, write_record
from fastft.files.seal import file_sha256
from fastft.planning.facts import Facts
from fastft.planning.measured import keep_rate
from fastft.planning.plan import Plan, make_plan, with_less_memory
from fastft.planning.timing import Time
from fastft.probe.architecture import architecture_of
from fastft.recipe.loader import LoadedRecipe
from fastft.report.live import LiveView
from fastft.runs.checkpoints import checkpoints, newest_checkpoint, ranks_of, step_of
from fastft.runs.classification import Classifier
from fastft.runs.directory import RunDir, locked, new_attempt
from fastft.runs.history import rewind
from fastft.runs.measured import with_measures
from fastft.runs.metrics import MetricsFile, OutOfMemory, Totals
from fastft.runs.ranks import Ranks
from fastft.runs.result import ExportedFile, Result, SavedWeights, Trained, make_result
from fastft.stages.ending import reported
from fastft.stages.faults import explain
from fastft.stages.journal import Journal
from fastft.stages.ready import Attempt, Ready, begin, prepare_run
from fastft.stages.stopping import Stopping

if TYPE_CHECKING:
    from fastft.engine.model import Model, Tokenizer
    from fastft.exports.card import CardFacts
    from fastft.exports.job import Job
    from fastft.exports.parity import Reference


@dataclass(frozen=True)
class Start:
    """Which run a command continues: by default the newest unfinished run of the same recipe, or else a new one.

    `resume`: return a finished run instead of a new one. `fresh`: always begin a new run. `run`: continue this folder.
    `accepted_drift`: keys of the manifest that may have changed since the run began. `like`: a run that a new one
    repeats, with the same manifest. `until`: the share of the optimizer steps after which it stops, to be continued.
    """

    resume: bool = False
    fresh: bool = False
    run: Path | None = None
    accepted_drift: tuple[str, ...] = ()
    like: Path | None = None
    until: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of training: the plan at its end, its figures, the weights on disk."""

    plan: Plan
    trained: Trained
    saved: SavedWeights


def run_attempt(
    loaded: LoadedRecipe,
    facts: Facts,
    engine: str,
    run: RunDir,
    console: Console,
    start: Start,
    notes: Sequence[str],
    ranks: Ranks,
) -> None:
    """Run to the end, in a folder that rank 0 locks against other runs.

    Raises:
        FastftError: anything that a user can fix.
        Interrupted: the run was asked to stop.
        TrainingError: an unexpected error; its traceback is in the log of the attempt.
    """
    first = ranks.world.is_first
    with locked(run) if first else contextlib.nullcontext(), Stopping() as stopping, LiveView(console) as view:
        # Another process may have finished it before this one got the lock.
        if ranks.share("finished meanwhile", lambda: run.is_finished):
            return
        ranks.stop_asked, ranks.ask_to_stop = lambda: stopping.asked, stopping.record
        for note in notes:
            view.stage(note)
        if ranks.world.size > 1:
            view.stage(f"{ranks.world.size} processes met at {ranks.world.address}")
        attempt = Attempt(
            loaded, facts, engine, run, view, stopping, start.accepted_drift, ranks, start.like, start.until
        )
        log = Path(ranks.share("log", lambda: str(new_attempt(run))))
        report = reported(run, log.parent, view.note) if first else contextlib.nullcontext()
        log = log if first else log.with_name(f"rank-{ranks.world.rank}.log")
        with library_output_to(log), report:
            try:
                _run(attempt)
            except FastftError as error:
                if error.__cause__ is not None:
                    traceback.print_exc()  # to the log
                    view.note(f"the log of this attempt: {log}")
                raise
            except KeyboardInterrupt:
                if run.is_finished:  # too late to stop anything
                    return
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
    ready = prepare_run(attempt)
    found = attempt.ranks.share("checkpoint", lambda: str(begin(attempt, ready) or ""))
    checkpoint = Path(found) if found else None
    if checkpoint is not None and attempt.loaded.recipe.train.deepspeed is not None:
        _refuse_other_ranks(checkpoint, attempt.ranks.world.size)
    outcome, model, tokenizer = _train(attempt, ready, checkpoint)
    if outcome is None:  # rank 0 does the rest
        return
    totals, seconds = MetricsFile(attempt.run.metrics).history().totals, time.perf_counter() - started
    _keep_throughput(attempt, ready, outcome.plan, totals)
    result = make_result(outcome.plan, ready.rows, outcome.trained, ready.prompts, outcome.saved, totals, seconds)
    result = with_measures(result, outcome.trained, ready.prompts, ready.general, ready.answer_format)
    result = dataclasses.replace(result, metrics_sha256=file_sha256(attempt.run.metrics))
    if ready.job.kinds and ready.rows.labels is not None:
        result = dataclasses.replace(result, exports=_export_classifier(attempt, ready, model, result))
    elif ready.job.kinds:
        from fastft.engine.export import load_trained, trained_reference
        from fastft.engine.model import other_than_its_files
        from fastft.exports.job import is_kept

        job, reference = _export_again(attempt, ready, result), None
        if not all(is_kept(job, kind, job.source) for kind in job.kinds):
            if base := other_than_its_files(model, outcome.plan):
                # Users load the adapter on the base of the files, so an export must equal that; a split model is gone.
                attempt.view.stage(f"loading {base}, which exports are made of and compared with")
                del model
                model, tokenizer = load_trained(job.base, job.adapter)
            held_out = ready.held_out
            reference = trained_reference(
                model, tokenizer, held_out.conversations, held_out.end_ids, attempt.view.stage
            )
        del model  # makes room for what is loaded to be compared
        try:
            result = dataclasses.replace(result, exports=_export(attempt, ready, job, reference, result))
        except ExportError:
            attempt.run.write(result)  # training is done; `fastft export` can try again
            raise
    attempt.run.write(result)


def _refuse_other_ranks(checkpoint: Path, now: int) -> None:
    """Stop where `now` processes would continue what another number of them shared with DeepSpeed."""
    before = ranks_of(checkpoint)
    if before != now:
        wrong = f"{now} processes cannot continue what {before} trained: DeepSpeed's state is split in {before}"
        instead = f"start {before}, or begin anew with --fresh"
        raise MachineError(Problem(Where(str(checkpoint)), "train.deepspeed", wrong, instead))


def _export_classifier(attempt: Attempt, ready: Ready, model: Model, result: Result) -> tuple[ExportedFile, ...]:
    """The exports of a classifier, reloaded and compared with the trained model.

    Raises:
        ExportError: one does not match it.
    """
    from fastft.engine.model import is_in_4bit
    from fastft.engine.tasks.classifier import COMPARED, Compared, compared, export_classifier, logits_of

    known, job = attempt.run.require(Classifier), _export_again(attempt, ready, result)
    rows = ready.rows.train.rows if ready.rows.eval is None else ready.rows.eval.rows
    if is_in_4bit(model):  # users load the adapter on the 16-bit base
        trained = compared(job.base, job.adapter, known, ready.held_out.conversations)
    else:
        ids = [rows[index].input_ids.tolist() for index in range(min(COMPARED, len(rows)))]
        trained = Compared(ids, logits_of(model, ids, model.config.pad_token_id, 16))
    del model
    try:
        made = export_classifier(job, known, trained, _card(attempt, ready, job, result), attempt.view.stage)
    except ExportError:
        attempt.run.write(result)
        raise
    return tuple(ExportedFile(one.kind, str(one.path), one.size_bytes) for one in made.artefacts)


def _train(attempt: Attempt, ready: Ready, checkpoint: Path | None) -> tuple[Outcome | None, Model, Tokenizer]:
    """(outcome, model, tokenizer); while memory runs out, with less of it for the same optimizer steps."""
    plan, retries = ready.plan, []
    while True:
        try:
            return _train_once(attempt, ready, plan, checkpoint)
        except OutOfMemoryError:
            less = with_less_memory(attempt.loaded, plan)
            if less is None or attempt.ranks.world.size > 1:
                raise
        plan, checkpoint, retry = _with_less_memory(attempt, ready, plan, less)
        retries.append(retry)
        rewind(attempt.run, checkpoint, retries)


def _train_once(
    attempt: Attempt, ready: Ready, plan: Plan, checkpoint: Path | None
) -> tuple[Outcome | None, Model, Tokenizer]:
    ranks, last_step = attempt.ranks, attempt.last_step(plan)
    _end_at(attempt, last_step, checkpoint)
    attempt.stage(f"starting {plan.engine} on {plan.device}")
    from fastft.engine.model import gather_weights, load_model, save_weights, trained_weights
    from fastft.engine.ranks import join_group, leave_group
    from fastft.engine.sharding import forget_sharding
    from fastft.engine.train import material_of, train
    from fastft.engine.trainer import Hooks

    join_group(ranks.world)

    attempt.stage(f"loading {plan.base_model}")
    template, recipe = ready.rows.template, attempt.loaded.recipe
    model, tokenizer = load_model(plan, None if template is None else template.source)
    trained_count, total = trained_weights(model)
    attempt.stage(f"training {trained_count:,} of {total:,} weights ({100 * trained_count / total:.2f} %)")
    journal = Journal(attempt.run, attempt.view, ranks.world.is_first)
    if checkpoint is not None:
        before, now = ranks_of(checkpoint), ranks.world.size
        changed = "" if before == now else f" with {now} process{'es' * (now > 1)}, {before} before: the same batches"
        attempt.view.note(f"continuing from step {step_of(checkpoint)}{changed}")

    material = material_of(recipe, ready.rows, plan, tokenizer, ranks.world.size)
    material = dataclasses.replace(
        material,
        prompts=ready.prompts,
        general=ready.general.prompts,
        stop_ids=ready.held_out.end_ids,
        max_new_tokens=recipe.eval.max_new_tokens,
    )
    hooks = Hooks(
        attempt.view.stage,
        attempt.view.note,
        journal.step,
        journal.evaluated,
        lambda: attempt.stopping.asked is not None,
        ranks,
        attempt.settle,
        journal.warned,
        last_step,
    )
    with contextlib.ExitStack() as until_saved:
        until_saved.enter_context(attempt.stopping.deferred())
        trained = train(plan, model, tokenizer, material, attempt.run, hooks, checkpoint)
        if not trained.finished:
            raise attempt.interrupted(attempt.run.path, saved=True, step=trained.steps)
        if trained.steps in dict(checkpoints(attempt.run)):
            until_saved.close()  # a stop loses nothing from here on
            attempt.stage("saving the weights")
        gathered = gather_weights(model, plan)
        forget_sharding()
        leave_group()
        if not ranks.world.is_first:
            return None, model, tokenizer
        attempt.settle()
        folder = save_weights(model, tokenizer, plan, attempt.run, gathered)
        if ready.rows.labels is not None:
            write_record(folder / Classifier.FILE, attempt.run.require(Classifier))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Outcome(plan, trained, SavedWeights(trained_count, total, str(folder), size)), model, tokenizer


def _end_at(attempt: Attempt, last_step: int, checkpoint: Path | None) -> None:
    """End here where the run has come as far as this attempt may go."""
    if last_step and checkpoint is not None and step_of(checkpoint) >= last_step:
        raise attempt.interrupted(attempt.run.path, saved=True, step=step_of(checkpoint))


def _with_less_memory(
    attempt: Attempt, ready: Ready, plan: Plan, less: LoadedRecipe
) -> tuple[Plan, Path | None, OutOfMemory]:
    """After memory ran out: the plan of `less`, with the same optimizer steps, its checkpoint, and its line."""
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
    write_checked(attempt.run.plan, redact_value("", smaller.as_json()))
    return smaller, checkpoint, OutOfMemory(step_of(checkpoint), before, after)


def _keep_throughput(attempt: Attempt, ready: Ready, plan: Plan, totals: Totals) -> None:
    """Keep the rate of this run for the next plan of such a run; a lost figure is no reason to lose a run."""
    recipe, time = attempt.loaded.recipe, plan.time
    if not isinstance(time, Time) or plan.schedule.devices > 1:
        return
    # With max_steps the tokens of the planned epochs are near those that were trained, not equal to them.
    if abs(totals.tokens - time.tokens) > 0.05 * time.tokens or totals.out_of_memory:
        return
    architecture = architecture_of(recipe.model.id, ready.facts.base_model.config)
    with contextlib.suppress(OSError):
        keep_rate(recipe, ready.facts, plan, architecture, totals.seconds)


def _export_again(attempt: Attempt, ready: Ready, result: Result) -> Job:
    """The exports of the weights that are trained now; removes those that an earlier attempt made of other weights."""
    from fastft.exports.job import remove_others

    job = ready.job
    if job.adapter is None:
        job = dataclasses.replace(job, base=Path(result.weights_folder))
    for kind in remove_others(job, job.source):
        attempt.view.note(f"{kind} of an earlier attempt was made of other weights: it is made anew")
    return job


def _export(
    attempt: Attempt, ready: Ready, job: Job, reference: Reference | None, result: Result
) -> tuple[ExportedFile, ...]:
    """Write the exports that no earlier attempt finished, and compare them with the trained model.

    Raises:
        ExportError: one does not match the trained model.
    """
    from fastft.engine.export import export_weights

    made = export_weights(job, reference, _card(attempt, ready, job, result), attempt.view.stage, attempt.view.writing)
    return tuple(ExportedFile(one.kind, str(one.path), one.size_bytes) for one in made.artefacts)


def _card(attempt: Attempt, ready: Ready, job: Job, result: Result) -> CardFacts:
    """What the model cards of a run's exports say."""
    from fastft.exports.card import card_facts

    model_id, rows, text = attempt.facts.base_model.id, ready.rows.train_sha256, attempt.loaded.text
    return card_facts(model_id, job.base, rows, text, result.card_figures())
