"""`fastft export`: find the weights and their base, rehearse, load, write, compare, upload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.console import Say, Writing, library_output_to, private_console, redact, write_silently
from fastft.engine_choice import select
from fastft.errors import Problem, UsageError, Where, nearest
from fastft.exports.card import CardFacts, card_facts
from fastft.exports.job import ADAPTER, MERGED, Job, rehearse, wanted_kinds
from fastft.exports.push import push
from fastft.files.cache import SERVED, cache_folder
from fastft.recipe.export_formats import GGUF, REFUSED_FORMATS, export_formats
from fastft.report.export import print_exports
from fastft.report.units import size
from fastft.report.written import show_bytes
from fastft.runs.directory import RunDir
from fastft.runs.held_out import HeldOut
from fastft.runs.manifest import Manifest
from fastft.stages.weights import WeightsPath, find_base, find_classifier, find_weights, held_out

if TYPE_CHECKING:
    from fastft.engine.export import Exported


@dataclass(frozen=True)
class ExportRequest:
    """The options of `fastft export`."""

    formats: tuple[str, ...]
    quantizations: tuple[str, ...] = ()
    out: Path | None = None
    base: str | None = None
    llama_cpp: Path | None = None
    push: str | None = None
    """The Hub repository to upload to."""
    cached: bool = False
    """Write to fastft's cache, under a name that says what it is made of."""


def export(path: Path, request: ExportRequest, say: Say, writing: Writing = write_silently) -> Exported:
    """Export the weights at `path`, and compare each artefact with them; with `push`, upload what passed.

    Raises:
        UsageError: there are no weights, or a format or quantization is not possible.
        ExportError: an artefact does not match the trained model; it is kept, marked FAILED.
        FastftError: an artefact cannot be written, or its base cannot be downloaded.
    """
    weights = find_weights(path)
    known = find_classifier(weights)
    kinds = _kinds(weights, request, is_classifier=known is not None)
    run = weights.run
    manifest = None if run is None else run.read(Manifest)
    if weights.kind == "adapter":
        (name, base), adapter = find_base(weights, request.base, say), weights.path
    else:
        name, base, adapter = weights.name if manifest is None else manifest.base_model.id, weights.path, None
    out = request.out or (path / "exports" if run is None else run.exports)
    kept = held_out(weights, base, adapter)
    job = Job(base, adapter, out, kinds, weights.name, kept.end_ids, request.llama_cpp)
    if request.cached:
        out = cache_folder() / SERVED / f"{weights.name}-{job.source[:16]}"
        job = replace(job, out=out)
    if known is None:
        sizes = rehearse(job, adapter is not None, job.source)
        if sizes:
            say(f"{', '.join(f'{kind} ({size(count)})' for kind, count in sizes.items())} to {out}")
    card = _card(run, name, base)
    out.mkdir(parents=True, exist_ok=True)
    with library_output_to(out / "log.txt"):
        select("transformers")  # as users will load the model; and Unsloth takes ten seconds to import
        if known is not None:
            from fastft.engine.tasks.classifier import compared, export_classifier

            trained = compared(base, adapter, known, kept.conversations)
            done = export_classifier(job, known, trained, card, say)
        else:
            done = _export_language_model(job, kept, card, say, writing, is_there=not sizes)
    if request.push is not None:
        for artefact in done.artefacts:
            say(f"{artefact.kind} is at {push(artefact, request.push, say)}")
    return done


def _card(run: RunDir | None, name: str, base: Path) -> CardFacts:
    """What the model cards say: the base by its name, and of a run its recipe, data and figures."""
    if run is None:
        return card_facts(name, base, None, None, {})
    manifest, result = run.read(Manifest), run.result
    data_sha256 = None if manifest is None else manifest.data.train_sha256
    return card_facts(name, base, data_sha256, run.recipe_text(), {} if result is None else result.card_figures())


def _export_language_model(
    job: Job, kept: HeldOut, card: CardFacts, say: Say, writing: Writing, *, is_there: bool
) -> Exported:
    from fastft.engine.export import export_weights, load_trained, trained_reference

    reference = None
    if not is_there:
        say("loading the trained model")
        model, tokenizer = load_trained(job.base, job.adapter)
        reference = trained_reference(model, tokenizer, kept.conversations, kept.end_ids, say)
        del model
    return export_weights(job, reference, card, say, writing)


def export_with_progress(path: Path, request: ExportRequest) -> Exported:
    """As `export`, with progress on standard error."""
    with private_console() as console:

        def say(text: str) -> None:
            console.print(f"• {redact(text)}", markup=False)

        return export(path, request, say, partial(show_bytes, console))


def export_in_terminal(path: Path, request: ExportRequest, *, as_json: bool = False) -> None:
    """Export, with progress on standard error, and print the table of what was written, or its record."""
    record = export_with_progress(path, request).record
    if as_json:
        print(record.read_text(encoding="utf-8"))
    else:
        print_exports(record.parent)


def _kinds(weights: WeightsPath, request: ExportRequest, *, is_classifier: bool) -> tuple[str, ...]:
    if is_classifier and not set(request.formats) <= {ADAPTER, MERGED}:
        wrong = "is a classifier, and GGUF and 4-bit files have no head for labels"
        raise _cannot(str(weights.path), wrong, "write --to adapter or merged_16bit")
    if weights.kind == "gguf":
        wrong, instead = "a GGUF file cannot be exported", "name the run or the adapter that it was made from"
        raise _cannot(str(weights.path), wrong, instead)
    for wanted in request.formats:
        if wanted in REFUSED_FORMATS:
            raise _cannot("--to", f"there is no {wanted}: {REFUSED_FORMATS[wanted][0]}", REFUSED_FORMATS[wanted][1])
        if wanted not in export_formats():
            close = nearest(wanted, export_formats())
            instead = f"did you mean {close}?" if close else f"write one of {', '.join(export_formats())}"
            raise _cannot("--to", f"there is no format {wanted}", instead)
    if request.quantizations and GGUF not in request.formats:
        raise _cannot("--quant", "quantizations are for GGUF files", "add --to gguf")
    if weights.kind == "model" and {ADAPTER, MERGED} & set(request.formats):
        wrong = "these are a whole model's weights: there is no adapter, and nothing to merge"
        raise _cannot("--to", wrong, "write --to gguf or merged_4bit")
    return wanted_kinds(request.formats, request.quantizations)


def _cannot(where: str, wrong: str, instead: str) -> UsageError:
    return UsageError(Problem(Where(where), "", wrong, instead))
