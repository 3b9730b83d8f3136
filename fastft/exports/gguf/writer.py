"""The GGUF writer: tensors stream from base and adapter through the quantizer into the file."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastft.console import BytesWritten, ignore_bytes
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import MachineError, Problem, Where
from fastft.exports.gguf import kernels
from fastft.exports.gguf.agreement import agree
from fastft.exports.gguf.architectures import GgufArchitecture, find_architecture, ignored_window, not_for_gguf
from fastft.exports.gguf.quantization import ModelFacts, check_quantization, tensor_bytes, tensor_type
from fastft.exports.gguf.vocabulary import Vocabulary, read_vocabulary
from fastft.exports.merged import tokenizer_folder
from fastft.exports.trained import EMBEDDING, TrainedWeights, in_order, row_blocks
from fastft.files.atomic import staged_file
from fastft.files.tensors import Floats, check_float16
from fastft.inference.llamacpp import shared_library
from fastft.recipe.quantizations import QUANTIZATIONS

# GGUF's default alignment of tensor data.
ALIGNMENT = 32


@dataclass(frozen=True)
class GgufReport:
    """What `write_gguf` wrote."""

    file: Path
    size_bytes: int
    types: dict[str, int]
    """The number of tensors of each type, for instance {"Q4_K": 120, "F32": 61}."""
    notes: tuple[str, ...]
    """Notes for the user: about the base, and tensors whose shape does not allow llama.cpp's type."""
    seconds: float


@dataclass(frozen=True)
class _Output:
    """One tensor of the file."""

    name: str
    source: str | None
    """The tensor of the trained model; None for one that is computed."""
    shape: tuple[int, ...]
    kind: str
    heads: int = 0
    """Reorder the rows of this many heads (0: keep them)."""
    offset: float = 0.0
    values: Floats | None = None
    wanted: str | None = None
    """The type that the mix asked for, where the shape did not allow it."""

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.shape, self.kind)


def write_gguf(
    base: Path,
    adapter: Path | None,
    out_file: Path,
    quantization: str,
    chat_template: str | None = None,
    *,
    end_ids: Sequence[int] = (),
    name: str | None = None,
    threads: int | None = None,
    on_bytes: BytesWritten = ignore_bytes,
) -> GgufReport:
    """Write base + adapter as the new file `out_file` in `quantization` (q4_k_m, q8_0, f16, ...).

    The tokenizer is that of the adapter's folder, else of the base; `chat_template` takes the place of its own.
    Generation stops at the first of `end_ids` besides where it stopped before. `name` is the model's name
    in the file (default: the file's). `on_bytes` learns how far the tensors are.

    Raises:
        RecipeError: unknown quantization, architecture or tokenizer; the adapter does not fit; `out_file` exists.
        MachineError: a file is missing or damaged, the disk too small, or a package missing.
        TrainingError: a weight is NaN or infinite.
    """
    files = {quantization: out_file}
    return write_ggufs(
        base, adapter, files, chat_template, end_ids=end_ids, name=name, threads=threads, on_bytes=on_bytes
    )[0]


def write_ggufs(
    base: Path,
    adapter: Path | None,
    out_files: Mapping[str, Path],
    chat_template: str | None = None,
    *,
    end_ids: Sequence[int] = (),
    name: str | None = None,
    threads: int | None = None,
    on_bytes: BytesWritten = ignore_bytes,
) -> list[GgufReport]:
    """As `write_gguf`, several files by their quantization in one pass: each block is read and merged once.

    A file that cannot be written ends all of them.
    """
    start = time.monotonic()
    with TrainedWeights(base, adapter) as trained, contextlib.ExitStack() as stack:
        architecture = find_architecture(trained.config, base / "config.json")
        source = tokenizer_folder(base, adapter)
        rows = trained.shapes[EMBEDDING][0]
        vocabulary = read_vocabulary(source, base, rows, architecture.name, chat_template, end_ids)
        vocabulary = agree(vocabulary, source, architecture.name)
        plans = {kind: _plan(trained, architecture, check_quantization(kind)) for kind in out_files}
        streams = []
        for kind, file in out_files.items():
            stage = stack.enter_context(staged_file(file, _file_bytes(plans[kind], vocabulary)))
            quantization = check_quantization(kind)
            named = name or file.stem
            writer = _writer(stage, trained, architecture, quantization, vocabulary, plans[kind], named)
            stack.callback(writer.close)
            streams.append(writer.fout[0])
        _write(streams, trained, list(zip(*plans.values(), strict=True)), threads, on_bytes)
    seconds = time.monotonic() - start
    reports = []
    for kind, file in out_files.items():
        window = ignored_window(architecture.name, trained.config)
        notes = (*trained.notes, *vocabulary.notes, *_fallbacks(plans[kind]), *((window,) if window else ()))
        types = dict(Counter(output.kind for output in plans[kind]).most_common())
        reports.append(GgufReport(file, file.stat().st_size, types, notes, seconds))
    return reports


def estimate_gguf_bytes(
    base: Path,
    adapter: Path | None,
    quantization: str,
    chat_template: str | None = None,
    prompts: tuple[str, ...] = (),
    tokenizer: Path | None = None,
) -> int:
    """The bytes that `write_gguf` will write; raises what it would raise for architecture, tokenizer and adapter.

    llama.cpp must also read the rendered `prompts` as training does. `tokenizer`: a folder with the tokenizer of
    training where it is not that of adapter or base; it may have more tokens than the base has rows.
    """
    import gguf

    quantization = check_quantization(quantization)
    shared_library()
    with TrainedWeights(base, adapter) as trained:
        architecture = find_architecture(trained.config, base / "config.json")
        source, rows = tokenizer or tokenizer_folder(base, adapter), trained.shapes[EMBEDDING][0]
        if tokenizer is not None:
            rows = max(rows, load_tokenizer(tokenizer).tokenizer.get_vocab_size())
        vocabulary = read_vocabulary(source, base, rows, architecture.name, chat_template)
        vocabulary = agree(vocabulary, source, architecture.name, prompts)
        _describe(gguf.GGUFWriter(None, architecture.name), trained, architecture)
        return _file_bytes(_plan(trained, architecture, quantization), vocabulary)


def model_facts(trained: TrainedWeights, architecture: GgufArchitecture) -> ModelFacts:
    """What llama.cpp's mixes of types ask of the model."""
    layers, heads = trained.config["num_hidden_layers"], trained.config["num_attention_heads"]
    kv_heads = trained.config.get("num_key_value_heads") or heads
    seventy = layers == 80 and (architecture.name == "qwen2" or (architecture.name == "llama" and heads != kv_heads))
    return ModelFacts(layers, trained.tied, heads // kv_heads, seventy)


def _plan(trained: TrainedWeights, architecture: GgufArchitecture, quantization: str) -> list[_Output]:
    import gguf

    config = trained.config
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture.name], config["num_hidden_layers"])
    facts = model_facts(trained, architecture)
    outputs = [
        _Output(name, None, values.shape, "F32", values=values)
        for name, values in architecture.computed(config).items()
    ]
    for name in trained.shapes:
        if name.endswith(".rotary_emb.inv_freq"):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            wrong = f"llama.cpp's {architecture.name} has no such tensor"
            raise not_for_gguf(Where(str(trained.base)), name, wrong)
        shape = trained.shapes[name]
        kind, wanted = tensor_type(target, shape, quantization, facts)
        reordered = 0
        if architecture.interleaved_rope and ".q_proj." in name:
            reordered = heads
        elif architecture.interleaved_rope and ".k_proj." in name:
            reordered = kv_heads
        offset = architecture.norm_offset if name.endswith("norm.weight") else 0.0
        outputs.append(_Output(target, name, shape, kind, reordered, offset, wanted=wanted))
    return outputs


def _writer(
    stage: Path,
    trained: TrainedWeights,
    architecture: GgufArchitecture,
    quantization: str,
    vocabulary: Vocabulary,
    outputs: list[_Output],
    name: str,
) -> Any:
    import gguf

    writer = gguf.GGUFWriter(stage, architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    family = vocabulary.family
    writer.add_name(name if family is None or family in name.lower() else f"{name} ({family})")
    parameters = sum(math.prod(shape) for shape in trained.shapes.values())
    writer.add_size_label(gguf.size_label(parameters, parameters, 0, 0))
    _describe(writer, trained, architecture)
    writer.add_file_type(gguf.LlamaFileType[QUANTIZATIONS[quantization].file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add_to(writer)
    for output in outputs:
        kind = gguf.GGMLQuantizationType[output.kind]
        writer.add_tensor_info(output.name, output.shape, np.dtype(np.float32), output.size_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _describe(writer: Any, trained: TrainedWeights, architecture: GgufArchitecture) -> None:
    config = {**trained.config, "vocab_size": trained.shapes[EMBEDDING][0]}
    try:
        architecture.describe(writer, config)
    except KeyError as error:
        where = Where(str(trained.base / "config.json"))
        raise MachineError(Problem(where, str(error.args[0]), "is missing", "download it again")) from error


def _write(
    streams: list[BinaryIO],
    trained: TrainedWeights,
    outputs: list[tuple[_Output, ...]],
    threads: int | None,
    on_bytes: BytesWritten,
) -> None:
    """Write the tensors; `outputs` has for each the one of every file."""
    for stream in streams:
        stream.write(bytes(-stream.tell() % ALIGNMENT))
    total = sum(output.size_bytes for group in outputs for output in group)
    done = 0
    for group, last, blocks in in_order(lambda work: _compute(trained, *work), _blocks(outputs), threads):
        for stream, output, data in zip(streams, group, blocks, strict=True):
            stream.write(data.data)
            done += data.nbytes
            if last:
                stream.write(bytes(-output.size_bytes % ALIGNMENT))
        on_bytes(done, total)


def _blocks(outputs: list[tuple[_Output, ...]]) -> Iterator[tuple[tuple[_Output, ...], int, int]]:
    for group in outputs:
        first = group[0]
        # Reordered rows stay inside their head, so a block of whole heads needs no other rows.
        unit = first.shape[0] // first.heads if first.heads else 1
        for begin, end in row_blocks((first.shape[0] // unit, unit, *first.shape[1:])):
            yield group, begin * unit, end * unit


def _compute(
    trained: TrainedWeights, group: tuple[_Output, ...], begin: int, end: int
) -> tuple[tuple[_Output, ...], bool, list[NDArray[np.uint8]]]:
    """(the outputs, whether this is their last block, the block in the type of each)."""
    output = group[0]
    if output.source is None:
        assert output.values is not None  # noqa: S101  a computed tensor brings its values
        values = output.values[begin:end]
    else:
        values = trained.floats(output.source, begin, end)
    if output.offset:
        values = values + np.float32(output.offset)
    if output.heads:
        half = output.shape[0] // output.heads // 2
        parts = values.reshape(-1, 2, half, *output.shape[1:])
        values = parts.swapaxes(1, 2).reshape(values.shape)
    if any(one.kind == "F16" for one in group):
        check_float16(values, output.name, "use bf16 or q8_0")
    rows = values.reshape(1, -1) if values.ndim == 1 else values
    # Two files often want one type of a tensor: norms, and most matrices of a mix.
    made = {kind: kernels.quantize(rows, kind, output.name) for kind in dict.fromkeys(one.kind for one in group)}
    return group, end == output.shape[0], [made[one.kind] for one in group]


def _file_bytes(outputs: list[_Output], vocabulary: Vocabulary) -> int:
    # A tensor's entry: its name, shape, type and offset.
    return vocabulary.size_bytes + sum(-(-output.size_bytes // ALIGNMENT) * ALIGNMENT + 96 for output in outputs)


def _fallbacks(outputs: list[_Output]) -> tuple[str, ...]:
    pairs = Counter((output.wanted, output.kind, output.shape[-1]) for output in outputs if output.wanted)
    return tuple(
        f"{count} tensors are {kind} instead of {wanted}: their rows of {columns} are no multiple of its block"
        for (wanted, kind, columns), count in pairs.items()
    )
