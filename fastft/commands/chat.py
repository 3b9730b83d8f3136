"""`fastft chat`: find the weights, load them in their runtime, chat."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.console import Say, library_output_to, warn
from fastft.engine_choice import select
from fastft.errors import FastftError, MachineError, Problem, UsageError, Where
from fastft.exports.adapter import check_adapter
from fastft.exports.trained import read_config
from fastft.files.atomic import write_text
from fastft.inference.conversation import Conversation, Sampling
from fastft.inference.questions import BLOCK, Read, questions
from fastft.probe.software import require
from fastft.report.chat import Answering, show_beside, write_answers
from fastft.runs.held_out import HeldOut
from fastft.stages.weights import WeightsPath, find_base, find_weights, held_out, refuse_classifier

if TYPE_CHECKING:
    from fastft.inference.conversation import ChatModel

QUIT = ("/quit", "/exit", "q")
SAVE = "/save"
COMMANDS = f"/reset forgets the conversation, {SAVE} FILE.jsonl keeps it, /quit or q ends it"


@dataclass(frozen=True)
class ChatRequest:
    """The options of `fastft chat`."""

    base: str | None = None
    compare: bool = False
    """Let the untrained base answer too."""
    system: str | None = None
    """None: the system prompt that all held-out rows of the run have."""
    system_file: Path | None = None
    """A text file with the system prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    context_tokens: int | None = None
    """For GGUF files: None is 4096, or what the model was made for if that is less. Other weights use the length of
    their model."""


@contextlib.contextmanager
def open_chat(path: Path, request: ChatRequest, say: Say) -> Iterator[list[tuple[str, Conversation]]]:
    """(name, conversation) of each model: "tuned", and before it "base" when they are compared.

    Raises:
        UsageError: there are no weights at `path`, or these cannot be compared.
        MachineError: they cannot be loaded.
    """
    if request.system is not None and request.system_file is not None:
        wrong = "there are two system prompts"
        raise UsageError(Problem(Where("--system-file"), "", wrong, "write --system or --system-file"))
    weights = find_weights(path)
    refuse_classifier(weights, "chat")
    if request.compare and weights.kind != "adapter":
        wrong = "only an adapter can be compared with its base"
        raise UsageError(Problem(Where("--compare"), "", wrong, "name the run's folder or its adapter"))
    if str(weights.path).endswith(".FAILED"):
        say(f"{weights.path.name} FAILED its comparison with the trained model: do not trust its answers")
    with ExitStack() as stack:
        models: list[tuple[str, ChatModel]]
        if weights.kind == "gguf":
            from fastft.inference.gguf_header import fit_context
            from fastft.inference.llamacpp import GgufModel

            tokens = fit_context(weights.path, request.context_tokens)
            models = [("tuned", stack.enter_context(GgufModel(weights.path, context_tokens=tokens)))]
        else:
            models = _torch(weights, request, say)
        template = models[-1][1].chat_template
        if template is None:
            instead = "export it with data.chat_template set"
            raise UsageError(Problem(Where(str(weights.path)), "", "has no chat template", instead))
        digest = hashlib.sha256(template.encode()).hexdigest()[:12]
        say(f"{weights.path}, with its own chat template (sha256 {digest})")
        system = _system(weights, request, say)
        yield [(name, Conversation(model, request.sampling, system)) for name, model in models]


def talk(conversations: list[tuple[str, Conversation]], lines: Iterable[str], answering: Answering, say: Say) -> None:
    """Answer each line until /quit, /exit or q; /reset forgets the conversation, /save FILE.jsonl writes it.

    An empty line is skipped. One that begins with a line break is no command, whatever it says. Ctrl+C stops an answer,
    not the chat.
    """
    saved: set[Path] = set()
    for line in lines:
        said = line.strip()
        is_question = line.startswith("\n") or not said.startswith("/")
        if said in QUIT and not line.startswith("\n"):
            return
        if not is_question:
            _obey(said, conversations, saved, say)
        elif said:
            _answer(said, conversations, answering, say)


def _obey(command: str, conversations: Sequence[tuple[str, Conversation]], saved: set[Path], say: Say) -> None:
    name, _, rest = command.partition(" ")
    if command == "/reset":
        for _, conversation in conversations:
            conversation.reset()
        say("forgotten")
    elif name == SAVE:
        with _explained(say):
            say(_save(rest.strip(), conversations, saved))
    else:
        say(f"there is no {command}: {COMMANDS}")


def _answer(said: str, conversations: list[tuple[str, Conversation]], answering: Answering, say: Say) -> None:
    try:
        with _explained(say):
            answering([(name, conversation.answer(said)) for name, conversation in conversations])
    except KeyboardInterrupt:
        say("stopped")
    for name, conversation in conversations:
        if conversation.cut_off:
            limit = conversation.sampling.max_new_tokens
            say(f"the answer{f' of {name}' if len(conversations) > 1 else ''} is cut off after {limit} tokens")


@contextlib.contextmanager
def _explained(say: Say) -> Iterator[None]:
    try:
        yield
    except FastftError as error:
        for problem in error.problems:
            say(str(problem))


def _save(name: str, conversations: Sequence[tuple[str, Conversation]], saved: set[Path]) -> str:
    """Write the conversations as rows that `fastft run` trains on; a file of this chat may be written again."""
    where = Where(SAVE)
    if not name.endswith(".jsonl"):
        raise UsageError(Problem(where, "", "a conversation goes to a .jsonl file", f"write {SAVE} chat.jsonl", name))
    rows = [(model, each.so_far) for model, each in conversations if each.messages]
    if not rows:
        raise UsageError(Problem(where, "", "nothing was said yet", "ask something first"))
    file = Path(name).expanduser()
    if file not in saved and file.exists():
        raise UsageError(Problem(where, "", "exists already", "write another name", str(file)))
    models = [{} if len(conversations) == 1 else {"model": model} for model, _ in rows]
    texts = [
        json.dumps({"messages": messages, **model}, ensure_ascii=False)
        for model, (_, messages) in zip(models, rows, strict=True)
    ]
    try:
        write_text(file, "\n".join(texts) + "\n")
    except OSError as error:
        wrong = f"cannot be written: {error.strerror or error}"
        raise MachineError(Problem(where, "", wrong, "write another name", str(file))) from error
    saved.add(file)
    return f"{sum(len(messages) for _, messages in rows)} messages are in {file}"


def chat_in_terminal(path: Path, request: ChatRequest, prompt: str | None) -> None:
    """Chat on standard input and output, or answer `prompt` alone. Everything else goes to standard error."""
    from rich.console import Console

    visible = sys.stdout.isatty()
    answering: Answering = partial(write_answers, partial(print, end="", flush=True), visible=visible)
    if request.compare and visible:
        answering = partial(show_beside, Console())
    with open_chat(path, request, warn) as conversations:
        talk(conversations, _typed() if prompt is None else [prompt], answering, warn)


def _typed() -> Iterator[str]:
    """Questions from standard input, with a prompt and line editing on a terminal."""
    if not sys.stdin.isatty():
        return questions(_piped)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then edits lines and remembers them
    warn(f"{COMMANDS}; {BLOCK} begins and ends a question of several lines; Ctrl+C stops an answer")
    read: Read = input
    return questions(read)


def _piped(_: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _system(weights: WeightsPath, request: ChatRequest, say: Say) -> str | None:
    if request.system_file is not None:
        return _read_system(request.system_file)
    if request.system is not None:
        return request.system or None
    kept = None if weights.run is None else weights.run.read(HeldOut)
    conversations = () if kept is None else kept.conversations
    first = {next((turn["content"] for turn in one if turn["role"] == "system"), None) for one in conversations}
    system = first.pop() if len(first) == 1 else None
    if system is not None:
        say(f"with the system prompt of the held-out rows, {system!r}; --system gives another, or '' none")
    return system


def _read_system(file: Path) -> str | None:
    where = Where("--system-file")
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
        raise UsageError(Problem(where, "", wrong, "name a text file", str(file))) from error
    except UnicodeDecodeError as error:
        raise UsageError(Problem(where, "", "is no text in UTF-8", "save it as UTF-8", str(file))) from error


def _torch(weights: WeightsPath, request: ChatRequest, say: Say) -> list[tuple[str, ChatModel]]:
    require(("torch", "transformers", "peft"), str(weights.path))
    adapter = weights.path if weights.kind == "adapter" else None
    base = weights.path if adapter is None else find_base(weights, request.base, say)[1]
    read_config(base / "config.json")
    if adapter is not None:
        check_adapter(adapter, base)
    ends = held_out(weights, base, adapter).end_ids
    say("loading the model")
    with tempfile.TemporaryDirectory() as folder, library_output_to(Path(folder) / "log.txt"):
        select("transformers")  # as users will load the model; and Unsloth takes ten seconds to import
        from fastft.engine.export import load_trained
        from fastft.engine.torch_model import TorchModel

        model, tokenizer = load_trained(base, adapter)
    models: list[tuple[str, ChatModel]] = [("tuned", TorchModel(model, tokenizer, weights.path, ends))]
    if request.compare:
        models.insert(0, ("base", TorchModel(model, tokenizer, base, ends, adapted=False)))
    return models
