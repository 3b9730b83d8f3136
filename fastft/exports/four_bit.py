"""Weights that bitsandbytes stored in 4 bits, read as 16-bit numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastft.errors import MachineError, Problem, Where
from fastft.files.tensors import DTYPES, Floats, TensorInfo, Weights, from_float32, open_weights

STATE = ".quant_state.bitsandbytes__"
# Half the widest step of bitsandbytes' table of 8 bits (create_dynamic_map: 64 steps from 0.1 to 1), and rounding.
NESTED_STEP = 0.5 * 0.9 / 63


@dataclass(frozen=True)
class _State:
    """How one matrix was quantized: `shape` (outputs, inputs), flat blocks of `block` weights with one scale each."""

    dtype: str
    shape: tuple[int, ...]
    block: int
    nested_block: int | None
    nested_offset: float


@dataclass(frozen=True)
class Blocks:
    """Some blocks of a matrix in 4 bits."""

    codes: NDArray[np.uint8]
    """(weights,), each 0 to 15."""
    scales: Floats
    """(blocks,), the largest size in each block, as double quantization left it."""
    table: Floats
    """(16,), what a code stands for, of the scale."""
    size: int
    """Weights of a block."""
    scale_error: float
    """How far double quantization may put a scale from what it was."""


class FourBitWeights(Weights):
    """As `Weights`, where a matrix may lie as `name` (two weights a byte) with its scales in `name.absmax` and more.

    A weight is `quant_map[its 4 bits] * scale of its block`; with double quantization a scale is
    `nested_quant_map[its 8 bits] * nested_absmax + nested_offset` (bitsandbytes, `QuantState` and `dequantize_4bit`).
    """

    def __init__(self, stored: dict[str, TensorInfo]) -> None:
        names = {name: name.split(STATE)[0] for name in stored if STATE in name}
        parts = tuple(f"{matrix}." for matrix in names.values())
        super().__init__({name: info for name, info in stored.items() if not name.startswith(parts)})
        packed = {name: info for name, info in stored.items() if name.startswith((*parts, *names.values()))}
        self._packed = Weights(packed)
        self._states = {matrix: self._state(name) for name, matrix in names.items()}
        for matrix, state in self._states.items():
            self.tensors[matrix] = replace(stored[matrix], dtype=state.dtype, shape=state.shape)
        self._scales = lru_cache(maxsize=4)(self._read_scales)

    def __exit__(self, *raised: object) -> None:
        self._packed.__exit__(None, None, None)
        super().__exit__(None, None, None)

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows `begin:end` in the 16-bit type that the matrix was quantized from."""
        state = self._states.get(name)
        if state is None:
            return super().rows(name, begin, end)
        width = int(np.prod(state.shape[1:]))
        stop = state.shape[0] if end is None else end
        # Whole blocks around the wanted rows: a block may begin in the row before.
        first, last = begin * width // state.block, -(-stop * width // state.block)
        size = self._packed.tensors[name].shape[0]
        codes = self._packed.rows(name, first * state.block // 2, min(-(-last * state.block // 2), size))
        nibbles = np.empty(2 * codes.size, dtype=np.uint8)
        nibbles[0::2], nibbles[1::2] = codes.reshape(-1) >> 4, codes.reshape(-1) & 15
        table = self._packed.floats(f"{name}.quant_map")
        values = table[nibbles] * np.repeat(self._scales(name)[first:last], state.block)[: nibbles.size]
        start = begin * width - first * state.block
        wanted = values[start : start + (stop - begin) * width].reshape(stop - begin, *state.shape[1:])
        return from_float32(np.ascontiguousarray(wanted), state.dtype)

    def is_packed(self, name: str) -> bool:
        """Whether this matrix lies there in 4 bits."""
        return name in self._states

    def blocks(self, name: str, begin: int, end: int) -> Blocks:
        """The blocks `begin:end` of a matrix in 4 bits as they are stored, its weights in one row."""
        state = self._states[name]
        count = math.prod(state.shape)
        codes = self._packed.rows(name, begin * state.block // 2, min(end * state.block, count + 1) // 2).reshape(-1)
        nibbles = np.stack((codes >> 4, codes & 15), axis=1).reshape(-1)[: count - begin * state.block]
        nested = self._packed.floats(f"{name}.nested_absmax") if state.nested_block else np.zeros(1, np.float32)
        step = float(nested.max(initial=0.0)) * NESTED_STEP
        scales = self._scales(name)[begin:end]
        return Blocks(nibbles, scales, self._packed.floats(f"{name}.quant_map"), state.block, step)

    def _read_scales(self, name: str) -> Floats:
        """(blocks,) scales in float32."""
        state, scales = self._states[name], self._packed.rows(f"{name}.absmax")
        if state.nested_block is None:
            return scales.astype(np.float32)
        table = self._packed.floats(f"{name}.nested_quant_map")
        outer = np.repeat(self._packed.floats(f"{name}.nested_absmax"), state.nested_block)[: scales.size]
        found: Floats = table[scales] * outer + np.float32(state.nested_offset)
        return found

    def _state(self, name: str) -> _State:
        info = self._packed.tensors[name]
        try:
            stored = json.loads(self._packed.rows(name).tobytes())
            dtype, shape = DTYPES[stored["dtype"]], tuple(int(length) for length in stored["shape"])
            nested = stored.get("nested_blocksize")
            return _State(dtype, shape, int(stored["blocksize"]), nested, float(stored.get("nested_offset") or 0.0))
        except (ValueError, KeyError, TypeError) as error:
            wrong = f"{name} cannot be read: {error}"
            raise MachineError(Problem(Where(str(info.file)), "", wrong, "download the model again")) from error


def open_four_bit(folder: Path) -> FourBitWeights:
    """The tensors of a folder that bitsandbytes quantized to 4 bits; raises what `open_weights` raises."""
    with open_weights(folder) as stored:
        return FourBitWeights(stored.tensors)
