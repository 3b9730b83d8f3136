"""`fastft chat` and `fastft serve` on a GGUF file, which need no torch."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from fastft.cli import main
from fastft.commands.chat import COMMANDS, ChatRequest, open_chat, talk
from fastft.errors import UsageError
from fastft.exports.gguf.writer import write_gguf
from fastft.inference.conversation import Conversation, Sampling
from fastft.inference.llamacpp import GgufModel
from fastft.inference.questions import questions
from fastft.report.chat import AnswerStreams, show_beside, write_answers
from fastft.runs.held_out import HeldOut
from tests.exports.tiny import write_adapter, write_base, write_json


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_base(folder / "base")
    return write_gguf(folder / "base", None, folder / "out.gguf", "f32").file


@pytest.fixture
def model(gguf: Path) -> Iterator[GgufModel]:
    with GgufModel(gguf, context_tokens=256) as loaded:
        yield loaded


def four_tokens(model: GgufModel) -> Conversation:
    return Conversation(model, Sampling(max_new_tokens=4))


def make_run(folder: Path, systems: list[str]) -> Path:
    """The files by which a finished run is known, with held-out rows that have these system prompts."""
    folder.mkdir()
    for name in ("recipe.toml", "settings.json", "result.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    conversations = [[{"role": "system", "content": system}, *turns] for system in systems]
    write_json(folder / HeldOut.FILE, {"conversations": conversations, "end_ids": [2]})
    return folder


def test_a_line_gets_the_answer_of_each_model_under_its_name(model: GgufModel) -> None:
    alone = "".join(four_tokens(model).answer("the fox"))
    written, printed = io.StringIO(), []
    pair = [("base", four_tokens(model)), ("tuned", four_tokens(model))]

    talk(
        pair, ["", "the fox\n", "q", "never read"], partial(write_answers, written.write, visible=True), printed.append
    )

    assert written.getvalue() == f"base: {alone}\ntuned: {alone}\n"
    assert printed == [f"the answer of {name} is cut off after 4 tokens" for name in ("base", "tuned")]
    assert [turn["role"] for turn in pair[0][1].messages] == ["user", "assistant"]


def test_slash_commands_forget_quit_and_explain_themselves(model: GgufModel) -> None:
    printed: list[str] = []
    conversation = four_tokens(model)

    talk([("tuned", conversation)], ["the fox", "/reset", "/help", "/quit", "no"], drain, printed.append)

    assert printed[1:] == ["forgotten", f"there is no /help: {COMMANDS}"]
    assert conversation.messages == []


def test_a_conversation_that_no_longer_fits_is_explained_and_goes_on(gguf: Path) -> None:
    printed: list[str] = []
    with GgufModel(gguf, context_tokens=64) as model:
        conversation = four_tokens(model)
        talk([("tuned", conversation)], ["fox " * 200, "the fox"], drain, printed.append)

    assert "more than 64 tokens do not fit the context; use /reset, or a larger --context-tokens" in printed[0]
    assert [turn["content"] for turn in conversation.messages[:1]] == ["the fox"]


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(model: GgufModel) -> None:
    printed: list[str] = []
    conversation = Conversation(model, Sampling(max_new_tokens=50))

    def interrupt(answers: AnswerStreams) -> None:
        next(pieces := answers[0][1])
        pieces.close()
        raise KeyboardInterrupt

    talk([("tuned", conversation)], ["the fox"], interrupt, printed.append)

    assert printed == ["stopped"]
    assert len(conversation.messages) == 2


def test_a_conversation_is_saved_as_a_row_of_training_data_and_may_be_saved_again(gguf: Path, tmp_path: Path) -> None:
    file, printed = tmp_path / "chat.jsonl", list[str]()
    with GgufModel(gguf, context_tokens=256) as model:
        conversation = Conversation(model, Sampling(max_new_tokens=4), system="Be short.")
        lines = [f"/save {file}", "the fox", f"/save {file}", "the dog", f"/save {file}", "/save x.txt"]
        talk([("tuned", conversation)], lines, drain, printed.append)

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"messages": conversation.so_far}]
    assert [turn["role"] for turn in rows[0]["messages"]] == ["system", *["user", "assistant"] * 2]
    said = [line for line in printed if "cut off" not in line]
    assert said == [
        "/save: nothing was said yet; ask something first",
        f"3 messages are in {file}",
        f"5 messages are in {file}",
        "/save: a conversation goes to a .jsonl file (got x.txt); write /save chat.jsonl",
    ]


def test_a_file_of_somebody_else_is_not_overwritten(model: GgufModel, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("mine")
    printed: list[str] = []

    talk([("tuned", four_tokens(model))], ["the fox", f"/save {tmp_path / 'rows.jsonl'}"], drain, printed.append)

    assert "exists already" in printed[-1]
    assert (tmp_path / "rows.jsonl").read_text() == "mine"


def test_each_of_two_models_is_a_row_that_names_it(model: GgufModel, tmp_path: Path) -> None:
    pair = [("base", four_tokens(model)), ("tuned", four_tokens(model))]

    talk(pair, ["the fox", f"/save {tmp_path / 'both.jsonl'}"], drain, lambda _: None)

    rows = [json.loads(line) for line in (tmp_path / "both.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["model"] for row in rows] == ["base", "tuned"]


def test_several_lines_between_quotes_are_one_question_and_no_command() -> None:
    typed = iter(["one\n", '"""first\n', "/second\n", 'q"""\n', '"""/etc/hosts"""\n', '"""open\n', "end"])

    def read(_: str) -> str:
        for line in typed:
            return line
        raise EOFError

    assert list(questions(read)) == ["one\n", "\nfirst\n/second\nq", "\n/etc/hosts", "\nopen\nend"]


def test_ctrl_c_drops_a_question_that_is_being_typed(capsys: pytest.CaptureFixture[str]) -> None:
    prompts: list[str] = []
    typed: Iterator[str | None] = iter(['"""half', None, "whole"])

    def read(prompt: str) -> str:
        prompts.append(prompt)
        for line in typed:
            if line is None:
                raise KeyboardInterrupt
            return line
        raise EOFError

    assert list(questions(read)) == ["whole"]
    assert prompts == ["> ", "... ", "> ", "> "]
    assert capsys.readouterr().out == "\n"


def test_a_question_of_several_lines_may_begin_with_a_slash(model: GgufModel) -> None:
    conversation = four_tokens(model)

    talk([("tuned", conversation)], ["\n/reset\nq"], drain, lambda _: None)

    assert conversation.messages[0]["content"] == "/reset\nq"


def test_the_system_prompt_may_come_from_a_file(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Line one.\nLine two.\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")

    with open_chat(gguf, ChatRequest(system_file=tmp_path / "system.txt"), print) as conversations:
        assert conversations[0][1].system == "Line one.\nLine two."

    for request, wrong in (
        (ChatRequest(system_file=tmp_path / "none"), "cannot be read"),
        (ChatRequest(system_file=tmp_path / "latin.txt"), "no text in UTF-8"),
        (ChatRequest(system="a", system_file=tmp_path / "system.txt"), "two system prompts"),
    ):
        with pytest.raises(UsageError, match=wrong), open_chat(gguf, request, print):
            pass


def test_what_a_terminal_would_obey_is_written_out() -> None:
    written = io.StringIO()

    write_answers(written.write, [("tuned", iter(["a\x1b[2Jb\n"]))], visible=True)

    assert written.getvalue() == "a\\x1b[2Jb\n\n"


def test_two_answers_stand_side_by_side() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    show_beside(console, [("base", iter(["left ", "one"])), ("tuned", iter(["right"]))])

    assert isinstance(console.file, io.StringIO)
    assert any("left one" in line and "right" in line for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize(
    ("systems", "given", "used"),
    [(["Triage.", "Triage."], None, "Triage."), (["Triage.", "Other."], None, None), (["Triage."] * 2, "", None)],
)
def test_the_system_prompt_of_the_rows_is_the_default(
    gguf: Path, tmp_path: Path, systems: list[str], given: str | None, used: str | None
) -> None:
    run = make_run(tmp_path / "run", systems)
    (run / "exports/gguf").mkdir(parents=True)
    os.link(gguf, run / "exports/gguf/run-f32.gguf")
    printed: list[str] = []

    with open_chat(run / "exports/gguf/run-f32.gguf", ChatRequest(system=given), printed.append) as conversations:
        assert conversations[0][1].system == used

    assert any("system prompt of the held-out rows" in line for line in printed) == (used is not None)


def test_a_file_that_failed_its_comparison_is_named(gguf: Path, tmp_path: Path) -> None:
    failed = tmp_path / "x.gguf.FAILED"
    os.link(gguf, failed)
    printed: list[str] = []
    with open_chat(failed, ChatRequest(), printed.append):
        pass
    assert printed[0] == "x.gguf.FAILED FAILED its comparison with the trained model: do not trust its answers"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("nothing", "there is no such file or folder"),
        ("empty", "holds no weights"),
        ("running", "has not finished"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, name: str, wrong: str) -> None:
    (tmp_path / "empty").mkdir()
    (make_run(tmp_path / "running", []) / "result.json").unlink()

    with pytest.raises(UsageError, match=wrong), open_chat(tmp_path / name, ChatRequest(), print):
        pass


def test_only_an_adapter_can_be_compared(gguf: Path) -> None:
    with pytest.raises(UsageError, match="only an adapter"), open_chat(gguf, ChatRequest(compare=True), print):
        pass


def test_an_adapter_that_names_no_base_asks_for_one(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")

    with pytest.raises(UsageError, match="--base"), open_chat(tmp_path / "adapter", ChatRequest(), print):
        pass


def test_the_program_answers_one_question(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastft", "chat", str(gguf), "--prompt", "the fox", "--max-new-tokens", "4"])
    with pytest.raises(SystemExit) as done:
        main()

    out, err = capsys.readouterr()
    with GgufModel(gguf, context_tokens=256) as model:
        assert out == "".join(four_tokens(model).answer("the fox")) + "\n"
    assert done.value.code == 0
    assert "with its own chat template (sha256" in err


@pytest.mark.parametrize(
    ("names", "wrong"), [([], "holds no weights"), (["a.gguf", "b.gguf"], "2 GGUF files are there; name one of them")]
)
def test_serve_needs_weights_and_at_most_one_file(
    tmp_path: Path, names: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "argv", ["fastft", "serve", str(tmp_path)])
    with pytest.raises(SystemExit) as done:
        main()

    assert done.value.code == 2
    assert wrong in capsys.readouterr().err


def test_the_server_answers_as_openai_does_and_ends_at_a_signal(gguf: Path, free_port: Callable[[], int]) -> None:
    command = [sys.executable, "-m", "fastft", "serve", str(gguf), "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            address = next(word for word in line.split() if word.startswith("http"))
            body = {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 4, "temperature": 0}
            answer = httpx.post(address.rstrip(";"), json=body, timeout=60).json()
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0

    assert "127.0.0.1" in address
    assert answer["choices"][0]["message"]["role"] == "assistant"


@pytest.fixture
def free_port() -> Callable[[], int]:
    import socket

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


def drain(answers: AnswerStreams) -> None:
    for _, pieces in answers:
        for _ in pieces:
            pass
