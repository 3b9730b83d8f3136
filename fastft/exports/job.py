"""`fastft export`: which artefacts are wanted, whether they are possible, writing them and the files beside them."""

from __future__ import annotations

import dataclasses
import json
import os.path
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastft.console import BytesWritten, ignore_bytes
from fastft.errors import FastftError, MachineError, Problem, Where
from fastft.exports.adapter import vocabulary_rows
from fastft.exports.card import CardFacts, model_card
from fastft.exports.gguf.checkout import check_checkout, convert_with_checkout
from fastft.exports.gguf.quantization import check_quantization
from fastft.exports.gguf.vocabulary import read_vocabulary
from fastft.exports.gguf.writer import estimate_gguf_bytes, write_ggufs
from fastft.exports.kept import UNFINISHED, artefact_damage, find_recorded, remove_artefact, source_hash
from fastft.exports.merged import (
    copy_tokenizer,
    estimate_merged_4bit_bytes,
    estimate_merged_bytes,
    tokenizer_folder,
    write_merged,
)
from fastft.exports.ollama import go_template, modelfile
from fastft.exports.parity import Verdict
from fastft.exports.record import RecordedArtefact, add_exports, read_exports
from fastft.exports.trained import read_config
from fastft.files.atomic import free_bytes, staged_folder, write_text
from fastft.files.atomic import publish as move
from fastft.files.seal import file_sha256, write_seal
from fastft.inference.llamacpp import GgufVocabulary
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

    @property
    def staging(self) -> Job:
        """The same job in a folder where artefacts lie until they are compared and sealed."""
        return dataclasses.replace(self, out=self.out / UNFINISHED)

    @property
    def source(self) -> str:
        """The hash of all that the artefacts are made of."""
        return source_hash(self.base, self.adapter, self.end_ids, self.llama_cpp)


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
    job: Job,
    adapter_exists: bool = False,
    source: str | None = None,
    chat_template: str | None = None,
    prompts: tuple[str, ...] = (),
    tokenizer: Path | None = None,
) -> dict[str, int]:
    """The bytes of each artefact that is not there yet, after proving that all are possible; writes nothing.

    Before training there is no adapter: then only the base is checked, with the `chat_template` of training, and that
    llama.cpp makes the ids of training from the rendered `prompts`, with the tokenizer in `tokenizer` where that is not
    the base's own. `source`, what the artefacts are made of, is None.

    Raises:
        FastftError: with one problem for everything that would fail: architecture, tokenizer, quantizer, names, disk,
            a damaged export.json, an earlier artefact that is damaged or was made of something else.
    """
    adapter = job.adapter if adapter_exists else None
    sizes: dict[str, int] = {}
    problems: list[Problem] = []
    failed: type[FastftError] = MachineError
    for kind in job.kinds:
        try:
            if not is_kept(job, kind, source):
                sizes[kind] = _estimate(job, kind, adapter, chat_template, prompts, tokenizer)
        except FastftError as error:
            failed = type(error)
            problems += [problem for problem in error.problems if problem not in problems]
    try:
        read_exports(job.out)  # what is written is added to it
    except MachineError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    needed, free = sum(sizes.values()), free_bytes(job.out)
    if needed > free:
        shares = ", ".join(f"{kind} {size:,}" for kind, size in sizes.items())
        wrong = f"not enough disk space: needs {needed:,} bytes ({shares}), {free:,} bytes are free"
        problems.append(Problem(Where(str(job.out)), "", wrong, "ask for fewer exports, or write to another disk"))
    if problems:
        raise failed(problems)
    return sizes


def is_kept(job: Job, kind: str, source: str | None) -> bool:
    """Whether an earlier export left this artefact, made of `source` (None: of anything), proven and unchanged.

    Raises:
        MachineError: something else is at its place, or it is damaged.
    """
    place = job.place(kind)
    if not os.path.lexists(place):
        return False
    recorded, where = find_recorded(job.out, place), Where(str(place))
    if recorded is None:
        raise MachineError(Problem(where, "", "exists already", "choose another --out, or remove it"))
    if source not in (None, recorded.source):
        wrong = "exists already, and was made of other weights"
        raise MachineError(Problem(where, "", wrong, "choose another --out, or remove it"))
    wrong_with = artefact_damage(job.out, recorded)
    if wrong_with is not None:
        raise MachineError(Problem(where, "", f"is damaged: {wrong_with}", "remove it: the same command makes it anew"))
    return True


def remove_others(job: Job, source: str) -> tuple[str, ...]:
    """Remove the artefacts of `job` that were made of something else than `source`, and return their kinds."""
    recorded = {kind: find_recorded(job.out, job.place(kind)) for kind in job.kinds}
    others = [kind for kind, one in recorded.items() if one is not None and one.source != source]
    for kind in others:
        if os.path.lexists(job.place(kind)):
            remove_artefact(job.place(kind))
    return tuple(others)


def kept(job: Job, kind: str) -> tuple[Artefact, Verdict | None]:
    """An artefact that an earlier export left, and its comparison with the trained model."""
    one = find_recorded(job.out, job.place(kind))
    assert one is not None  # noqa: S101  is_kept said so
    return Artefact(kind, job.place(kind), one.size_bytes, one.seconds, one.notes), one.parity


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
    return write_together(job, (kind,), on_bytes)[0]


def write_together(job: Job, kinds: Sequence[str], on_bytes: BytesWritten = ignore_bytes) -> tuple[Artefact, ...]:
    """Write GGUF files of several quantizations in one pass over base and adapter; raises what `write` raises."""
    places = {kind: job.place(kind) for kind in kinds}
    reports = write_ggufs(job.base, job.adapter, places, end_ids=job.end_ids, on_bytes=on_bytes)
    return tuple(
        Artefact(kind, one.file, one.size_bytes, one.seconds, one.notes)
        for kind, one in zip(kinds, reports, strict=True)
    )


def publish(job: Job, artefact: Artefact, verdict: Verdict | None, card: CardFacts, source: str) -> Artefact:
    """The artefact of `job.staging` under its final name, sealed, recorded, with its card and Modelfile.

    One that failed its comparison is marked FAILED.

    Raises:
        MachineError: the disk is full, or the export.json of earlier exports is damaged.
    """
    final = job.place(artefact.kind)
    if verdict is not None and not verdict.passed:
        final = final.with_name(final.name + FAILED)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        sha256 = None
        if artefact.path.is_dir():
            write_seal(artefact.path)
        else:
            sha256 = file_sha256(artefact.path)
        _write_beside(job, artefact.path, final, artefact.kind, verdict, card)
        name = str(final.relative_to(job.out))
        recorded = RecordedArtefact(artefact.kind, name, artefact.size_bytes, artefact.seconds, artefact.notes, verdict,
                                    source, sha256)  # fmt: skip
        # Recorded first: what has its final name is proven and has its hash, also when the process is killed here.
        add_exports(job.out, [recorded])
        move(artefact.path, final)
    except OSError as error:
        wrong = f"the files beside the weights could not be written: {error.strerror or error}"
        instead = f"{free_bytes(job.out):,} bytes are free: make room, then run the same command"
        raise MachineError(Problem(Where(str(job.out)), "", wrong, instead)) from error
    return dataclasses.replace(artefact, path=final)


def _write_beside(job: Job, written: Path, final: Path, kind: str, verdict: Verdict | None, card: CardFacts) -> None:
    """Write the model card, and the Modelfile of a GGUF file that may be used.

    The card of a folder is not part of its seal: people edit it.
    """
    is_folder = written.is_dir()
    place = written / "README.md" if is_folder else final.parent / f"{job.name}-{kind}.md"
    write_text(place, model_card(card, kind, final, verdict))
    if not is_folder and (verdict is None or verdict.passed):
        with GgufVocabulary(written) as vocabulary:
            jinja = vocabulary.chat_template
            template = jinja and go_template(jinja, vocabulary.special_tokens, vocabulary.adds_bos)
        write_text(final.parent / f"{final.stem}.Modelfile", modelfile(final.name, stop_texts(job), template or None))


def stop_texts(job: Job) -> tuple[str, ...]:
    """The text of each token at which the model stops, for programs that stop at texts."""
    source = tokenizer_folder(job.base, job.adapter)
    grown = None if job.adapter is None else vocabulary_rows(job.adapter)
    rows = grown or read_config(job.base / "config.json")["vocab_size"]
    vocabulary = read_vocabulary(source, job.base, rows, "", end_ids=job.end_ids)
    stops = [vocabulary.special[kind] for kind in ("eos", "eot") if kind in vocabulary.special]
    texts = (vocabulary.tokens[token].decode() for token in (*stops, *job.end_ids) if token < len(vocabulary.tokens))
    return tuple(dict.fromkeys(texts))


def _estimate(
    job: Job,
    kind: str,
    adapter: Path | None,
    chat_template: str | None,
    prompts: tuple[str, ...],
    tokenizer: Path | None,
) -> int:
    if kind == MERGED:
        return estimate_merged_bytes(job.base, adapter)
    if kind not in FOLDER_FORMATS and job.llama_cpp is not None:
        check_checkout(job.llama_cpp, kind)
        return 2 * estimate_merged_bytes(job.base, adapter)
    if kind == MERGED_4BIT:
        return estimate_merged_4bit_bytes(job.base, adapter)
    if kind == ADAPTER:
        return _folder_bytes(adapter) if adapter is not None else 0
    return estimate_gguf_bytes(job.base, adapter, kind, chat_template, prompts, tokenizer)


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
