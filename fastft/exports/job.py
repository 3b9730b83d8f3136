"""`fastft export`: which artefacts are asked for, whether they can be made, making them, and what is written beside."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.errors import FastftError, MachineError, Problem, Where
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
from fastft.files.atomic import read_json
from fastft.files.staging import free_bytes, staged_file, staged_folder
from fastft.recipe.export_formats import FOLDER_FORMATS, GGUF
from fastft.recipe.quantizations import DEFAULT_QUANTIZATION

Progress = Callable[[str, int, int], None]

MERGED, MERGED_4BIT, ADAPTER = "merged_16bit", "merged_4bit", "adapter"
FAILED = ".FAILED"


@dataclass(frozen=True)
class Job:
    """One `fastft export`: from where, to where, and what."""

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
    """The tokens at which trained answers end, the usual one first: exports stop there, whatever the base did."""
    llama_cpp: Path | None = None
    """A llama.cpp checkout whose converter writes the GGUF files, for architectures that are not known here."""

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
    """What a user should know: the number type and why, types that a shape did not allow."""


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


def rehearse(job: Job, adapter_exists: bool = False) -> dict[str, int]:
    """The bytes of each artefact, after proving that all of them can be made; writes nothing.

    Before training there is no adapter: then the base alone is looked at.

    Raises:
        FastftError: with one problem for everything that would fail: architecture, tokenizer, quantizer, names, disk.
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
            sizes[kind] = _estimate(job, kind, adapter)
        except FastftError as error:
            failed = type(error)
            problems += [problem for problem in error.problems if problem not in problems]
    needed, free = sum(sizes.values()), free_bytes(job.out)
    if needed > free:
        shares = ", ".join(f"{kind} {size:,}" for kind, size in sizes.items())
        wrong = f"not enough disk space: needs {needed:,} bytes ({shares}), {free:,} bytes are free"
        problems.append(Problem(Where(str(job.out)), "", wrong, "ask for fewer exports, or write to another disk"))
    if problems:
        raise failed(problems)
    return sizes


def write(job: Job, kind: str, on_progress: Progress | None = None) -> Artefact:
    """Write one artefact; raises what its writer raises."""
    place = job.place(kind)

    def progress(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(kind, done, total)

    if kind == ADAPTER:
        return _write_adapter(job, place)
    if kind == MERGED:
        merged = write_merged(job.base, job.adapter, place, end_ids=job.end_ids, on_progress=progress)
        notes = (f"{merged.dtype}: {merged.dtype_reason}", *merged.notes)
        return Artefact(kind, place, merged.size_bytes, merged.seconds, notes)
    if job.llama_cpp is not None:
        return _convert(job, kind, place, job.llama_cpp)
    written = write_gguf(job.base, job.adapter, place, kind, end_ids=job.end_ids, on_progress=progress)
    return Artefact(kind, place, written.size_bytes, written.seconds, written.notes)


def finish(
    job: Job, artefacts: Sequence[Artefact], verdicts: Sequence[Verdict], card: CardFacts
) -> tuple[Path, tuple[Artefact, ...]]:
    """(export.json, the artefacts under their final names): marks what failed, writes Modelfile, card and record."""
    by_kind = {verdict.kind: verdict for verdict in verdicts}
    final = tuple(_mark(artefact, by_kind.get(artefact.kind)) for artefact in artefacts)
    for artefact in final:
        verdict = by_kind.get(artefact.kind)
        is_folder = artefact.path.is_dir()
        folder = artefact.path if is_folder else artefact.path.parent
        _write_text(
            folder / ("README.md" if is_folder else f"{job.name}-{artefact.kind}.md"),
            model_card(card, artefact.kind, artefact.path, verdict),
        )
        if not is_folder and (verdict is None or verdict.passed):
            ends = stop_texts(job)
            _write_text(folder / f"{artefact.path.stem}.Modelfile", modelfile(artefact.path.name, ends))
    file = job.out / "export.json"
    fresh = [_record(job, artefact, by_kind.get(artefact.kind)) for artefact in final]
    earlier = [entry for entry in _recorded(file) if (job.out / entry["path"]).exists()]
    entries = [entry for entry in earlier if entry["path"] not in {one["path"] for one in fresh}] + fresh
    _write_text(file, json.dumps({"artefacts": entries}, indent=2, ensure_ascii=False) + "\n")
    return file, final


def _record(job: Job, artefact: Artefact, verdict: Verdict | None) -> dict[str, Any]:
    parity = None if verdict is None else verdict.as_json()
    return {**dataclasses.asdict(artefact), "path": str(artefact.path.relative_to(job.out)), "parity": parity}


def _recorded(file: Path) -> list[dict[str, Any]]:
    """What earlier exports into the same folder wrote."""
    return list((read_json(file) or {}).get("artefacts", []))


def stop_texts(job: Job) -> tuple[str, ...]:
    """The texts of the tokens at which the model stops, for programs that stop at texts."""
    source = tokenizer_folder(job.base, job.adapter)
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    vocabulary = read_vocabulary(source, job.base, config["vocab_size"], "", end_ids=job.end_ids)
    return tuple(
        vocabulary.tokens[vocabulary.special[kind]].decode() for kind in ("eos", "eot") if kind in vocabulary.special
    )


def _estimate(job: Job, kind: str, adapter: Path | None) -> int:
    if kind == MERGED:
        return estimate_merged_bytes(job.base, adapter)
    if kind not in FOLDER_FORMATS and job.llama_cpp is not None:
        check_checkout(job.llama_cpp, kind)
        return 2 * estimate_merged_bytes(job.base, adapter)
    if kind == MERGED_4BIT:
        return estimate_merged_4bit_bytes(job.base, adapter)
    if kind == ADAPTER:
        return _folder_bytes(adapter) if adapter is not None else 0
    return estimate_gguf_bytes(job.base, adapter, kind)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _convert(job: Job, kind: str, place: Path, checkout: Path) -> Artefact:
    """A GGUF file by llama.cpp's own converter, from merged weights that lie on the disk meanwhile."""
    start = time.monotonic()
    job.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=job.out) as folder:
        merged = write_merged(job.base, job.adapter, Path(folder) / MERGED, end_ids=job.end_ids)
        convert_with_checkout(merged.folder, place, kind, checkout)
    notes = (f"written by the converter in {checkout}", *merged.notes)
    return Artefact(kind, place, place.stat().st_size, time.monotonic() - start, notes)


def _write_adapter(job: Job, place: Path) -> Artefact:
    assert job.adapter is not None  # noqa: S101  who asks for it has one
    size = _folder_bytes(job.adapter)
    with staged_folder(place, size) as stage:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(job.adapter / name, stage / name)
        # Where the base lies on this machine is nobody else's business; its Hub id is what others need.
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


def _write_text(file: Path, text: str) -> None:
    """Replace `file` in one step; these small files are rewritten by each export into the same folder."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with staged_file(fresh, len(text.encode())) as stage:
        stage.write_text(text, encoding="utf-8")
    fresh.replace(file)
