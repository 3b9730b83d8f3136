"""llama.cpp's OpenAI-compatible server on a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, RecipeError, Where


def serve(file: Path, port: int, context_tokens: int) -> tuple[Any, str]:
    """Start llama.cpp's OpenAI-compatible server on `file`. Returns the server, which runs until deleted, and its URL.

    Raises:
        RecipeError: the file does not exist.
        MachineError: llama.cpp cannot load it, or the port is taken.
    """
    import xllamacpp

    if not file.is_file():
        raise RecipeError(Problem(Where(str(file)), "", "no such file", "give a .gguf file"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = context_tokens
    parameters.verbosity = -1
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        wrong = f"llama.cpp's server did not start: {error}"
        raise MachineError(Problem(Where(str(file)), "", wrong, "try another --port")) from error
    return server, str(server.listening_address)
