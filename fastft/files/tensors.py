"""Tensors on disk: safetensors files read by row blocks, with conversions to and from float32.

Blocks are read with `pread`, not through a memory map: a mapped page counts as this process's memory until the kernel
takes it back, and a file that is cut short under a map kills the process instead of raising.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from fastft.errors import MachineError, Problem, RecipeError, Where

Floats = NDArray[np.float32]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATING = ("F64", "F32", "F16", "BF16")
# Hugging Face's names for what safetensors calls F32, F16 and BF16.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# A header is a few hundred bytes a tensor; safetensors itself refuses more than this.
MAX_HEADER_BYTES = 100_000_000
FLOAT16_LIMIT = 65504.0


@dataclass(frozen=True)
class TensorInfo:
    """The place of one tensor: its file, type, shape and the first byte of its data in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes of its data."""
        return self.size * ITEM_BYTES[self.dtype]


class Weights:
    """All tensors of a model or adapter folder, open for reading by row blocks; usable from several threads."""

    def __init__(self, tensors: dict[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._open: dict[Path, int] = {}
        for info in tensors.values():
            if info.file not in self._open:
                self._open[info.file] = os.open(info.file, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows `begin:end` of the first axis as stored; bfloat16 comes as uint16."""
        info = self.tensors[name]
        length = info.shape[0] if info.shape else 1
        stop = length if end is None else end
        row_bytes = info.size_bytes // max(length, 1)
        data = self._read(info, info.begin + begin * row_bytes, (stop - begin) * row_bytes)
        return data.view(_numpy_type(info.dtype)).reshape((stop - begin, *info.shape[1:]) if info.shape else ())

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> Floats:
        """Rows `begin:end` of the first axis in float32, as a copy."""
        return as_float32(self.rows(name, begin, end), self.tensors[name].dtype)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a tensor's data, or all."""
        info = self.tensors[name]
        return self._read(info, info.begin, min(count, info.size_bytes)).tobytes()

    def _read(self, info: TensorInfo, offset: int, count: int) -> NDArray[np.uint8]:
        buffer = bytearray(count)
        view, done = memoryview(buffer), 0
        while done < count:
            got = os.preadv(self._open[info.file], [view[done:]], offset + done)
            if got == 0:
                raise _damaged(info.file, f"tensor {info.name} ends at byte {offset + done}, before its last row")
            done += got
        return np.frombuffer(buffer, dtype=np.uint8)


def open_weights(folder: Path, stem: str = "model") -> Weights:
    """The tensors of a folder, from `<stem>.safetensors` or the shards that `<stem>.safetensors.index.json` names.

    Raises:
        MachineError: no weights, a shard is missing, a file is damaged or cut short.
        RecipeError: the weights are in a pickle file (`.bin`), which can run code when read.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file():
        return Weights(_sharded(folder, index))
    if single.is_file():
        return Weights(read_header(single))
    pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")) if path.is_file())
    if pickles:
        wrong = "the weights are in a pickle file, which can run code when it is read"
        raise RecipeError(Problem(Where(str(folder)), "", wrong, f"save them as {stem}.safetensors", got=pickles[0]))
    wrong = f"no {stem}.safetensors and no {index.name}" if folder.is_dir() else "no such folder"
    raise MachineError(Problem(Where(str(folder)), "", wrong, "give a folder with safetensors weights"))


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over names, shapes and the first KiB of each tensor: quick, and differs between models of one shape.

    Raises:
        MachineError, RecipeError: as `open_weights`.
    """
    digest = hashlib.sha256()
    with open_weights(folder) as weights:
        for name, info in sorted(weights.tensors.items()):
            digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
            digest.update(weights.head(name, 1024))
    return digest.hexdigest()


def _sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
    try:
        by_name: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(by_name.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(index, f"not a safetensors index: {error}") from error
    missing = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    if missing:
        wrong = f"{len(missing)} of {len(shards)} shards are missing"
        raise MachineError(Problem(Where(str(index)), "weight_map", wrong, "download the model again", got=missing[0]))
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        found.update(read_header(folder / shard))
    lost = [name for name in by_name if name not in found]
    if lost:
        raise _damaged(index, f"{len(lost)} tensors are in no shard, the first is {lost[0]}")
    return found


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file by name, in the order of their data.

    Raises:
        MachineError: the file is no safetensors file, or shorter than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _damaged(file, f"not a safetensors file, or cut short: its header needs {length} bytes, {size} exist")
        text = stream.read(length)
    try:
        header = json.loads(text)
        found = [_info(file, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"its header cannot be read: {error}") from error
    ordered = sorted(found, key=lambda info: (info.begin, info.size_bytes))
    end = 8 + length
    for info in ordered:
        if info.begin != end:
            wrong = "overlaps with the one before it" if info.begin < end else "leaves a gap before it"
            raise _damaged(file, f"tensor {info.name} begins at byte {info.begin}, not {end}: it {wrong}")
        end += info.size_bytes
    if end > size:
        raise _damaged(file, f"cut short: needs {end} bytes, has {size} bytes")
    return {info.name: info for info in ordered}


def _info(file: Path, name: str, entry: dict[str, Any], data: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    info = TensorInfo(name, file, entry["dtype"], tuple(entry["shape"]), data + begin)
    if info.dtype not in ITEM_BYTES:
        raise ValueError(f"{name} has the type {info.dtype}")
    if begin < 0 or end - begin != info.size_bytes:
        raise ValueError(f"{name} has {end - begin} bytes, its shape and type need {info.size_bytes}")
    return info


def write_header(stream: BinaryIO, tensors: Iterable[tuple[str, str, Sequence[int]]]) -> None:
    """The head of a safetensors file, for `tensors` as (name, safetensors type, shape) in the order of their data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, dtype, shape in tensors:
        end = begin + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data to 8 bytes
    stream.write(struct.pack("<Q", len(text)) + text)


def check_float16(values: Floats, name: str, instead: str) -> None:
    """Raise RecipeError where a value is beyond float16's range."""
    largest = float(max(values.max(initial=0), -values.min(initial=0)))
    if largest > FLOAT16_LIMIT:
        wrong = f"holds values above float16's {FLOAT16_LIMIT:.0f}"
        raise RecipeError(Problem(Where(name), "", wrong, instead, got=f"{largest:.4g}"))


def _damaged(file: Path, wrong: str) -> MachineError:
    return MachineError(Problem(Where(str(file)), "", wrong, "copy or download the file again"))


def _numpy_type(dtype: str) -> np.dtype[Any]:
    codes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "BOOL": "?"}
    return np.dtype(codes.get(dtype) or f"<i{ITEM_BYTES[dtype]}")


def as_float32(values: NDArray[Any], dtype: str) -> Floats:
    """`values` of a safetensors type as float32; exact for float16 and bfloat16."""
    if dtype != "BF16":
        return values.astype(np.float32, copy=False)
    wide = values.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def from_float32(values: Floats, dtype: str) -> NDArray[Any]:
    """`values` rounded to a safetensors type, to nearest and ties to even; bfloat16 comes as uint16. NaN-free input."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounding = bits >> 16
        rounding &= 1
        rounding += 0x7FFF
        rounding += bits
        rounding >>= 16
        return rounding.astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(_numpy_type(dtype), copy=False)
