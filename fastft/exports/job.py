"""`fastft export`: which artefacts are wanted, whether they are possible, writing them and the files beside them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastft.console import BytesWritten, ignore_bytes
from fastft.errors import FastftError, MachineError, Problem, Where
from fastft.exports.adapter import vocabulary_rows
from fastft.exports.card import CardFacts, model_card, modelfile
from fastft.exports.gguf.checkout import check_checkout, convert_with_checkout
from fastft.exports.gguf.quantization import check_quantization
from fastft.exports.gguf.vocabulary import read_vocabulary
from fastft.exports.gguf.writer import estimate_gguf_bytes, write_gguf
from fastft.exports.merged import (
    copy_tokenizer,
    estimate_merged_4bit_bytes,
    estimate_merged_bytes,
    tokenizer_folder,
    write_merged,
)
from fastft.exports.parity import Verdict
from fastft.exports.record import RecordedArtefact, add_exports, read_exports
from fastft.exports.trained import read_config
from fastft.files.atomic import free_bytes, staged_folder, write_text
from fastft.recipe.export_formats import FOLDER_FORMATS, GGUF
from fastft.recipe.quantizations import DEFAULT_QUANTIZATION

MERGED, MERGED_4BIT, ADAPTER = "merged_16bit", "merged_4bit", "adapter"
FAILED = ".FAILED"


@dataclass(frozen=True)
class Job:
    """One `fastft export`: its source, its folder, its artefacts."""

    base: Path
    adapter: Path | None
    """None: the base itself, all of whose weights were trained."""
    out: Path
    """The folder of all exports, `runs/<name>/exports` for a run."""
    kinds: tuple[str, ...]
    """"adapter", "merged_16bit", "merged_4bit", or a GGUF quantization such as "q4_k_m"."""
    name: str = "model"
    """The start of GGUF file names."""
    end_ids: tuple[int, ...] = ()
    """The tokens at which trained answers end, the usual one first: exports stop there, also where the base did not."""
    llama_cpp: Path | None = None
    """A llama.cpp checkout whose converter writes the GGUF files, for architectures that fastft does not know."""

    def place(self, kind: str) -> Path:
        """Where an artefact of this kind goes."""
        if kind in FOLDER_FORMATS:
            return self.out / kind
        return self.out / "gguf" / f"{self.name}-{kind}.gguf"


@dataclass(frozen=True)
class Artefact:
    """One thing that was written."""

    kind: str
    path: Path
    size_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    """Notes for the user: the number type and why, types that a shape did not allow."""


def wanted_kinds(formats: Iterable[str], quantizations: Iterable[str]) -> tuple[str, ...]:
    """The artefacts for `[export] formats` and `quantization` (GGUF without one: DEFAULT_QUANTIZATION).

    Raises:
        RecipeError: an unknown quantization.
    """
    kinds: list[str] = []
    for each in formats:
        types = [check_quantization(name) for name in quantizations] or [DEFAULT_QUANTIZATION]
        kinds += types if each == GGUF else [each]
    return tuple(dict.fromkeys(kinds))


def rehearse(
    job: Job, adapter_exists: bool = False, chat_template: str | None = None, prompts: tuple[str, ...] = ()
) -> dict[str, int]:
    """The bytes of each artefact, after proving that all of them are possible; writes nothing.

    Before training there is no adapter: then only the base is checked, with the `chat_template` of training, and that
    llama.cpp makes the ids of training from the rendered `prompts`.

    Raises:
        FastftError: with one problem for everything that would fail: architecture, tokenizer, quantizer, names, disk,
            a damaged export.json.
    """
    adapter = job.adapter if adapter_exists else None
    sizes: dict[str, int] = {}
    problems: list[Problem] = []
    failed: type[FastftError] = MachineError
    for kind in job.kinds:
        place = job.place(kind)
        if place.exists():
            problems.append(Problem(Where(str(place)), "", "exists already", "choose another --out, or remove it"))
            continue
        try:
            sizes[kind] = _estimate(job, kind, adapter, chat_template, prompts)
        except FastftError as error:
            failed = type(error)
            problems += [problem for problem in error.problems if problem not in problems]
    try:
        read_exports(job.out)  # what is written is added to it
    except MachineError as error:
        problems += error.problems
    needed, free = sum(sizes.values()), free_bytes(job.out)
    if needed > free:
        shares = ", ".join(f"{kind} {size:,}" for kind, size in sizes.items())
        wrong = f"not enough disk space: needs {needed:,} bytes ({shares}), {free:,} bytes are free"
        problems.append(Problem(Where(str(job.out)), "", wrong, "ask for fewer exports, or write to another disk"))
    if problems:
        raise failed(problems)
    return sizes


def write(job: Job, kind: str, on_bytes: BytesWritten = ignore_bytes) -> Artefact:
    """Write one artefact; raises what its writer raises."""
    place = job.place(kind)
    if kind == ADAPTER:
        return _write_adapter(job, place)
    if kind == MERGED:
        merged = write_merged(job.base, job.adapter, place, end_ids=job.end_ids, on_bytes=on_bytes)
        notes = (f"{merged.dtype}: {merged.dtype_reason}", *merged.notes)
        return Artefact(kind, place, merged.size_bytes, merged.seconds, notes)
    if job.llama_cpp is not None:
        return _convert(job, kind, place, job.llama_cpp, on_bytes)
    written = write_gguf(job.base, job.adapter, place, kind, end_ids=job.end_ids, on_bytes=on_bytes)
    return Artefact(kind, place, written.size_bytes, written.seconds, written.notes)


def finish(
    job: Job, artefacts: Sequence[Artefact], verdicts: Sequence[Verdict], card: CardFacts
) -> tuple[Path, tuple[Artefact, ...]]:
    """(export.json, the artefacts under their final names): marks what failed, writes Modelfile, card and record.

    Raises:
        MachineError: the disk is full, or the export.json of earlier exports is damaged.
    """
    by_kind = {verdict.kind: verdict for verdict in verdicts}
    try:
        final = tuple(_mark(artefact, by_kind.get(artefact.kind)) for artefact in artefacts)
        for artefact in final:
            _write_beside(job, artefact, by_kind.get(artefact.kind), card)
        fresh = [
            RecordedArtefact(one.kind, str(one.path.relative_to(job.out)), one.size_bytes, one.seconds, one.notes,
                             by_kind.get(one.kind))
            for one in final
        ]  # fmt: skip
        return add_exports(job.out, fresh), final
    except OSError as error:
        wrong = f"the files beside the weights could not be written: {error.strerror or error}"
        instead = f"{free_bytes(job.out):,} bytes are free: make room, remove the weights, export again"
        raise MachineError(Problem(Where(str(job.out)), "", wrong, instead)) from error


def _write_beside(job: Job, artefact: Artefact, verdict: Verdict | None, card: CardFacts) -> None:
    """Write the model card, and the Modelfile of a GGUF file that may be used."""
    is_folder = artefact.path.is_dir()
    folder = artefact.path if is_folder else artefact.path.parent
    name = "README.md" if is_folder else f"{job.name}-{artefact.kind}.md"
    write_text(folder / name, model_card(card, artefact.kind, artefact.path, verdict))
    if not is_folder and (verdict is None or verdict.passed):
        write_text(folder / f"{artefact.path.stem}.Modelfile", modelfile(artefact.path.name, stop_texts(job)))


def stop_texts(job: Job) -> tuple[str, ...]:
    """The texts of the tokens at which the model stops, for programs that stop at texts."""
    source = tokenizer_folder(job.base, job.adapter)
    grown = None if job.adapter is None else vocabulary_rows(job.adapter)
    rows = grown or read_config(job.base / "config.json")["vocab_size"]
    vocabulary = read_vocabulary(source, job.base, rows, "", end_ids=job.end_ids)
    stops = [vocabulary.special[kind] for kind in ("eos", "eot") if kind in vocabulary.special]
    return tuple(vocabulary.tokens[token].decode() for token in stops)


def _estimate(job: Job, kind: str, adapter: Path | None, chat_template: str | None, prompts: tuple[str, ...]) -> int:
    if kind == MERGED:
        return estimate_merged_bytes(job.base, adapter)
    if kind not in FOLDER_FORMATS and job.llama_cpp is not None:
        check_checkout(job.llama_cpp, kind)
        return 2 * estimate_merged_bytes(job.base, adapter)
    if kind == MERGED_4BIT:
        return estimate_merged_4bit_bytes(job.base, adapter)
    if kind == ADAPTER:
        return _folder_bytes(adapter) if adapter is not None else 0
    return estimate_gguf_bytes(job.base, adapter, kind, chat_template, prompts)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _convert(job: Job, kind: str, place: Path, checkout: Path, on_bytes: BytesWritten) -> Artefact:
    """A GGUF file by llama.cpp's own converter, from merged weights in a temporary folder."""
    start = time.monotonic()
    job.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=job.out) as folder:
        merged = write_merged(job.base, job.adapter, Path(folder) / MERGED, end_ids=job.end_ids, on_bytes=on_bytes)
        convert_with_checkout(merged.folder, place, kind, checkout)
    notes = (f"written by the converter in {checkout}", *merged.notes)
    return Artefact(kind, place, place.stat().st_size, time.monotonic() - start, notes)


def _write_adapter(job: Job, place: Path) -> Artefact:
    assert job.adapter is not None  # noqa: S101  who asks for it has one
    size = _folder_bytes(job.adapter)
    with staged_folder(place, size) as stage:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(job.adapter / name, stage / name)
        # Others need the base's Hub id, not its private path on this machine.
        settings = json.loads((stage / "adapter_config.json").read_text(encoding="utf-8"))
        if Path(str(settings.get("base_model_name_or_path"))).is_absolute():
            settings["base_model_name_or_path"] = None
            text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
            (stage / "adapter_config.json").write_text(text, encoding="utf-8")
        copy_tokenizer(tokenizer_folder(job.base, job.adapter), stage)
    return Artefact(ADAPTER, place, _folder_bytes(place), 0.0)


def _mark(artefact: Artefact, verdict: Verdict | None) -> Artefact:
    if verdict is None or verdict.passed:
        return artefact
    failed = artefact.path.with_name(artefact.path.name + FAILED)
    if failed.is_dir():
        shutil.rmtree(failed)  # of an earlier try
    return dataclasses.replace(artefact, path=artefact.path.rename(failed))
