"""The head of a GGUF file, read without llama.cpp: whether the file is whole, and how long a conversation it can hold.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.probe.device import GIB, processor

DEFAULT_CONTEXT_TOKENS = 4096
# More than any model has; a damaged count would otherwise be walked through for hours.
MOST_ENTRIES = 1_000_000
_ENTRY_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """The place of one tensor in a GGUF file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as safetensors has it."""
    kind: int
    """`gguf.GGMLQuantizationType`."""
    begin: int
    """The byte of the file at which its data begins."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model."""

    architecture: str | None
    file_type: int | None
    """`gguf.LlamaFileType`: the quantization that the file names."""
    tensors: tuple[GgufTensor, ...]

    context_tokens: int | None
    """The longest conversation that the model was made for; None where the file does not say."""
    cache_bytes: int | None
    """Keys and values of one token of a conversation, in 16 bits; None where layers keep only a window of them."""
    chat_template: str | None


def read_gguf_header(file: Path) -> GgufHeader:
    """The head of a GGUF file.

    Raises:
        MachineError: it cannot be read, is no GGUF file, or is cut short.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            values, tensors = _read(data)
            size = len(data)
    except OSError as error:
        raise _unusable(file, f"cannot be read: {error.strerror}", "check the path and its permissions") from error
    except (ValueError, struct.error, UnicodeDecodeError) as error:  # mmap: an empty file
        raise _unusable(file, "is damaged: not a whole GGUF file") from error
    end = max((tensor.begin for tensor in tensors), default=0) + 1
    if end > size:
        raise _unusable(file, f"is cut short: it has {size:,} bytes, its weights begin or go on after byte {end:,}")
    kind = values.get("general.architecture")
    found = {key.removeprefix(f"{kind}."): value for key, value in values.items() if key.startswith(f"{kind}.")}
    context, file_type = found.get("context_length"), values.get("general.file_type")
    template = values.get("tokenizer.chat_template")
    return GgufHeader(
        kind if isinstance(kind, str) else None,
        file_type if type(file_type) is int else None,
        tensors,
        context if type(context) is int else None,
        _cache_bytes(found),
        template if isinstance(template, str) else None,
    )


def fit_context(file: Path, wanted: int | None) -> int:
    """The tokens of context for `file`: `wanted`, or as many as the model was made for, up to 4096.

    Raises:
        UsageError: the model was made for fewer than `wanted`, or memory holds fewer.
        MachineError: the file is damaged.
    """
    header = read_gguf_header(file)
    most = header.context_tokens or DEFAULT_CONTEXT_TOKENS
    tokens = min(DEFAULT_CONTEXT_TOKENS, most) if wanted is None else wanted
    if wanted is not None and wanted > most:
        raise _too_long(tokens, f"the model of {file} was made for {most} tokens", most)
    memory = processor().memory_bytes
    if header.cache_bytes and tokens * header.cache_bytes > memory:
        needed = f"needs {tokens * header.cache_bytes / GIB:.1f} GiB, this machine has {memory / GIB:.1f} GiB"
        raise _too_long(tokens, needed, memory // (2 * header.cache_bytes))
    return tokens


def _read(data: mmap.mmap) -> tuple[dict[str, Any], tuple[GgufTensor, ...]]:
    """(the metadata: single values and short lists of numbers, the tensors in the order of the file)."""
    magic, version, tensors, entries = struct.unpack_from("<4sIQQ", data, 0)
    if magic != b"GGUF" or version not in (2, 3) or max(tensors, entries) > MOST_ENTRIES:
        raise ValueError("no GGUF file")
    at, values = 24, {}
    for _ in range(entries):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        values[key.decode()], at = _value(data, at + 4, kind)
    found = []
    for _ in range(tensors):
        name, at = _text(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        shape = struct.unpack_from(f"<{dimensions}Q", data, at + 4)[::-1]
        at += 4 + 8 * dimensions
        code, offset = struct.unpack_from("<IQ", data, at)
        at += 12
        found.append(GgufTensor(name.decode(), shape, code, offset))
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError("no alignment")
    start = -(-at // alignment) * alignment
    return values, tuple(replace(tensor, begin=start + tensor.begin) for tensor in found)


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """(a value, the byte after it); None for long lists and lists of texts."""
    if kind == _TEXT:
        text, at = _text(data, at)
        return text.decode(errors="replace"), at
    if kind != _LIST:
        one = "<" + _format(kind)
        return struct.unpack_from(one, data, at)[0], at + struct.calcsize(one)
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind == _TEXT:
        if count > MOST_ENTRIES:
            raise ValueError("too many texts")
        for _ in range(count):
            at += 8 + int(struct.unpack_from("<Q", data, at)[0])
        return None, at
    size = struct.calcsize("<" + _format(kind))
    values = struct.unpack_from(f"<{count}{_format(kind)}", data, at) if count <= 1024 else None
    return values, at + count * size


def _text(data: mmap.mmap, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    if length > len(data) - at - 8:
        raise ValueError("a text beyond the end")
    return data[at + 8 : at + 8 + length], at + 8 + length


def _format(kind: int) -> str:
    if kind not in _ENTRY_FORMATS:
        raise ValueError("unknown type")
    return _ENTRY_FORMATS[kind]


def _cache_bytes(found: dict[str, Any]) -> int | None:
    """2 bytes for each number of the keys and values of all layers."""
    names = ("block_count", "attention.head_count", "embedding_length")
    layers, heads, hidden = (value if type(value := found.get(name)) is int else 0 for name in names)
    if "attention.sliding_window" in found or min(layers, heads, hidden) < 1:
        return None
    kept = found.get("attention.head_count_kv", heads)
    per_layer = sum(kept) if isinstance(kept, tuple) else layers * kept
    widths = (found.get(f"attention.{name}_length", hidden // heads) for name in ("key", "value"))
    return int(2 * per_layer * sum(widths))


def _too_long(tokens: int, wrong: str, fits: int) -> UsageError:
    return UsageError(Problem(Where("--context-tokens"), "", wrong, f"{fits} fits", str(tokens)))


def _unusable(file: Path, wrong: str, instead: str = "export or download it again") -> MachineError:
    return MachineError(Problem(Where(str(file)), "", wrong, instead))
