"""`fastft export` and `fastft chat` on what a run, or another program, left behind."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionLayer

from fastft.cli import main
from fastft.commands.chat import ChatRequest, open_chat
from fastft.commands.export import ExportRequest, export
from fastft.commands.serve import _exported
from fastft.engine.torch_model import TorchModel, _can_go_back
from fastft.errors import ExportError, MachineError, UsageError
from fastft.exports.gguf import kernels
from fastft.exports.job import Artefact
from fastft.exports.parity import Reference, Verdict, check_gguf
from fastft.exports.push import push
from fastft.files.tensors import Floats
from fastft.inference.conversation import Sampling
from fastft.inference.server import serve
from tests.engine.tiny import make_rows, run, write_recipe, write_rows
from tests.exports.tiny import read_json, write_adapter, write_base


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose tokenizer llama.cpp knows."""
    folder = tmp_path_factory.mktemp("trained")
    write_base(folder / "base", max_position_embeddings=512)
    write_rows(folder / "held_out.jsonl", make_rows(6, seed=9))
    return run(
        write_recipe(folder, folder / "base", {"data.eval": "held_out.jsonl", "train.num_train_epochs": 6})
    ).folder.path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter that another program made, on a base beside it."""
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path / "adapter"


def test_a_run_is_exported_and_compared_on_its_held_out_rows(trained: Path, tmp_path: Path) -> None:
    printed: list[str] = []
    done = export(
        trained, ExportRequest(("adapter", "merged_16bit", "gguf"), ("f16",), tmp_path / "out"), printed.append
    )

    entries = {entry["kind"]: entry for entry in read_json(done.record)["artefacts"]}
    assert list(entries) == ["adapter", "merged_16bit", "f16"]
    assert all(entry["parity"]["passed"] and entry["parity"]["prompts"] == 6 for entry in entries.values())
    assert (tmp_path / "out" / entries["f16"]["path"]).name == "tiny-f16.gguf"
    card = (tmp_path / "out/merged_16bit/README.md").read_text(encoding="utf-8")
    assert "held-out loss" in card
    assert str(trained.parent) not in card.split("## Recipe")[0]
    assert not any("questions" in line for line in printed)


def test_a_second_export_keeps_the_figures_of_the_first(trained: Path, tmp_path: Path) -> None:
    for kind in ("f16", "q8_0"):
        done = export(trained, ExportRequest(("gguf",), (kind,), tmp_path), lambda _: None)

    assert [entry["kind"] for entry in read_json(done.record)["artefacts"]] == ["f16", "q8_0"]


def test_an_export_that_was_stopped_goes_on_at_the_artefact_that_was_not_finished(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportRequest(("merged_16bit", "gguf"), ("f16", "q8_0"))
    compared = check_gguf

    def stopped(file: Path, kind: str, reference: Reference) -> Verdict:
        if kind == "q8_0":  # its bytes are written, and nothing is proven yet
            raise KeyboardInterrupt
        return compared(file, kind, reference)

    monkeypatch.setattr("fastft.engine.export.check_gguf", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(adapter, request, lambda _: None)
    monkeypatch.undo()
    places = [adapter / "exports/merged_16bit/model.safetensors", adapter / "exports/gguf/adapter-f16.gguf"]
    written = [place.stat().st_mtime_ns for place in places]
    assert sorted(path.name for path in (adapter / "exports").rglob("*.gguf")) == ["adapter-f16.gguf"]

    said: list[str] = []
    done = export(adapter, request, said.append)

    assert [line.split(":")[0] for line in said if "there already" in line] == [
        "merged_16bit is there already, proven",
        "f16 is there already, proven",
    ]
    assert [place.stat().st_mtime_ns for place in places] == written
    assert [artefact.kind for artefact in done.artefacts] == ["merged_16bit", "f16", "q8_0"]
    assert all(verdict.passed for verdict in done.verdicts)
    # And once more: nothing is left to do, so that no model is loaded.
    said.clear()
    export(adapter, request, said.append)
    assert [line for line in said if "there already" not in line] == []


def test_any_peft_adapter_is_exported_and_compared_on_its_own_answers(adapter: Path) -> None:
    printed: list[str] = []
    done = export(adapter, ExportRequest(("merged_16bit", "gguf"), ("q8_0",)), printed.append)

    assert done.record == adapter / "exports/export.json"
    assert all(verdict.passed and verdict.prompts == 8 for verdict in done.verdicts)
    assert "no held-out conversations: compared on the trained model's own answers to 8 questions" in printed


def test_a_whole_model_is_exported_without_an_adapter(tmp_path: Path) -> None:
    write_base(tmp_path / "model")

    done = export(tmp_path / "model", ExportRequest(("gguf",), ("f16",), tmp_path / "out"), lambda _: None)

    assert done.verdicts[0].passed
    with pytest.raises(UsageError, match="nothing to merge"):
        export(tmp_path / "model", ExportRequest(("merged_16bit",)), lambda _: None)


def test_the_bytes_that_fail_are_kept_marked_and_end_with_code_5(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fault: a broken quantizer, planted in the library whose kernel it is."""
    library = kernels.ggml()

    class Zeros:
        ggml_validate_row_data = library.ggml_validate_row_data

        def ggml_quantize_chunk(self, *arguments: Any) -> int:
            written: int = library.ggml_quantize_chunk(*arguments)
            ctypes.memset(arguments[2], 0, written)
            return written

    monkeypatch.setattr(kernels, "ggml", Zeros)
    monkeypatch.setattr("sys.argv", ["fastft", "export", str(adapter), "--to", "gguf", "--quant", "q8_0"])
    with pytest.raises(SystemExit) as done:
        main()

    assert done.value.code == 5
    assert "the file is kept and marked FAILED" in capsys.readouterr().err
    assert [path.name for path in (adapter / "exports/gguf").glob("*.gguf*")] == ["adapter-q8_0.gguf.FAILED"]


def test_the_command_shows_the_bytes_of_a_long_export(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastft.report.written.LINE_SECONDS", 0.0)  # each export of a tiny model is a long one
    monkeypatch.setattr("sys.argv", ["fastft", "export", str(adapter), "--to", "gguf", "--quant", "q8_0"])
    with pytest.raises(SystemExit):
        main()

    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("• q8_0: ") and " of " in line]
    assert re.fullmatch(r"• q8_0: (\d+) of \1 KiB \(100 %\)", lines[-1])
    assert any(line.endswith(" left") for line in lines[:-1])


def test_another_base_of_the_same_shape_is_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.parents[1] / "base", other)
    arrays = load_file(other / "model.safetensors")
    arrays["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(arrays, other / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UsageError, match="is not the model that the run trained on"):
        export(trained, ExportRequest(("gguf",), base=str(other), out=tmp_path / "out"), lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--to", "ggfu"], "did you mean gguf?"),
        (["--to", "merged_fp8"], "write merged_16bit, and serve it with --quantization fp8"),
        (["--to", "merged_16bit", "--quant", "q8_0"], "add --to gguf"),
        (["--quant", "q9_9"], "q9_9"),
        (["--base", "nowhere/at all"], "no such folder"),
        (["--llama-cpp", "nowhere"], "has no convert_hf_to_gguf.py"),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_loaded(
    adapter: Path,
    arguments: list[str],
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["fastft", "export", str(adapter), *arguments])
    with pytest.raises(SystemExit) as done:
        main()

    assert done.value.code in (2, 4)
    assert wrong in capsys.readouterr().err
    assert not (adapter / "exports").exists()


def test_an_unknown_architecture_goes_on_with_a_llama_cpp_checkout(adapter: Path, tmp_path: Path) -> None:
    """The checkout's converter is stood in for by a program that writes the file with fastft's own writer."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp/convert_hf_to_gguf.py").write_text(
        "import sys; from pathlib import Path; from fastft.exports.gguf.writer import write_gguf\n"
        "value = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        "write_gguf(Path(sys.argv[1]), None, Path(value('--outfile')), value('--outtype'))\n"
    )
    request = ExportRequest(("gguf",), ("f16",), tmp_path / "out", llama_cpp=tmp_path / "llama.cpp")

    done = export(adapter, request, lambda _: None)

    assert done.verdicts[0].passed
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["gguf"]


def test_the_run_the_adapter_and_the_gguf_say_the_same(trained: Path, tmp_path: Path) -> None:
    done = export(trained, ExportRequest(("merged_16bit", "gguf"), ("f32",), tmp_path / "out"), lambda _: None)
    places = [trained, trained / "adapter", *(artefact.path for artefact in done.artefacts)]
    answers = []
    for place in places:
        request = ChatRequest(sampling=Sampling(max_new_tokens=12))
        with open_chat(place, request, lambda _: None) as conversations:
            answers.append("".join(conversations[0][1].answer("1: red green blue")))

    # float16 may round the choice at a near tie; the other three compute in float32.
    assert answers[0] == answers[1] == answers[3]
    assert answers[0]


def test_a_later_turn_computes_only_what_is_new_and_answers_the_same(trained: Path) -> None:
    computed: list[tuple[int, int]] = []
    sizes: list[int] = []
    with open_chat(trained, ChatRequest(sampling=Sampling(max_new_tokens=12)), lambda _: None) as conversations:
        conversation = conversations[0][1]
        model = conversation.model
        assert isinstance(model, TorchModel)
        logits = model._logits

        def counted(pending: list[int]) -> Floats:
            sizes.append(len(pending))
            return logits(pending)

        model._logits = counted  # type: ignore[method-assign]
        for question in ("1: red green blue", "2: black white", "3: pink"):
            sizes.clear()
            answer, tokens = "".join(conversation.answer(question)), sizes[0]
            del conversation.messages[-2:]
            model._keep(0)
            sizes.clear()
            assert "".join(conversation.answer(question)) == answer
            computed.append((tokens, sizes[0]))

    assert computed[0][0] == computed[0][1]
    assert all(tokens < whole / 2 for tokens, whole in computed[1:])


def test_a_cache_that_cannot_go_back_is_not_kept() -> None:
    full = DynamicCache()
    full.update(torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 9, 2), 0)
    window = DynamicSlidingWindowLayer(sliding_window=4)
    sliding = Cache(layers=[window])
    sliding.update(torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 9, 2), 0)
    recurrent = Cache(layers=[LinearAttentionLayer()])

    assert (_can_go_back(full, 3), _can_go_back(sliding, 0)) == (True, True)
    assert (_can_go_back(sliding, 3), _can_go_back(recurrent, 0)) == (False, False)


def test_serve_exports_a_run_without_a_gguf_file_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    first, second = _exported(trained), _exported(trained)

    said = capfd.readouterr().err
    assert f"{trained} has no GGUF file: one is exported into the cache" in said
    assert "q8_0 is there already, proven" in said
    assert first == second
    assert first.is_relative_to(tmp_path / "fastft/served")
    assert not (trained / "exports/gguf").exists()
    with serve(first, port=0) as address:
        body = {"messages": [{"role": "user", "content": "1: red"}], "max_tokens": 4}
        assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_the_base_answers_beside_the_tuned_model(trained: Path) -> None:
    request = ChatRequest(compare=True, sampling=Sampling(max_new_tokens=12))
    with open_chat(trained, request, lambda _: None) as conversations:
        said = {name: "".join(conversation.answer("1: red green blue")) for name, conversation in conversations}
        again = "".join(dict(conversations)["tuned"].answer("1: red green blue"))

    assert list(said) == ["base", "tuned"]
    assert said["base"] != said["tuned"]
    assert again  # the adapter is on again after the base has answered


def test_an_artefact_is_uploaded_to_a_private_repository(tmp_path: Path, hub: Callable[..., Any]) -> None:
    (tmp_path / "model-q8_0.gguf").write_bytes(b"GGUF" * 10)
    (tmp_path / "model-q8_0.md").write_text("# card")
    (tmp_path / "model-f16.gguf").write_bytes(b"another")
    seen = hub()

    address = push(Artefact("q8_0", tmp_path / "model-q8_0.gguf", 40, 0.0), "me/model")

    created = next(body for path, body in seen if path == "/api/repos/create")
    lines = [json.loads(line) for path, body in seen if "/commit/" in path for line in body.splitlines()]
    assert created["visibility"] == "private"
    assert {line["value"]["path"] for line in lines if line["key"] == "file"} == {"README.md", "model-q8_0.gguf"}
    assert address.endswith("me/model")


def test_an_upload_that_is_refused_leaves_the_file_and_tells_no_token(
    tmp_path: Path, hub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "m-f16.gguf").write_bytes(b"GGUF")
    hub(status=403)

    with pytest.raises(MachineError, match="hf auth login") as refused:
        push(Artefact("f16", tmp_path / "m-f16.gguf", 4, 0.0), "me/model")

    assert "hf_secret" not in str(refused.value)
    assert (tmp_path / "m-f16.gguf").is_file()


def test_nothing_is_uploaded_when_the_comparison_failed(adapter: Path, hub: Callable[..., Any]) -> None:
    """The fault: an adapter that was emptied: nothing of the training is in the export."""
    seen = hub()
    arrays = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 0 * array for name, array in arrays.items()}, adapter / "adapter_model.safetensors")

    with pytest.raises(ExportError, match="nearer to the base"):
        export(adapter, ExportRequest(("gguf",), ("q8_0",), push="me/model"), lambda _: None)

    assert seen == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub on loopback that notes what it is asked for: (path, JSON or text)."""
    servers = []

    def start(status: int = 200) -> list[tuple[str, Any]]:
        seen: list[tuple[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                path = self.path.split("?")[0]
                seen.append((path, body if "/commit/" in path else json.loads(body)))
                reply: dict[str, Any] = {"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"}
                if path.endswith("/preupload/main"):
                    files = json.loads(body)["files"]
                    reply = {
                        "files": [
                            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files
                        ]
                    }
                if "/commit/" in path:
                    reply = {"commitUrl": f"{reply['url']}/commit/1", "commitOid": "1" * 40}
                payload = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        return seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
