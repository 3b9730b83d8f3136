"""One attempt at a run, in its locked folder: prepare, train, evaluate, save, export."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

from fastft.console import library_output_to
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt, render_prompt
from fastft.data.tokenizer import load_tokenizer
from fastft.engine_choice import select
from fastft.errors import (
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
from fastft.planning.facts import Facts, with_rows
from fastft.planning.plan import Plan, make_plan, with_smaller_batch
from fastft.recipe.loader import LoadedRecipe
from fastft.report.live import LiveView
from fastft.report.rows import account, reject_lines
from fastft.runs.checkpoints import checkpoints, newest_checkpoint, set_aside, step_of
from fastft.runs.directory import (
    HELD_OUT,
    RunDir,
    locked,
    new_attempt,
    run_name,
)
from fastft.runs.manifest import make_manifest, refuse_changes
from fastft.runs.metrics import MetricsFile, StepMetrics
from fastft.runs.result import Trained, make_result, weights_bytes
from fastft.runs.score import score
from fastft.stages.inputs import convert, prepare_rows

if TYPE_CHECKING:
    from fastft.exports.job import Job
    from fastft.exports.parity import ChatMessages


def run_attempt(
    loaded: LoadedRecipe, facts: Facts, directory: RunDir, console: Console, *, wanted_resume: bool
) -> RunDir:
    """One attempt in the run's folder, which no other process may use meanwhile."""
    with locked(directory), _Stopping() as stopping, LiveView(console) as view:
        if directory.result is not None:  # another process finished it before this one had the lock
            return directory
        if wanted_resume:
            view.stage("no earlier run of this recipe to go on with: a new one begins")
        _Attempt(loaded, facts, directory, view, stopping).run()
    return directory


class _Stopping:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into a request to stop after the step; a second one ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers. A run in another thread belongs to a program that has its own.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)


@dataclass
class _Done:
    """What training leaves in memory."""

    trained: Trained
    figures: dict[str, Any]
    model: Any
    tokenizer: Any


@dataclass
class _Attempt:
    """One attempt at a run, in its locked directory."""

    loaded: LoadedRecipe
    facts: Facts
    run_dir: RunDir
    view: LiveView
    stopping: _Stopping
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def run(self) -> None:
        log = new_attempt(self.run_dir)
        with library_output_to(log):
            try:
                self._run()
            except FastftError as error:
                if error.__cause__ is not None:
                    _write_traceback(log)
                    self.view.note(f"the log of this attempt: {log}")
                raise
            except KeyboardInterrupt:
                raise self._interrupted(log, saved=bool(checkpoints(self.run_dir))) from None
            except Exception as error:
                _write_traceback(log)
                wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                instead = "this was not foreseen; the whole story is in the log"
                raise TrainingError(Problem(Where(str(log)), "", wrong, instead)) from error

    def _run(self) -> None:
        run_dir = self.run_dir
        plan = make_plan(self.loaded, self.facts, str(run_dir.path))
        select(plan.engine)
        folder = convert(self.facts.base_model, self.loaded.where("model.id"), self._stage)
        tokenizer = load_tokenizer(folder)
        prepared = self._prepare(folder)
        self.facts = with_rows(self.facts, self.loaded.recipe, prepared)
        plan = make_plan(self.loaded, self.facts, str(run_dir.path))
        if plan.obstacles:
            raise MachineError(plan.obstacles)
        for warning in plan.warnings:
            self.view.note(str(warning))
        from fastft.exports.parity import comparable

        end_ids = [token for text in prepared.renderer.end_of_turn if (token := tokenizer.id_of(text)) is not None]
        conversations = comparable([] if prepared.eval is None else prepared.eval.examples)
        job = self._export_job(folder, tuple(end_ids))
        manifest = make_manifest(self.loaded, self.facts, prepared, plan, tokenizer, folder)
        refuse_changes(run_dir, manifest)
        rejects = reject_lines(prepared)
        if rejects:
            write_text(run_dir.path / "rejects.jsonl", rejects)
        write_json(run_dir.path / "plan.json", plan.as_json())
        write_json(run_dir.path / "manifest.json", manifest)
        write_json(run_dir.path / HELD_OUT, {"conversations": conversations, "end_ids": end_ids})
        checkpoint, passed = newest_checkpoint(run_dir)
        for sentence in passed:
            self.view.note(f"{sentence}: passed over")
        set_aside(run_dir, newer_than=step_of(checkpoint))
        prompts = self._prompts(prepared)
        while True:
            try:
                done = self._train(plan, prepared, prompts, checkpoint, job)
                break
            except OutOfMemoryError:
                if plan.schedule.per_device_train_batch_size == 1 or plan.schedule.devices > 1:
                    raise
            plan, checkpoint = self._with_smaller_batch(plan)
        if not done.trained.finished:
            raise self._interrupted(run_dir.path, saved=True)
        result = make_result(prepared, done.trained, prompts, done.figures, time.perf_counter() - self.started)
        result["forecast"] = score(plan.as_json(), result, weights_bytes(result))
        if job.kinds:
            try:
                result["exports"] = self._export(job, done, prepared, conversations, result)
            except ExportError:
                write_json(run_dir.path / "result.json", result)  # training is done; `fastft export` can try again
                raise
        write_json(run_dir.path / "result.json", result)

    def _stage(self, text: str) -> None:
        """Say what comes next before training, where a run that was asked to stop can end at once."""
        if self.stopping.asked is not None:
            raise KeyboardInterrupt
        self.view.stage(text)

    def _prepare(self, folder: Path) -> Prepared:
        self._stage("reading the rows")
        prepared = prepare_rows(self.loaded, folder, _every_few_seconds(self._stage))
        for name, rows in (("training", prepared.train), ("held-out", prepared.eval)):
            if rows is None:
                continue
            said, notes = account(name, rows, prepared.format)
            self._stage(said)
            for note in notes:
                self.view.note(note)
        return prepared

    def _prompts(self, prepared: Prepared) -> list[Prompt]:
        wanted = self.loaded.recipe.eval
        if not wanted.exact_match or prepared.eval is None:
            return []
        return [render_prompt(example, prepared.renderer) for example in prepared.eval.examples[: wanted.max_examples]]

    def _train(
        self,
        plan: Plan,
        prepared: Prepared,
        prompts: list[Prompt],
        checkpoint: Path | None,
        job: Job,
    ) -> _Done:
        self._stage(f"starting {plan.engine} on {plan.device}")
        from fastft.engine import model as engine_model
        from fastft.engine import train as engine_train

        self._stage(f"loading {plan.base_model}")
        template = prepared.template
        model, tokenizer = engine_model.load_model(plan, None if template is None else template.source)
        trained_count, total = engine_model.trained_weights(model)
        self._stage(f"training {trained_count:,} of {total:,} weights ({100 * trained_count / total:.2f} %)")
        metrics = MetricsFile(self.run_dir.metrics)
        metrics.rewind(step_of(checkpoint))
        if checkpoint is not None:
            self.view.note(f"going on from step {step_of(checkpoint)}")

        def show(line: StepMetrics) -> None:
            metrics.append(line.as_json())
            self.view.step(line)

        recipe = self.loaded.recipe
        material = engine_train.Material(
            train=prepared.train.rows,
            eval=None if prepared.eval is None else prepared.eval.rows,
            prompts=prompts,
            stop_ids=list(job.end_ids),
            max_new_tokens=recipe.eval.max_new_tokens,
            early_stopping_patience=recipe.train.early_stopping_patience,
        )
        hooks = engine_train.Hooks(
            stage=self.view.stage,
            step=show,
            evaluated=lambda line: metrics.append({"event": "evaluation", **line}),
            stop_asked=lambda: self.stopping.asked is not None,
        )
        trained = engine_train.train(plan, model, tokenizer, material, self.run_dir, hooks, checkpoint)
        figures: dict[str, Any] = {"trained_weights": trained_count, "weights": total}
        if trained.finished:
            self.view.stage("saving the weights")
            figures["train_tokens_seen"], seconds = metrics.totals()
            figures["train_seconds"] = round(seconds, 1)
            figures["out_of_memory"] = metrics.events("out_of_memory")
            figures["weights_folder"] = str(engine_model.save_weights(model, tokenizer, plan, self.run_dir))
        return _Done(trained, figures, model, tokenizer)

    def _with_smaller_batch(self, plan: Plan) -> tuple[Plan, Path | None]:
        """After the memory ran out: a plan of smaller batches for the same optimizer steps, and where it begins."""
        from fastft.engine.model import free_memory

        free_memory()
        self.loaded = with_smaller_batch(self.loaded, plan)
        smaller = make_plan(self.loaded, self.facts, plan.run_dir)
        checkpoint, _ = newest_checkpoint(self.run_dir)
        before, after = (
            f"{each.schedule.per_device_train_batch_size} x {each.schedule.gradient_accumulation_steps}"
            for each in (plan, smaller)
        )
        begins = f"from step {step_of(checkpoint)}" if checkpoint else "from the start"
        self.view.note(f"out of memory with {before} rows; {begins} with {after}, the same rows in each optimizer step")
        event = {"event": "out_of_memory", "step": step_of(checkpoint), "rows": before, "rows_now": after}
        MetricsFile(self.run_dir.metrics).append(event)
        write_json(self.run_dir.path / "plan.json", smaller.as_json())
        return smaller, checkpoint

    def _export(
        self,
        job: Job,
        done: _Done,
        prepared: Prepared,
        conversations: list[ChatMessages],
        result: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Write the exports and prove them.

        Raises:
            ExportError: one does not say what the trained model says.
        """
        from fastft.engine import export as engine
        from fastft.exports.card import card_facts

        if getattr(done.model, "is_loaded_in_4bit", False):
            # What users load is the adapter on the 16-bit base: that is what an export must equal.
            self.view.stage("loading the 16-bit base, which exports are made of and compared with")
            done.model = None
            done.model, done.tokenizer = engine.load_trained(job.base, job.adapter)
        if job.adapter is None:
            job = dataclasses.replace(job, base=Path(done.figures["weights_folder"]))
        reference = engine.trained_reference(done.model, done.tokenizer, conversations, job.end_ids, self.view.stage)
        done.model = None  # makes room for what is loaded to be compared
        card = card_facts(self.facts.base_model.id, job.base, prepared.train_sha256, self.loaded.text, result)
        made = engine.export_weights(job, reference, card, self.view.stage)
        return [{"kind": one.kind, "path": str(one.path), "bytes": one.size_bytes} for one in made.artefacts]

    def _export_job(self, base: Path, end_ids: tuple[int, ...]) -> Job:
        """What is exported besides the adapter, which every run keeps; proven to be possible before training.

        Raises:
            FastftError: an export would fail.
        """
        from fastft.exports.job import ADAPTER, MERGED, Job, rehearse, wanted_kinds

        whole = self.loaded.recipe.model.full_finetuning
        saved = MERGED if whole else ADAPTER  # what training itself saves
        wanted = self.loaded.recipe.export
        kinds = tuple(kind for kind in wanted_kinds(wanted.formats, wanted.quantization) if kind != saved)
        adapter = None if whole else self.run_dir.adapter
        job = Job(base, adapter, self.run_dir.exports, kinds, run_name(self.loaded.path), end_ids)
        shutil.rmtree(job.out, ignore_errors=True)  # of an attempt that did not finish
        if kinds:
            self._stage(f"rehearsing the export of {', '.join(kinds)}")
            rehearse(job)
        return job

    def _interrupted(self, where: Path, *, saved: bool) -> Interrupted:
        name = self.stopping.asked.name if self.stopping.asked else "the keyboard"
        wrong = f"stopped by {name}" + (" after a checkpoint" if saved else " before a checkpoint could be written")
        return Interrupted(Problem(Where(str(where)), "", wrong, "the same command with --resume goes on"))


def _every_few_seconds(say: Callable[[str], None], pause: float = 5.0) -> Callable[[int], None]:
    """A progress callback that says how many rows were read, at most every `pause` seconds."""
    said = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal said
        if time.monotonic() - said >= pause:
            said = time.monotonic()
            say(f"{rows:,} rows tokenized")

    return progress


def _write_traceback(log: Path) -> None:
    """Append the traceback of the exception that is being handled to `log`."""
    with log.open("a", encoding="utf-8") as file:
        traceback.print_exc(file=file)
