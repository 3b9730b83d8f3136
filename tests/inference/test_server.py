"""`fastft serve` as a program and a web page see it: real requests to a real server on this machine."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fastft.commands.chat import ChatRequest, open_chat
from fastft.data.example import Message
from fastft.data.template import ChatTemplate
from fastft.data.template_values import with_values
from fastft.errors import FastftError, MachineError, UsageError, Where
from fastft.exports.gguf.writer import write_gguf
from fastft.inference.gguf_header import fit_context, read_gguf_header
from fastft.inference.proxy import MAX_BODY_BYTES, Access, Proxy
from fastft.inference.server import serve
from tests.exports.tiny import write_base

_TURNS = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
_THOUGHTS = "{% if enable_thinking is defined and not enable_thinking %}no thoughts{% endif %}"
TEMPLATES = {
    "dated": "{{ date_string or strftime_now('%d %b %Y') }}" + _TURNS + _THOUGHTS,
    "thinking": _TURNS + "{% if add_generation_prompt %}<|im_start|>" + _THOUGHTS + "{% endif %}",
}
QUESTION = {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 4, "temperature": 0}
FRIEND, STRANGER = "https://friend.example", "https://evil.example"
KEY = "a-key-of-our-own"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_base(folder / "base")
    return write_gguf(folder / "base", None, folder / "out.gguf", "f32").file


@pytest.fixture(scope="module")
def open_to_all(gguf: Path) -> Iterator[str]:
    with serve(gguf, port=0, access=Access(origins=(FRIEND,))) as address:
        yield address


@pytest.fixture(scope="module")
def locked(gguf: Path) -> Iterator[str]:
    with serve(gguf, port=0, access=Access(api_key=KEY)) as address:
        yield address


def ask(address: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=QUESTION, headers=headers, timeout=60)


def test_a_program_is_answered(open_to_all: str) -> None:
    answer = ask(open_to_all)

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("kwargs", "day"), [({}, "2011-03-04"), ({"enable_thinking": False}, "2011-03-04")])
@pytest.mark.parametrize("template", ["dated", "thinking"])
def test_llama_cpp_asks_with_the_prompt_of_training(
    gguf: Path, tmp_path: Path, template: str, kwargs: dict[str, bool], day: str
) -> None:
    here = Where("recipe.toml")
    made = with_values(ChatTemplate(template, TEMPLATES[template]), day, kwargs, here)
    file = write_gguf(gguf.parent / "base", None, tmp_path / "out.gguf", "f32", chat_template=made.source).file
    question = [{"role": "user", "content": "the fox"}]
    with serve(file, port=0) as address:
        asked = httpx.post(f"{address}/apply-template", json={"messages": question}, timeout=60).json()["prompt"]

    trained = made.render([Message("user", "the fox")], {}, where=here, add_generation_prompt=True)
    assert asked == trained
    assert ("04 Mar 2011" in asked) == (template == "dated")
    assert ("no thoughts" in asked) == bool(kwargs)


def test_a_stream_is_passed_on_piece_by_piece(open_to_all: str) -> None:
    question = {**QUESTION, "stream": True, "max_tokens": 60}
    with httpx.stream("POST", f"{open_to_all}/v1/chat/completions", json=question, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(lines) > 2
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("origin", [STRANGER, "null", f"{FRIEND}.evil.example", "http://127.0.0.1:1", ""])
def test_a_web_page_of_another_origin_is_refused(open_to_all: str, origin: str) -> None:
    before = httpx.options(f"{open_to_all}/v1/chat/completions", headers={"Origin": origin})
    answer = ask(open_to_all, Origin=origin)

    assert (before.status_code, answer.status_code) == (403, 403)
    assert "access-control-allow-origin" not in {*before.headers, *answer.headers}
    assert "choices" not in answer.text


def test_a_web_page_that_was_allowed_is_answered(open_to_all: str) -> None:
    before = httpx.options(f"{open_to_all}/v1/chat/completions", headers={"Origin": FRIEND})
    answer = ask(open_to_all, Origin=FRIEND)

    assert (before.status_code, answer.status_code) == (204, 200)
    assert before.headers["access-control-allow-origin"] == answer.headers["access-control-allow-origin"] == FRIEND
    assert "Content-Type" in before.headers["access-control-allow-headers"]


def test_its_own_page_is_answered(open_to_all: str) -> None:
    assert "text/html" in httpx.get(open_to_all).headers["content-type"]
    assert ask(open_to_all, Origin=open_to_all).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "169.254.169.254", "["]
)
def test_a_name_that_was_bound_to_this_machine_is_refused(open_to_all: str, host: str) -> None:
    assert ask(open_to_all, Host=host).status_code == 403


def test_a_body_over_the_limit_is_refused_before_it_is_read(open_to_all: str) -> None:
    port = int(open_to_all.rsplit(":", 1)[1])
    for length, status in ((MAX_BODY_BYTES + 1, b"413"), (10**30, b"413"), ("-1", b"411"), ("\u0663", b"411")):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
            )
            assert status in client.recv(1000)


def test_more_connections_than_the_limit_wait_until_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastft.inference.proxy.MAX_CONNECTIONS", 2)
    proxy = Proxy(0, Access())
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = ("127.0.0.1", proxy.server_port)
    idle = [socket.create_connection(address, timeout=10) for _ in range(2)]
    with socket.create_connection(address, timeout=0.3) as third:
        third.sendall(b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n")
        with pytest.raises(TimeoutError):
            third.recv(100)
        idle[0].close()
        third.settimeout(10)
        assert b" 403 " in third.recv(100)
    idle[1].close()
    proxy.shutdown()
    proxy.server_close()


def test_a_body_without_a_length_is_refused(open_to_all: str) -> None:
    answer = httpx.post(f"{open_to_all}/v1/chat/completions", content=iter([b"{}"]), timeout=10)

    assert answer.status_code == 411


def test_a_key_is_asked_of_every_client(locked: str) -> None:
    assert ask(locked).status_code == 401
    assert ask(locked, Authorization="Bearer wrong").status_code == 401
    assert ask(locked, Authorization=f"Bearer {KEY}").status_code == 200
    assert httpx.get(f"{locked}/v1/models").status_code == 401


def test_the_port_of_llama_cpp_itself_answers_nobody(gguf: Path) -> None:
    listening = ports()
    with serve(gguf, port=0) as address:
        inner = ports() - listening - {int(address.rsplit(":", 1)[1])}
        answers = [ask(f"http://127.0.0.1:{port}", Origin=STRANGER) for port in inner]

    assert [answer.status_code for answer in answers] == [401]
    assert all(answer.headers.get("access-control-allow-origin", "") == "" for answer in answers)


def ports() -> set[int]:
    """The ports of this machine that somebody listens on at 127.0.0.1 (state 0A)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"}


def test_a_port_in_use_is_named(gguf: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(MachineError, match=f"port {port} cannot be opened: address already in use"),
            serve(gguf, port),
        ):
            pass


@pytest.mark.parametrize(
    "access",
    [
        *(Access(origins=(text,)) for text in ("*", "example.org", "https://a/path", "file:///x", "https://")),
        Access((), " "),
        Access((), "k\n"),
    ],
)
def test_an_origin_or_key_that_cannot_be_is_refused(gguf: Path, access: Access) -> None:
    with pytest.raises(UsageError), serve(gguf, 0, None, access):
        pass


def test_a_context_beyond_the_model_is_refused_at_once(gguf: Path) -> None:
    assert fit_context(gguf, None) == 256
    assert fit_context(gguf, 256) == 256
    with pytest.raises(UsageError, match=r"made for 256 tokens \(got 1000000000\); 256 fits"), serve(gguf, 0, 10**9):
        pass
    with pytest.raises(UsageError, match="256 fits"), open_chat(gguf, ChatRequest(context_tokens=10**9), print):
        pass


def test_a_context_beyond_the_memory_is_refused(gguf: Path, tmp_path: Path) -> None:
    data = gguf.read_bytes()
    at = data.index(b"llama.context_length") + len(b"llama.context_length") + 4
    (tmp_path / "x.gguf").write_bytes(data[:at] + struct.pack("<I", 2**31) + data[at + 4 :])

    with pytest.raises(UsageError, match=r"needs \d+\.\d GiB, this machine has"):
        fit_context(tmp_path / "x.gguf", 2**31 - 1)


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda _: b"", "is damaged"),
        (lambda _: b"hello" * 100, "is damaged"),
        (lambda data: data[:100], "is damaged"),
        (lambda data: data[: len(data) // 2], "is cut short"),
        (lambda data: data[:8] + struct.pack("<QQ", 2**63, 2**63) + data[24:], "is damaged"),
        (lambda data: data[:8] + struct.pack("<QQ", 1, 10**6) + data[24:], "is damaged"),
        (lambda data: data[:24] + struct.pack("<Q", 2**63) + data[32:], "is damaged"),
        (lambda data: data[:4] + struct.pack("<I", 99) + data[8:], "is damaged"),
        (lambda data: data[:-64], "llama.cpp cannot load it"),
    ],
)
def test_a_broken_file_is_named_as_one(gguf: Path, tmp_path: Path, damage: object, wrong: str) -> None:
    assert callable(damage)
    (tmp_path / "x.gguf").write_bytes(damage(gguf.read_bytes()))
    begun = time.monotonic()

    with pytest.raises(FastftError, match=wrong), serve(tmp_path / "x.gguf", 0):
        pass
    assert time.monotonic() - begun < 20


def test_the_head_is_that_of_the_base(gguf: Path) -> None:
    config = json.loads((gguf.parent / "base/config.json").read_text())
    heads, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]

    assert read_gguf_header(gguf).cache_bytes == 2 * 2 * layers * heads * width
