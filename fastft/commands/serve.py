"""`fastft serve`: a GGUF file behind llama.cpp's own server, alone or with adapters."""

from __future__ import annotations

import contextlib
import re
import signal
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastft.commands.export import ExportRequest, export_with_progress
from fastft.console import library_output_to, say
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import Problem, UsageError, Where
from fastft.exports.gguf.lora import write_lora
from fastft.exports.merged import tokenizer_folder
from fastft.inference.gguf_header import read_gguf_header
from fastft.inference.llamacpp import GgufVocabulary
from fastft.inference.proxy import BASE, Access
from fastft.inference.server import ServedAdapter, serve
from fastft.probe.software import NEEDED_TO_EXPORT, require
from fastft.recipe.export_formats import GGUF
from fastft.stages.weights import find_base, find_gguf, find_weights, held_out, refuse_classifier

_NAME = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True)
class ServeRequest:
    """The options of `fastft serve`."""

    port: int
    context_tokens: int | None = None
    access: Access = field(default_factory=Access)
    adapters: tuple[str, ...] = ()
    """Adapters on the base model that is served: a path, or NAME=PATH."""


def serve_until_stopped(path: Path, request: ServeRequest) -> None:
    """Serve the GGUF file at `path` on 127.0.0.1 until Ctrl+C or SIGTERM; of other weights one is exported first.

    Raises:
        UsageError: there are no weights, or more than one GGUF file, or an option cannot be.
        RecipeError: an adapter cannot be added to the base while it answers.
        ExportError: the GGUF file of these weights does not match them.
        MachineError: llama.cpp cannot load it, or the port is taken.
    """
    places = _named(request.adapters)
    if places and _is_trained(path):
        wrong = "--lora adds adapters to a base model, and these weights are trained already"
        raise UsageError(Problem(Where(str(path)), "", wrong, "name the folder or the GGUF file of the base"))
    file = find_gguf(path) or _exported(path)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        adapters, template = _adapters(places, file, folder)
        with library_output_to(folder / "log.txt"):
            address = stack.enter_context(
                serve(file, request.port, request.context_tokens, request.access, adapters, template)
            )
        if adapters:
            say(f"models: {', '.join(one.name for one in adapters)}, {BASE}")
        say(f"{file} at {address}/v1/chat/completions; Ctrl+C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            threading.Event().wait()


def _is_trained(path: Path) -> bool:
    """Whether the weights at `path` are an adapter, or lie in a run."""
    weights = find_weights(path)
    return weights.kind == "adapter" or weights.run is not None


def _exported(path: Path) -> Path:
    """The GGUF file of the weights at `path` in fastft's cache, written at first."""
    refuse_classifier(find_weights(path), "serve")
    require(NEEDED_TO_EXPORT, "fastft serve")
    say(f"{path} has no GGUF file: one is exported into the cache")
    return export_with_progress(path, ExportRequest((GGUF,), cached=True)).artefacts[0].path


def _named(texts: Sequence[str]) -> dict[str, Path]:
    """The adapters by the names under which they are asked for."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        path = Path(place if equals else text).expanduser()
        name = name if equals else path.resolve().name
        if not _NAME.fullmatch(name) or name == BASE or name in found:
            wrong = f"{name} is taken" if name in found or name == BASE else "is no name for an adapter"
            raise UsageError(Problem(Where("--lora"), "", wrong, "write --lora NAME=PATH", text))
        found[name] = path
    return found


def _adapters(places: dict[str, Path], file: Path, folder: Path) -> tuple[list[ServedAdapter], str | None]:
    """(the adapters as GGUF files in `folder`, the chat template that all were trained with)."""
    if not places:
        return [], None
    header, written, templates = read_gguf_header(file), [], {}
    for number, (name, place) in enumerate(places.items()):
        weights = find_weights(place)
        refuse_classifier(weights, "serve")
        if weights.kind != "adapter":
            raise UsageError(Problem(Where("--lora"), "", "is no adapter", "name a run or an adapter", str(place)))
        _, base = find_base(weights, None, say)
        _refuse_ends(held_out(weights, base, weights.path).end_ids, file, place)
        templates[load_tokenizer(tokenizer_folder(base, weights.path)).chat_template] = name
        write_lora(base, weights.path, header, folder / f"{number}.gguf")
        written.append(ServedAdapter(name, folder / f"{number}.gguf"))
    if len(templates) > 1:
        wrong = f"{' and '.join(templates.values())} have different chat templates"
        raise UsageError(Problem(Where("--lora"), "", wrong, "serve them apart, on two ports"))
    return written, next(iter(templates))


def _refuse_ends(ends: Sequence[int], file: Path, adapter: Path) -> None:
    """Raise UsageError where llama.cpp goes on after an answer of the adapter, with the end tokens of the base."""
    with GgufVocabulary(file) as vocabulary:
        missed = [vocabulary.token_text(token) for token in ends if not vocabulary.is_end(token)]
    if missed:
        wrong = f"answers of {adapter} end with {missed[0]}, at which llama.cpp does not stop with this base"
        raise UsageError(Problem(Where("--lora"), "", wrong, f"serve it alone: fastft serve {adapter}"))
