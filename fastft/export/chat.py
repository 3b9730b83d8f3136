"""A conversation with a GGUF file: its own template, history, sampling; and llama.cpp's OpenAI-compatible server."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastft.data.example import Message as Turn
from fastft.data.template import ChatTemplate
from fastft.errors import Problem, RecipeError, Where

Message = dict[str, str]


QUIT = ("/quit", "/exit", "q")


class ChatModel(Protocol):
    """What a conversation asks of a model, whichever runtime it is in (`llamacpp.GgufModel` is one)."""

    @property
    def source(self) -> Path:
        """The file or folder that it was loaded from."""

    @property
    def chat_template(self) -> str | None:
        """The template that came with it."""

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token`."""

    def chat_tokens(self, rendered: str) -> list[int]:
        """The ids of a rendered prompt."""

    def generate(
        self, tokens: Sequence[int], max_new_tokens: int, temperature: float, top_p: float, seed: int | None
    ) -> Iterator[int]:
        """New tokens one by one, up to the end token."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token, so that an answer can be repeated."""
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None


@dataclass
class Conversation:
    """The messages so far with one model; each answer is streamed and then remembered."""

    model: ChatModel
    sampling: Sampling = Sampling()
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def reset(self) -> None:
        """Forget the messages, not the system prompt."""
        self.messages.clear()

    def answer(self, text: str) -> Iterator[str]:
        """The answer to `text` piece by piece.

        Raises:
            RecipeError: the file has no chat template, or its template refuses these messages.
        """
        template = self.model.chat_template
        if template is None:
            raise RecipeError(
                Problem(Where(str(self.model.source)), "", "has no chat template", "export it with a chat template")
            )
        self.messages.append({"role": "user", "content": text})
        start = [{"role": "system", "content": self.system}] if self.system else []
        tokens = self.model.chat_tokens(render_chat(template, [*start, *self.messages], self.model.special_tokens))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        said = ""
        sampling = self.sampling
        for token in self.model.generate(
            tokens, sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.seed
        ):
            piece = decoder.decode(self.model.piece(token))
            said += piece
            yield piece
        self.messages.append({"role": "assistant", "content": said})


def talk(conversations: Sequence[tuple[str, Conversation]], lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Answer line after line until /quit, /exit or q; /reset forgets, an empty line is passed over.

    Several conversations (`--compare`) answer each line in turn, each under its name. `write` gets text piece by piece.
    """
    for line in lines:
        said = line.strip()
        if said in QUIT:
            return
        if said == "/reset":
            for _, conversation in conversations:
                conversation.reset()
            write("(forgotten)\n")
        elif said.startswith("/"):
            write(f"unknown command {said}; known: /reset, /quit\n")
        elif said:
            for name, conversation in conversations:
                if len(conversations) > 1:
                    write(f"{name}: ")
                for piece in conversation.answer(said):
                    write(piece)
                write("\n")


def render_chat(template: str, messages: Sequence[Message], special_tokens: dict[str, str]) -> str:
    """The prompt that `template` makes of `messages`, ready for the answer, as training renders it.

    Raises:
        RecipeError: the template is no Jinja template.
        DataError: the template refuses these messages.
    """
    turns = [Turn(message["role"], message["content"]) for message in messages]
    chat = ChatTemplate("chat template", template)
    return chat.render(turns, special_tokens, where=Where("chat template"), add_generation_prompt=True)


def serve(file: Path, port: int = 8080, context_tokens: int = 4096, host: str = "127.0.0.1") -> tuple[Any, str]:
    """(running server, its address): llama.cpp's own OpenAI-compatible server on `file`; it lives with the object.

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
