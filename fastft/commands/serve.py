"""`fastft serve`: a GGUF file behind llama.cpp's own server."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from pathlib import Path

from fastft.commands.export import ExportRequest, export_with_progress
from fastft.console import library_output_to, say
from fastft.inference.proxy import Access
from fastft.inference.server import serve
from fastft.probe.software import NEEDED_TO_EXPORT, require
from fastft.recipe.export_formats import GGUF
from fastft.stages.weights import find_gguf, find_weights, refuse_classifier


def serve_until_stopped(path: Path, port: int, context_tokens: int | None, access: Access) -> None:
    """Serve the GGUF file at `path` on 127.0.0.1 until Ctrl+C or SIGTERM; of other weights one is exported first.

    Raises:
        UsageError: there are no weights, or more than one GGUF file, or an option cannot be.
        ExportError: the GGUF file of these weights does not match them.
        MachineError: llama.cpp cannot load it, or the port is taken.
    """
    file = find_gguf(path) or _exported(path)
    with contextlib.ExitStack() as stack:
        with tempfile.TemporaryDirectory() as folder, library_output_to(Path(folder) / "log.txt"):
            address = stack.enter_context(serve(file, port, context_tokens, access))
        say(f"{file} at {address}/v1/chat/completions; Ctrl+C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            threading.Event().wait()


def _exported(path: Path) -> Path:
    """The GGUF file of the weights at `path` in fastft's cache, written at first."""
    refuse_classifier(find_weights(path), "serve")
    require(NEEDED_TO_EXPORT, "fastft serve")
    say(f"{path} has no GGUF file: one is exported into the cache")
    return export_with_progress(path, ExportRequest((GGUF,), cached=True)).artefacts[0].path
