"""The door in front of llama.cpp's server: it passes on what programs of this machine ask, and nothing of web pages.

llama.cpp itself answers every web page, whatever the page's origin, and reads bodies of any size.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY_BYTES = 16 * 1024**2
# How long a client may take to send its request, and llama.cpp to write the next part of an answer.
REQUEST_SECONDS, ANSWER_SECONDS = 60, 3600
# More connections than this wait until one ends: each is a thread, and llama.cpp answers few at a time.
MAX_CONNECTIONS = 64
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
# By this name requests ask the base model, where adapters are served with it.
BASE = "base"
# The requests that llama.cpp answers with text, and so with an adapter.
_ANSWERING = re.compile(r".*(completions?|infill|responses|messages)/?(\?.*)?")
_MODELS = re.compile(r"(/v1)?/models/?(\?.*)?")
PASSED_ON = ("Content-Type", "Authorization", "Accept", "Accept-Encoding")


@dataclass(frozen=True)
class Access:
    """Who may ask besides programs of this machine."""

    origins: tuple[str, ...] = ()
    """Web pages that may read answers: `https://host:port`."""
    api_key: str | None = None
    """Every client must send this one."""


class Proxy(ThreadingHTTPServer):
    """Listens on 127.0.0.1; `upstream` is the port of llama.cpp's server there, `key` what that one asks for."""

    daemon_threads = True
    upstream = 0
    key = ""
    adapters: tuple[str, ...] = ()
    """The names of the adapters, in llama.cpp's order."""

    def __init__(self, port: int, access: Access) -> None:
        self.access = access
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(("127.0.0.1", port), _Exchange)
        self.address = f"http://127.0.0.1:{self.server_port}"
        # The first two are the pages that llama.cpp itself serves.
        self.origins = {self.address, f"http://localhost:{self.server_port}", *access.origins}

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def with_adapter(body: bytes, names: tuple[str, ...]) -> bytes:
    """A request that asks llama.cpp for the adapter that "model" names: without a name the first one, BASE for none.

    What is no JSON object, and a request with llama.cpp's own "lora", stays as it is.

    Raises:
        ValueError: no adapter has that name.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):  # llama.cpp says what is wrong with it
        return body
    if not isinstance(asked, dict) or "lora" in asked:
        return body
    name = asked.get("model") or names[0]
    if name not in (*names, BASE):
        raise ValueError(f"there is no model {str(name)[:100]}; write {', '.join((*names, BASE))}")
    scales = [{"id": index, "scale": float(one == name)} for index, one in enumerate(names)]
    return json.dumps({**asked, "lora": scales}).encode()


def _listed(names: tuple[str, ...]) -> bytes:
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "fastft"} for name in (*names, BASE)]
    return json.dumps({"object": "list", "data": models}).encode()


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer. HTTP/1.0: the answer ends with the connection, so that streams need no framing."""

    timeout = REQUEST_SECONDS
    server_version, sys_version = "fastft", ""
    server: Proxy

    def do_GET(self) -> None:
        self._exchange()

    def do_POST(self) -> None:
        self._exchange()

    def do_OPTIONS(self) -> None:
        refused = self._refusal()
        if refused is not None:
            return self._refuse(*refused)
        self._begin(204)
        self.send_header("Access-Control-Allow-Methods", "GET, POST")
        self.send_header("Access-Control-Allow-Headers", "Authorization, Content-Type")
        self.end_headers()
        return None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name in http.server
        pass

    def _exchange(self) -> None:
        refused = self._refusal()
        if refused is not None:
            return self._refuse(*refused)
        try:
            body = self._body()
        except ValueError as error:
            return self._refuse(404, str(error))
        headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        if self.server.access.api_key is None:
            headers["Authorization"] = f"Bearer {self.server.key}"
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=ANSWER_SECONDS)
        ) as connection:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            self._begin(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/octet-stream"))
            if "Content-Encoding" in answer.headers:
                self.send_header("Content-Encoding", answer.headers["Content-Encoding"])
            self.end_headers()
            if answer.status == 200 and self._asks_for_models():
                self.wfile.write(_listed(self.server.adapters))
                return None
            with contextlib.suppress(ConnectionError):  # the client left; llama.cpp stops when we leave too
                while piece := answer.read1(65536):
                    self.wfile.write(piece)
        return None

    def _body(self) -> bytes:
        body, names = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.server.adapters
        answers = names and self.command == "POST" and _ANSWERING.fullmatch(self.path)
        return with_adapter(body, names) if answers else body

    def _asks_for_models(self) -> bool:
        """Whether the adapters are asked for, which llama.cpp does not list."""
        listed = _MODELS.fullmatch(self.path)
        return bool(self.server.adapters and self.command == "GET" and listed)

    def _refusal(self) -> tuple[int, str] | None:
        """(status, reason) when this request must not reach the model."""
        # A name of a web page's own server that now leads to this machine (DNS rebinding) stands in Host.
        if LOOPBACK.fullmatch(self.headers.get("Host", "")) is None:
            return 403, "this server answers only to 127.0.0.1 and localhost"
        origin = self.headers.get("Origin")
        if origin is not None and origin not in self.server.origins:
            return 403, f"web pages of {origin[:100]} may not ask; fastft serve --allow-origin lets them"
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isascii() or not length.isdigit():
            return 411, "send a Content-Length"
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            return 413, f"a request has at most {MAX_BODY_BYTES:,} bytes"
        return None

    def _refuse(self, status: int, reason: str) -> None:
        self._begin(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"code": status, "message": reason}}).encode())

    def _begin(self, status: int) -> None:
        """The status and what tells a browser which pages may read the answer."""
        self.send_response(status)
        origin = self.headers.get("Origin")
        if origin in self.server.origins:
            self.send_header("Access-Control-Allow-Origin", str(origin))
        self.send_header("Vary", "Origin")
