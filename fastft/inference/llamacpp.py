"""A GGUF file in llama.cpp: tokens, logits at every position, greedy and sampled text.

Calls the C functions of the library in the xllamacpp wheel, because its Python interface is a server, which gives no
logits of a prompt. Of a structure only the first fields are declared: llama.cpp fills in its defaults, and the rest is
passed back unchanged.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from fastft.errors import MachineError, Problem, Where
from fastft.files.tensors import Floats
from fastft.inference.conversation import next_token

BATCH_TOKENS = 512
ERROR_LEVEL = 4  # ggml.h: GGML_LOG_LEVEL_ERROR
# More than any of llama.cpp's parameter structures needs; the callee reads only its own part.
REST_BYTES = 1024
VOCABULARY_ONLY_WORD = 9


class _Parameters(ctypes.Structure):
    _fields_ = (("rest", ctypes.c_uint64 * (REST_BYTES // 8)),)


class _ContextParameters(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * (REST_BYTES // 8)),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_errors: list[str] = []


def _collect(level: int, text: bytes | None, _: int | None) -> None:
    if level == ERROR_LEVEL and text:
        _errors.append(text.decode(errors="replace").strip())


# A reference, because llama.cpp can call it at any time.
_collector = _LOG_CALLBACK(_collect)


def shared_library() -> Path:
    """The path of the shared library in the installed xllamacpp, without importing it.

    Raises:
        MachineError: xllamacpp is not installed.
    """
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for file in sorted(Path(folder).glob("xllamacpp*.so")):
            return file
    wrong, instead = "needs xllamacpp, which is not installed", "install it: pip install 'fastft[train]'"
    raise MachineError(Problem(Where("export"), "", wrong, instead))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(shared_library()))
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [_LOG_CALLBACK, pointer]),
        "llama_model_default_params": (_Parameters, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Parameters]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_model_chat_template": (ctypes.c_char_p, [pointer, ctypes.c_char_p]),
        "llama_model_n_ctx_train": (number, [pointer]),
        "llama_context_default_params": (_ContextParameters, []),
        "llama_init_from_model": (pointer, [pointer, _ContextParameters]),
        "llama_free": (None, [pointer]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_seq_rm": (flag, [pointer, number, number, number]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_get_logits_ith": (pointer, [pointer, number]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_vocab_is_eog": (flag, [pointer, number]),
        "llama_vocab_eos": (number, [pointer]),
        "llama_vocab_bos": (number, [pointer]),
        "llama_vocab_get_add_bos": (flag, [pointer]),
        "llama_tokenize": (number, [pointer, ctypes.c_char_p, number, pointer, number, flag, flag]),
        "llama_token_to_piece": (number, [pointer, number, pointer, number, number, flag]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    return library


def _set_vocabulary_only(parameters: _Parameters) -> None:
    """Set the flag that loads no weights: the first one after 9 words of pointers and numbers in llama.h."""
    flags = (ctypes.c_uint8 * 3).from_buffer(parameters, 8 * VOCABULARY_ONLY_WORD)
    if tuple(flags) != (0, 0, 1):  # vocab_only, check_tensors, use_extra_bufts
        wrong = "this version of xllamacpp has other parameters than the one that fastft was tested with"
        raise MachineError(Problem(Where("export"), "", wrong, "install the version that fastft doctor names"))
    flags[0] = 1


class GgufVocabulary:
    """The tokenizer of a GGUF file in llama.cpp; use it in a `with` statement.

    Raises:
        MachineError: xllamacpp is not installed, or llama.cpp cannot load the file (the message quotes its error).
    """

    def __init__(self, file: Path, vocabulary_only: bool = True) -> None:
        self.source = file
        self._lib = library = _library()
        library.llama_log_set(_collector, None)  # each time: a server of xllamacpp in this process sets its own
        _errors.clear()
        parameters = library.llama_model_default_params()
        if vocabulary_only:
            _set_vocabulary_only(parameters)
        self._model: int | None = library.llama_model_load_from_file(os.fsencode(file), parameters)
        if not self._model:
            raise self.failed("cannot be loaded by llama.cpp")
        self._vocabulary = library.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = library.llama_vocab_n_tokens(self._vocabulary)
        self.bos: int = library.llama_vocab_bos(self._vocabulary)
        """The id of the beginning token, -1 for none."""
        self.eos: int = library.llama_vocab_eos(self._vocabulary)
        """The id of the end token, -1 for none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._model:
            self._lib.llama_model_free(self._model)
        self._model = None

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file, or None."""
        found: bytes | None = self._lib.llama_model_chat_template(self._model, None)
        return None if found is None else found.decode()

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of the beginning and the end token, under their names in chat templates."""
        return {"bos_token": self.token_text(self.bos), "eos_token": self.token_text(self.eos)}

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp puts the beginning token in front of a text."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocabulary))

    def is_end(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """The ids of `text`, with special tokens parsed; `add_special` also adds those that the file asks for."""
        data = text.encode()
        room = len(data) + 8
        ids = np.empty(room, dtype=np.int32)
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), ids.ctypes.data, room, add_special, True)
        if count < 0:
            raise self.failed(f"llama.cpp needs {-count} tokens for {len(data)} bytes of text")
        return [int(token) for token in ids[:count]]

    def chat_tokens(self, rendered: str) -> list[int]:
        """The ids of a rendered chat, as in llama.cpp's own chat: never with two beginning tokens."""
        if self.adds_bos:
            rendered = rendered.removeprefix(self.token_text(self.bos))
        return self.tokenize(rendered, add_special=True)

    def token_text(self, token: int) -> str:
        """The text of one token, special or not; empty for -1."""
        return "" if token < 0 else self.piece(token, special=True).decode(errors="replace")

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token; empty for a special one unless `special`."""
        buffer = ctypes.create_string_buffer(256)
        count = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, special)
        return buffer.raw[: max(count, 0)]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without the special ones."""
        return b"".join(self.piece(token) for token in tokens).decode(errors="replace")

    def failed(self, wrong: str) -> MachineError:
        """The error for this file, with llama.cpp's last messages."""
        errors = "; ".join(_errors[-3:])
        said = f"{wrong}: {errors}" if errors else wrong
        return MachineError(Problem(Where(str(self.source)), "", said, "export it again"))


class GgufModel(GgufVocabulary):
    """A loaded GGUF file; use it in a `with` statement.

    Raises:
        MachineError: as `GgufVocabulary`, or llama.cpp cannot make the context.
    """

    def __init__(self, file: Path, context_tokens: int = 2048) -> None:
        self._context: int | None = None
        super().__init__(file, vocabulary_only=False)
        library = self._lib
        parameters = library.llama_context_default_params()
        parameters.n_ctx = self.context_tokens = context_tokens
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise self.failed(f"llama.cpp cannot make a context of {context_tokens} tokens")
        workers = os.cpu_count() or 1
        library.llama_set_n_threads(self._context, workers, workers)
        # The tokens in the context; the next call computes only what differs.
        self._seen: list[int] = []

    def __exit__(self, *raised: object) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        self._context = None
        super().__exit__(*raised)

    def logits(self, tokens: Sequence[int]) -> Floats:
        """(tokens, vocabulary): at each position the logits of the next token."""
        self._forget(0)
        begins = range(0, len(tokens), BATCH_TOKENS)
        return np.concatenate([self._decode(tokens[begin : begin + BATCH_TOKENS], every=True) for begin in begins])

    def generate(
        self,
        tokens: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """New tokens after `tokens` one by one, before the first end token; sampled as in `next_token`.

        Raises:
            MachineError: the context is full.
        """
        random = np.random.default_rng(seed)
        common = 0
        while common < min(len(self._seen), len(tokens) - 1) and self._seen[common] == tokens[common]:
            common += 1
        self._forget(common)
        pending = list(tokens[common:])
        for _ in range(max_new_tokens):
            for begin in range(0, len(pending), BATCH_TOKENS):
                last = self._decode(pending[begin : begin + BATCH_TOKENS], every=False)[-1]
            token = next_token(last, temperature, top_p, random)
            if self.is_end(token):
                return
            yield token
            pending = [token]

    def _forget(self, keep: int) -> None:
        del self._seen[keep:]
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), 0, keep, -1)

    def _decode(self, tokens: Sequence[int], every: bool) -> Floats:
        """The logits after each of `tokens` with `every`, else after the last one."""
        count, start = len(tokens), len(self._seen)
        if start + count > self.context_tokens:
            wrong = f"more than {self.context_tokens} tokens do not fit the context"
            raise MachineError(Problem(Where(str(self.source)), "", wrong, "use /reset, or a larger --context-tokens"))
        ids = np.array(tokens, dtype=np.int32)
        positions = np.arange(start, start + count, dtype=np.int32)
        one = np.ones(count, dtype=np.int32)
        sequence = (ctypes.c_int32 * 1)(0)
        sequences = (ctypes.c_void_p * count)(*[ctypes.addressof(sequence)] * count)
        wanted = np.full(count, every, dtype=np.int8)
        wanted[-1] = 1
        batch = _Batch(
            count,
            ids.ctypes.data,
            None,
            positions.ctypes.data,
            one.ctypes.data,
            ctypes.addressof(sequences),
            wanted.ctypes.data,
        )
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise self.failed(f"llama.cpp stopped with status {status}")
        self._seen.extend(tokens)
        return np.stack([self._row(int(index)) for index in np.flatnonzero(wanted)])

    def _row(self, index: int) -> Floats:
        address = self._lib.llama_get_logits_ith(self._context, index)
        if not address:
            raise self.failed(f"llama.cpp has no logits at position {index}")
        values = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(values, shape=(self.vocabulary_size,)).copy()
