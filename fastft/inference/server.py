"""llama.cpp's OpenAI-compatible server on a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastft.errors import Problem, RecipeError, Where


def serve(file: Path, port: int = 8080, context_tokens: int = 4096, host: str = "127.0.0.1") -> tuple[Any, str]:
    """Start llama.cpp's OpenAI-compatible server on `file`. Returns the server, which runs until deleted, and its URL.

    Raises:
        RecipeError: the file does not exist.
        MachineError: llama.cpp cannot load it, or the port is taken.
    """
    import xllamacpp

    from fastft.errors import MachineError

    if not file.is_file():
        raise RecipeError(Problem(Where(str(file)), "", "no such file", "give a .gguf file"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_ctx = context_tokens
    parameters.verbosity = -1
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise MachineError(
            Problem(Where(str(file)), "", f"llama.cpp's server did not start: {error}", "try another --port")
        ) from error
    return server, str(server.listening_address)
