"""llama.cpp's OpenAI-compatible server on a GGUF file, behind a proxy that keeps web pages out."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.inference.conversation import asks_for_reasoning
from fastft.inference.gguf_header import fit_context, read_gguf_header
from fastft.inference.proxy import Access, Proxy


@dataclass(frozen=True)
class ServedAdapter:
    """A LoRA adapter as a GGUF file, and the name by which requests choose it."""

    name: str
    file: Path


@contextlib.contextmanager
def serve(
    file: Path,
    port: int = 8080,
    context_tokens: int | None = None,
    access: Access | None = None,
    adapters: Sequence[ServedAdapter] = (),
    chat_template: str | None = None,
) -> Iterator[str]:
    """Serve `file` on 127.0.0.1 while the context lasts; gives the URL. Port 0 takes a free one.

    With `adapters` the field "model" of a request chooses one of them, or the base. `chat_template` replaces that of
    the file.

    Raises:
        UsageError: `access` names no origin or an empty key, or the context is longer than model or memory allow.
        MachineError: llama.cpp cannot load the file, or the port is taken.
    """
    import xllamacpp

    access = access or Access()
    _check(access)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = fit_context(file, context_tokens)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.verbosity = -1
    if chat_template is not None:
        parameters.chat_template = chat_template
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(one.file), 1.0) for one in adapters]
    parameters.lora_init_without_apply = bool(adapters)
    thinks = asks_for_reasoning(chat_template or read_gguf_header(file).chat_template or "")
    parameters.default_template_kwargs = {"enable_thinking": str(thinks).lower()}
    # Behind the proxy nobody may pass: a web page could find this port too.
    parameters.cors_origins, parameters.cors_credentials = "", False
    key = access.api_key or secrets.token_urlsafe()
    parameters.api_keys = [key]
    with _listen(port, access) as proxy:
        try:
            server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            wrong, instead = "llama.cpp cannot load it", "export it again, or with less: --context-tokens"
            raise MachineError(Problem(Where(str(file)), "", wrong, instead)) from error
        proxy.adapters = tuple(one.name for one in adapters)
        proxy.upstream, proxy.key = urlsplit(str(server.listening_address)).port or 0, key
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy.address
        finally:
            proxy.shutdown()
            thread.join()
            del server


def _check(access: Access) -> None:
    for origin in access.origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or not parts.hostname:
            raise UsageError(
                Problem(Where("--allow-origin"), "", "is no origin", "write it as in https://example.org:3000", origin)
            )
    key = access.api_key
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise UsageError(Problem(Where("--api-key"), "", "is empty or no plain text", "write letters and digits"))


def _listen(port: int, access: Access) -> Proxy:
    try:
        return Proxy(port, access)
    except OSError as error:
        wrong = f"port {port} cannot be opened: {(error.strerror or str(error)).lower()}"
        raise MachineError(Problem(Where("--port"), "", wrong, "write another --port")) from error
