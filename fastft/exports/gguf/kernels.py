"""llama.cpp's quantizer, `ggml_quantize_chunk`, called in the library that the xllamacpp wheel ships.

The call releases Python's lock, so threads quantize blocks side by side.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fastft.errors import Problem, TrainingError, Where
from fastft.exports.gguf.quantization import BLOCKS
from fastft.files.tensors import Floats, from_float32
from fastft.inference.llamacpp import shared_library


def quantize(values: Floats, kind: str, name: str) -> NDArray[np.uint8]:
    """(rows, columns) of float32 as (rows, bytes of a row) of type `kind`; columns must be whole blocks of it.

    Raises:
        MachineError: xllamacpp is not installed.
        TrainingError: the values do not fit the type (a block's scale is beyond float16).
    """
    if kind in ("F32", "F16", "BF16"):
        stored = np.ascontiguousarray(from_float32(values, kind))
        return stored.reshape(stored.shape[0], -1).view(np.uint8)
    from gguf import GGMLQuantizationType

    elements, size = BLOCKS[kind]
    code = GGMLQuantizationType[kind].value
    rows, columns = values.shape
    values = np.ascontiguousarray(values)
    out = np.empty((rows, columns // elements * size), dtype=np.uint8)
    library = ggml()
    written = library.ggml_quantize_chunk(code, values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    if written != out.nbytes or not library.ggml_validate_row_data(code, out.ctypes.data, out.nbytes):
        wrong = f"its values do not fit {kind} (largest {np.abs(values).max():.4g})"
        raise TrainingError(Problem(Where(name), "", wrong, "use bf16"))
    return out


@cache
def ggml() -> ctypes.CDLL:
    """The loaded library, its functions typed.

    Raises:
        MachineError: xllamacpp is not installed.
    """
    library = ctypes.CDLL(str(shared_library()))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    return library
