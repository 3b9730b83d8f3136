"""Whether each tensor of an export is what base and adapter give, at rows drawn by a seed.

The rows are computed again one by one in float64, not through the blocks that the writers stream. A stored 16-bit value
must be the rounding of that result, a quantized row must have the bytes that llama.cpp's quantizer makes of it.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastft.errors import FastftError
from fastft.exports.adapter import Adapter
from fastft.exports.gguf import kernels
from fastft.exports.gguf.architectures import GgufArchitecture, find_architecture
from fastft.exports.gguf.quantization import tensor_bytes, tensor_type
from fastft.exports.gguf.writer import model_facts
from fastft.exports.merged import choose_dtype, target_type
from fastft.exports.trained import TrainedWeights, row_blocks
from fastft.files.tensors import FLOATING, Floats, as_float32, from_float32, open_weights
from fastft.inference.gguf_header import GgufTensor, read_gguf_header
from fastft.recipe.quantizations import QUANTIZATIONS

# Rows of each tensor, the first and the last among them; a tensor of fewer rows is compared whole.
DRAWN_ROWS = 8
# How far a float32 sum of products may be from the exact one, relative to the sum of their sizes: the standard bound
# is (number of terms) * 2**-24, and the errors of hundreds of terms mostly cancel.
SUM_ERROR = 2.0**-19
# More lines than this say nothing new.
SHOWN = 3

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class TensorCheck:
    """The outcome: reasons to reject the artefact (none: it is right), and how much was compared."""

    reasons: tuple[str, ...]
    tensors: int = 0
    rows: int = 0


@dataclass(frozen=True)
class _Rows:
    """Some rows of one trained tensor: `values` (rows, columns), each right within `error`."""

    values: Doubles
    error: Doubles
    base: Doubles
    """Without the adapter's low-rank change."""


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

    merged_4bit is not compared here: its blocks come from bitsandbytes.
    """
    try:
        if kind == "adapter":
            return _check_adapter(adapter, artefact)
        with TrainedWeights(base, adapter) as trained:
            if kind == "merged_16bit":
                return _check_merged(trained, artefact, seed)
            if kind in QUANTIZATIONS:
                return _check_gguf(trained, artefact, kind, seed)
            return TensorCheck(())
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
        reasons = list(_names(trained.shapes, weights.tensors))
        for number, (name, shape) in enumerate(trained.shapes.items()):
            info = weights.tensors.get(name)
            if info is None:
                continue
            kind = target_type(trained, name, "auto", chosen)
            if (info.shape, info.dtype) != (shape, kind):
                wrong.append(f"{name} is {info.dtype} {info.shape}, {kind} {shape} is right")
                continue
            drawn = _draw(trained, name, seed, number)
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
            computed = _compute(trained, name, drawn)
            bad = _outside(found, computed, kind)
            if bad.any():
                wrong.append(_difference(trained, name, name, found, computed, bad))
    return TensorCheck((*reasons, *_shown(wrong, len(trained.shapes))), len(trained.shapes), rows)


def _check_gguf(trained: TrainedWeights, file: Path, kind: str, seed: int) -> TensorCheck:
    import gguf

    architecture = find_architecture(trained.config, trained.base / "config.json")
    expected, computed = _expected(trained, architecture, kind), architecture.computed(trained.config)
    header = read_gguf_header(file)
    stored = {tensor.name: tensor for tensor in header.tensors}
    reasons = list(_names([*expected, *computed], stored))
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
            drawn = _draw(trained, one.source, seed, number)
            rows += len(drawn)
            difference = _compare(trained, name, one, drawn, _read(stream, found, one.kind, drawn))
            if difference is not None:
                wrong.append(difference)
    count = len(expected) + len(computed)
    return TensorCheck((*reasons, *_shown(wrong, count)), count, rows)


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
    right = _compute(trained, one.source, sources)
    right = _Rows(right.values + one.offset, right.error, right.base + one.offset)
    if one.kind in FLOATING:
        width = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[one.kind]
        found = as_float32(stored.view(width), one.kind)
        bad = _outside(found, right, one.kind)
        return _difference(trained, name, one.source, found, right, bad) if bad.any() else None
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
    return _difference(trained, name, one.source, found, right, bad)


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


def _compute(trained: TrainedWeights, name: str, rows: Sequence[int]) -> _Rows:
    """Rows of base + adapter in float64; a tensor of one dimension is one row for each element."""
    adapter = trained.adapter
    weights, source = trained.weights, trained.stored(name).name
    if adapter is not None and name in adapter.replaced:
        weights, source = adapter.weights, adapter.replaced[name]
    if len(trained.shapes[name]) < 2:
        base = weights.floats(source).reshape(-1, 1).astype(np.float64)
    else:
        base = np.stack([weights.floats(source, row, row + 1).reshape(-1) for row in rows]).astype(np.float64)
    low = None if adapter is None else adapter.low_rank.get(name)
    if adapter is None or low is None:
        return _Rows(_with_single(adapter, name, base, rows), np.zeros_like(base), base)
    if low.embedding:
        a = adapter.weights.floats(low.a).T.astype(np.float64)
        b = adapter.weights.floats(low.b)[:, list(rows)].T.astype(np.float64)
    else:
        a = adapter.weights.floats(low.a).astype(np.float64)
        b = np.stack([adapter.weights.floats(low.b, row, row + 1)[0] for row in rows]).astype(np.float64)
    values = base + low.scale * (b @ a)
    error = SUM_ERROR * (np.abs(base) + abs(low.scale) * (np.abs(b) @ np.abs(a)))
    if low.magnitude is not None:
        magnitude = adapter.weights.floats(low.magnitude).reshape(-1)[list(rows)].astype(np.float64)
        factor = (magnitude / np.sqrt((values * values).sum(axis=1)))[:, None]
        values, error = values * factor, error * np.abs(factor) + SUM_ERROR * np.abs(values * factor)
    return _Rows(values, error, base)


def _with_single(adapter: Adapter | None, name: str, base: Doubles, rows: Sequence[int]) -> Doubles:
    """`base`, the drawn `rows` of a tensor, with those in place that the adapter trains alone."""
    single = None if adapter is None else adapter.tokens.get(name)
    if adapter is None or single is None:
        return base
    alone, places = adapter.weights.floats(single.tensor), {row: at for at, row in enumerate(single.rows)}
    return np.stack([alone[places[row]] if row in places else base[at] for at, row in enumerate(rows)]).astype(
        np.float64
    )


def _outside(found: Floats, right: _Rows, kind: str) -> NDArray[np.bool_]:
    """(rows,) whether a stored value is not the rounding of any value within the error."""
    lowest = _rounded(right.values - right.error, kind)
    highest = _rounded(right.values + right.error, kind)
    inside = (found >= lowest) & (found <= highest)
    return np.logical_not(inside.all(axis=1))


def _rounded(values: Doubles, kind: str) -> Floats:
    return as_float32(from_float32(values.astype(np.float32), kind), kind)


def _draw(trained: TrainedWeights, name: str, seed: int, number: int) -> list[int]:
    """The rows to compare: all of a small tensor, else the first, the last, some trained alone, others by chance."""
    shape = trained.shapes[name]
    single = None if trained.adapter is None else trained.adapter.tokens.get(name)
    alone = () if single is None else single.rows[:DRAWN_ROWS]
    count = shape[0] if shape else 1
    if len(shape) < 2 or count <= DRAWN_ROWS:
        return list(range(count))
    chance = np.random.default_rng((seed, number))
    between = chance.choice(np.arange(1, count - 1), DRAWN_ROWS - 2, replace=False)
    return sorted({0, count - 1, *map(int, between), *alone})


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


def _names(expected: Any, stored: Any) -> Iterator[str]:
    for what, names in (("lacks", [n for n in expected if n not in stored]),
                        ("holds unknown", [n for n in stored if n not in expected])):  # fmt: skip
        if names:
            yield f"{what} {len(names)} tensors, the first is {names[0]}"


def _difference(
    trained: TrainedWeights, name: str, source: str, found: Floats, right: _Rows, bad: NDArray[np.bool_]
) -> str:
    """One sentence on a tensor whose stored values differ, with how much of the adapter is in it."""
    text = f"{name} differs from base + adapter in {int(bad.sum())} of {len(bad)} rows"
    change = right.values - right.base
    size = float((change * change).sum())
    if trained.is_changed(source) and size > 0:
        share = float(((found - right.base) * change).sum()) / size
        return f"{text} (the adapter is in it {share:.2f} times)"
    return text


def _shown(wrong: list[str], count: int) -> Iterator[str]:
    if wrong:
        more = f"; {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield f"{len(wrong)} of {count} tensors are wrong: {'; '.join(wrong[:SHOWN])}{more}"
