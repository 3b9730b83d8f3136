"""Uploads to a Hub on this machine, which keeps what it gets as the real one does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fastft.errors import MachineError
from fastft.exports.job import Artefact
from fastft.exports.push import push


@dataclass
class Hub:
    """A model repository: the large files by their SHA-256, the commits as lists of names."""

    large: dict[str, str] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    fails_at_commit: int | None = None

    def commit(self, body: str) -> bool:
        """Keep the files of a commit; False: the connection to the store is lost."""
        if len(self.commits) == self.fails_at_commit:
            self.fails_at_commit = None
            return False
        names = []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                names.append(value["path"])
                content = base64.b64decode(value["content"])
                if len(content) > 100:
                    self.large[value["path"]] = hashlib.sha256(content).hexdigest()
        self.commits.append(names)
        return True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files = [
                {"rfilename": name, "size": 1, "lfs": {"sha256": sha256, "size": 1, "pointerSize": 1}}
                for name, sha256 in hub.large.items()
            ]
            self.reply(200, {"id": "me/model", "siblings": [*files, {"rfilename": "README.md"}]})

        def do_POST(self) -> None:
            body, path = self.rfile.read(int(self.headers["Content-Length"])).decode(), self.path.split("?")[0]
            address = f"http://{self.headers['Host']}/me/model"
            if path.endswith("/preupload/main"):
                files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for one in json.loads(body)["files"]]  # fmt: skip
                self.reply(200, {"files": files})
            elif "/commit/" not in path:
                self.reply(200, {"url": address, "name": "me/model"})
            elif hub.commit(body):
                self.reply(200, {"commitUrl": f"{address}/commit/1", "commitOid": "1" * 40})
            else:
                self.reply(403, {})

        def reply(self, status: int, value: dict[str, Any]) -> None:
            payload = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
    monkeypatch.setattr("fastft.exports.push.LARGE_BYTES", 100)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    """A merged folder of three shards and two small files."""
    folder = tmp_path / "merged_16bit"
    folder.mkdir()
    for number in (1, 2, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").write_bytes(bytes([number]) * 200)
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "README.md").write_text("# card")
    return Artefact("merged_16bit", folder, 606, 0.0)


SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def test_each_shard_is_a_commit_and_what_names_them_comes_last(hub: Hub, artefact: Artefact) -> None:
    address = push(artefact, "me/model", lambda _: None)

    assert hub.commits == [*([name] for name in SHARDS), ["README.md", "model.safetensors.index.json"]]
    assert address.endswith("me/model")


def test_after_a_stop_only_what_is_missing_is_sent(hub: Hub, artefact: Artefact) -> None:
    hub.fails_at_commit = 2
    with pytest.raises(MachineError, match="run the same command: it goes on"):
        push(artefact, "me/model", lambda _: None)
    said: list[str] = []

    push(artefact, "me/model", said.append)

    assert hub.commits[2:] == [[SHARDS[2]], ["README.md", "model.safetensors.index.json"]]
    assert said == [
        *(
            f"{name} (200 bytes), large file {number} of 3: is there already"
            for number, name in enumerate(SHARDS[:2], 1)
        ),
        f"{SHARDS[2]} (200 bytes), large file 3 of 3: is sent",
    ]


def test_a_shard_with_other_bytes_is_sent_again(hub: Hub, artefact: Artefact) -> None:
    push(artefact, "me/model", lambda _: None)
    (artefact.path / SHARDS[1]).write_bytes(b"x" * 200)

    push(artefact, "me/model", lambda _: None)

    assert [SHARDS[1]] in hub.commits[4:]
    assert [SHARDS[0]] not in hub.commits[4:]
