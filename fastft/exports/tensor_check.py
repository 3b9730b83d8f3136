"""Whether each tensor of an export is what base and adapter give, at rows drawn by a seed.

The rows are computed again one by one in float64, not through the blocks that the writers stream. A stored 16-bit value
must be the rounding of that result, a quantized row must have the bytes that llama.cpp's quantizer makes of it.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastft.errors import FastftError
from fastft.exports.gguf import kernels
from fastft.exports.gguf.architectures import GgufArchitecture, find_architecture
from fastft.exports.gguf.quantization import tensor_bytes, tensor_type
from fastft.exports.gguf.writer import model_facts
from fastft.exports.merged import choose_dtype, target_type
from fastft.exports.tensor_check_4bit import check_merged_4bit
from fastft.exports.tensor_rows import Rows, compute_rows, difference, draw_rows, missing_names, outside, shown
from fastft.exports.trained import TrainedWeights, row_blocks
from fastft.files.tensors import FLOATING, Floats, as_float32, open_weights
from fastft.inference.gguf_header import GgufTensor, read_gguf_header
from fastft.recipe.quantizations import QUANTIZATIONS


@dataclass(frozen=True)
class TensorCheck:
    """The outcome: reasons to reject the artefact (none: it is right), and how much was compared."""

    reasons: tuple[str, ...]
    tensors: int = 0
    rows: int = 0


@dataclass(frozen=True)
class _Expected:
    """What a GGUF file must hold under one name."""

    source: str
    shape: tuple[int, ...]
    kind: str
    heads: int = 0
    """Of how many heads llama.cpp interleaves the rows, 0: none."""
    offset: float = 0.0


def check_tensors(base: Path, adapter: Path | None, artefact: Path, kind: str, seed: int = 0) -> TensorCheck:
    """Compare a merged folder or a GGUF file with base + adapter, an adapter folder with `adapter`.

    Of a folder in 4 bits, the codes and scales of the blocks that the rows lie in.
    """
    try:
        if kind == "adapter":
            return _check_adapter(adapter, artefact)
        with TrainedWeights(base, adapter) as trained:
            if kind == "merged_16bit":
                return _check_merged(trained, artefact, seed)
            if kind == "merged_4bit":
                return TensorCheck(*check_merged_4bit(trained, artefact, seed))
            return _check_gguf(trained, artefact, kind, seed)
    except FastftError as error:
        return TensorCheck((f"cannot be read: {error}",))


def _check_adapter(adapter: Path | None, folder: Path) -> TensorCheck:
    name = "adapter_model.safetensors"
    if adapter is not None and not filecmp.cmp(adapter / name, folder / name, shallow=False):
        return TensorCheck((f"{name} is not the trained adapter's",))
    return TensorCheck((), len(open_weights(folder, "adapter_model").tensors))


def _check_merged(trained: TrainedWeights, folder: Path, seed: int) -> TensorCheck:
    chosen, _ = choose_dtype(trained, "auto")
    rows, wrong = 0, []
    with open_weights(folder) as weights:
        reasons = list(missing_names(trained.shapes, weights.tensors))
        for number, (name, shape) in enumerate(trained.shapes.items()):
            info = weights.tensors.get(name)
            if info is None:
                continue
            kind = target_type(trained, name, "auto", chosen)
            if (info.shape, info.dtype) != (shape, kind):
                wrong.append(f"{name} is {info.dtype} {info.shape}, {kind} {shape} is right")
                continue
            drawn = draw_rows(trained, name, seed, number)
            rows += len(drawn)
            if kind not in FLOATING:
                stored = [weights.rows(name, row, row + 1) for row in drawn]
                right = [trained.weights.rows(name, row, row + 1) for row in drawn]
                if not all(map(np.array_equal, stored, right)):
                    wrong.append(f"{name} is not the base's")
                continue
            if len(shape) < 2:
                found = weights.floats(name).reshape(-1, 1)
            else:
                found = np.stack([weights.floats(name, row, row + 1).reshape(-1) for row in drawn])
            computed = compute_rows(trained, name, drawn)
            bad = outside(found, computed, kind)
            if bad.any():
                wrong.append(difference(trained, name, name, found, computed, bad))
    return TensorCheck((*reasons, *shown(wrong, len(trained.shapes))), len(trained.shapes), rows)


def _check_gguf(trained: TrainedWeights, file: Path, kind: str, seed: int) -> TensorCheck:
    import gguf

    architecture = find_architecture(trained.config, trained.base / "config.json")
    expected, computed = _expected(trained, architecture, kind), architecture.computed(trained.config)
    header = read_gguf_header(file)
    stored = {tensor.name: tensor for tensor in header.tensors}
    reasons = list(missing_names([*expected, *computed], stored))
    if len(stored) < len(header.tensors):
        reasons.append("has two tensors of one name")
    if header.architecture != architecture.name:
        reasons.append(f"is of the architecture {header.architecture}, {architecture.name} was trained")
    file_type = gguf.LlamaFileType[QUANTIZATIONS[kind].file_type]
    if header.file_type != file_type:
        reasons.append(f"says that it is of file type {header.file_type}, {kind} is {file_type.value}")
    wrong, rows = [], 0
    with file.open("rb") as stream:
        for name, values in computed.items():
            if name in stored and not _is_computed(stored[name], stream, values):
                wrong.append(f"{name} is not what config.json gives")
        for number, (name, one) in enumerate(expected.items()):
            if name not in stored:
                continue
            found, right = stored[name], (one.shape, gguf.GGMLQuantizationType[one.kind].value)
            if (found.shape, found.kind) != right:
                type_name = gguf.GGMLQuantizationType(found.kind).name
                wrong.append(f"{name} is {type_name} {found.shape}, {one.kind} {one.shape} is right")
                continue
            drawn = draw_rows(trained, one.source, seed, number)
            rows += len(drawn)
            difference = _compare(trained, name, one, drawn, _read(stream, found, one.kind, drawn))
            if difference is not None:
                wrong.append(difference)
    count = len(expected) + len(computed)
    return TensorCheck((*reasons, *shown(wrong, count)), count, rows)


def _expected(trained: TrainedWeights, architecture: GgufArchitecture, quantization: str) -> dict[str, _Expected]:
    import gguf

    config, facts = trained.config, model_facts(trained, architecture)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture.name], facts.layers)
    heads = config["num_attention_heads"]
    of_part = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    found = {}
    for source, shape in trained.shapes.items():
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None or source.endswith(".rotary_emb.inv_freq"):
            continue
        part = source.split(".")[-2]
        turned = of_part.get(part, 0) if architecture.interleaved_rope else 0
        offset = architecture.norm_offset if part.endswith("norm") else 0.0
        kind, _ = tensor_type(target, shape, quantization, facts)
        found[target] = _Expected(source, shape, kind, turned, offset)
    return found


def _compare(
    trained: TrainedWeights, name: str, one: _Expected, drawn: Sequence[int], stored: NDArray[np.uint8]
) -> str | None:
    """What is wrong with the `stored` rows (rows, bytes), or None."""
    sources = [_source_row(one, row) for row in drawn]
    right = compute_rows(trained, one.source, sources)
    right = Rows(right.values + one.offset, right.error, right.base + one.offset)
    if one.kind in FLOATING:
        width = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[one.kind]
        found = as_float32(stored.view(width), one.kind)
        bad = outside(found, right, one.kind)
        return difference(trained, name, one.source, found, right, bad) if bad.any() else None
    bad = (kernels.quantize(right.values.astype(np.float32), one.kind, name) != stored).any(axis=1)
    # A sum that is rounded otherwise in its last bit may fall into the next step: then the sum of the writer's own
    # block decides, if it is right.
    for index in np.flatnonzero(bad):
        streamed = _streamed(trained, one, sources[index]) + np.float32(one.offset)
        is_right = (np.abs(streamed - right.values[index]) <= right.error[index] + np.abs(streamed) * 2.0**-24).all()
        bad[index] = not (is_right and (kernels.quantize(streamed[None], one.kind, name)[0] == stored[index]).all())
    if not bad.any():
        return None
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found = dequantize(stored, GGMLQuantizationType[one.kind]).astype(np.float32)
    return difference(trained, name, one.source, found, right, bad)


def _source_row(one: _Expected, row: int) -> int:
    """The row of the trained tensor at `row` of the file: llama.cpp has pairs side by side, transformers halves."""
    if not one.heads:
        return row
    size = one.shape[0] // one.heads
    head, place = divmod(row, size)
    pair, side = divmod(place, 2)
    return head * size + side * (size // 2) + pair


def _streamed(trained: TrainedWeights, one: _Expected, row: int) -> Floats:
    unit = one.shape[0] // one.heads if one.heads else 1
    for begin, end in row_blocks((one.shape[0] // unit, unit, *one.shape[1:])):
        if begin * unit <= row < end * unit:
            block: Floats = trained.floats(one.source, begin * unit, end * unit)[row - begin * unit]
            return block
    raise IndexError(row)


def _read(stream: Any, tensor: GgufTensor, kind: str, rows: Sequence[int]) -> NDArray[np.uint8]:
    """(rows, bytes of a row) of a tensor in a GGUF file."""
    width = tensor_bytes(tensor.shape[1:] or (1,), kind)
    found = np.zeros((len(rows), width), np.uint8)
    if len(tensor.shape) < 2:
        stream.seek(tensor.begin)
        data = stream.read(found.nbytes)
        found.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        return found
    for index, row in enumerate(rows):
        stream.seek(tensor.begin + row * width)
        data = stream.read(width)
        found[index, : len(data)] = np.frombuffer(data, np.uint8)
    return found


def _is_computed(tensor: GgufTensor, stream: Any, values: Floats) -> bool:
    if tensor.shape != values.shape or tensor.kind != 0:
        return False
    stored = _read(stream, tensor, "F32", range(tensor.shape[0])).view("<f4").reshape(-1)
    return bool((stored == values).all())
