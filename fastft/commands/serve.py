"""`fastft serve`: a GGUF file behind llama.cpp's own server."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from pathlib import Path

from fastft.console import library_output_to, say
from fastft.inference.proxy import Access
from fastft.inference.server import serve
from fastft.stages.weights import find_gguf


def serve_until_stopped(path: Path, port: int, context_tokens: int | None, access: Access) -> None:
    """Serve the GGUF file at `path` on 127.0.0.1 until Ctrl+C or SIGTERM.

    Raises:
        UsageError: there is no GGUF file, or more than one, or an option cannot be.
        MachineError: llama.cpp cannot load it, or the port is taken.
    """
    file = find_gguf(path)
    with contextlib.ExitStack() as stack:
        with tempfile.TemporaryDirectory() as folder, library_output_to(Path(folder) / "log.txt"):
            address = stack.enter_context(serve(file, port, context_tokens, access))
        say(f"{file} at {address}/v1/chat/completions; Ctrl+C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            threading.Event().wait()
