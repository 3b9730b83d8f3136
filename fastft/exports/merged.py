"""Merged weights: base + adapter as one model folder for transformers and vLLM, streamed with a few MiB of memory."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastft.console import BytesWritten, ignore_bytes
from fastft.errors import Problem, RecipeError, Where
from fastft.exports.trained import EMBEDDING, TrainedWeights, in_order, row_blocks
from fastft.files.atomic import read_json, staged_folder, write_json
from fastft.files.tensors import DTYPES, FLOATING, ITEM_BYTES, check_float16, from_float32, write_header

Dtype = Literal["auto", "float16", "bfloat16", "float32"]

# What the Hub accepts without a warning, and what transformers writes.
MAX_SHARD_BYTES = 5_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class MergedReport:
    """What `write_merged` wrote."""

    folder: Path
    dtype: str
    """float16, bfloat16 or float32."""
    dtype_reason: str
    size_bytes: int
    tensors: int
    changed_tensors: int
    """The number of tensors that the adapter changed."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Notes for the user about the base."""


@dataclass(frozen=True)
class _Shard:
    name: str
    tensors: tuple[tuple[str, str], ...]
    """(tensor, safetensors type)"""
    size_bytes: int


def write_merged(
    base: Path,
    adapter: Path | None,
    out: Path,
    *,
    dtype: Dtype = "auto",
    chat_template: str | None = None,
    end_ids: Sequence[int] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    threads: int | None = None,
    on_bytes: BytesWritten = ignore_bytes,
) -> MergedReport:
    """Write base + adapter to the new folder `out`; `adapter` None copies the base.

    The tokenizer comes from the adapter's folder, else from the base; `chat_template` replaces its template. Generation
    also stops at `end_ids`. `on_bytes` takes the bytes written so far.
    `dtype` "auto" keeps the base's 16-bit type; a float32 base becomes float16.

    Raises:
        RecipeError: `out` exists, the adapter does not fit the base, or a value does not fit float16.
        MachineError: a file is missing or damaged, or the disk is too small.
        TrainingError: a weight is NaN or infinite.
    """
    start = time.monotonic()
    with TrainedWeights(base, adapter) as trained:
        chosen, reason = choose_dtype(trained, dtype)
        shards = _shards(trained, dtype, chosen, max_shard_bytes)
        total = sum(shard.size_bytes for shard in shards)
        source = tokenizer_folder(base, adapter)
        with staged_folder(out, total + _small_bytes(trained, source)) as stage:
            done = 0
            for shard in shards:
                with (stage / shard.name).open("wb") as stream:
                    write_header(stream, ((name, kind, trained.shapes[name]) for name, kind in shard.tensors))
                    for block in _blocks(trained, shard, threads):
                        stream.write(block.data)
                        done += block.nbytes
                        on_bytes(done, total)
            if len(shards) > 1:
                write_index(stage, {name: shard.name for shard in shards for name, _ in shard.tensors}, total)
            write_config(stage, trained, chosen)
            copy_tokenizer(source, stage, chat_template)
            write_generation_config(base, stage, end_ids)
        changed = sum(trained.is_changed(name) for name in trained.shapes)
    size, seconds = sum(path.stat().st_size for path in out.iterdir()), time.monotonic() - start
    return MergedReport(out, chosen, reason, size, len(trained.shapes), changed, seconds, trained.notes)


def estimate_merged_bytes(base: Path, adapter: Path | None, dtype: Dtype = "auto") -> int:
    """The bytes that `write_merged` will write: weights, headers, tokenizer and config."""
    with TrainedWeights(base, adapter) as trained:
        chosen, _ = choose_dtype(trained, dtype)
        shards = _shards(trained, dtype, chosen, MAX_SHARD_BYTES)
        return sum(shard.size_bytes for shard in shards) + _small_bytes(trained, tokenizer_folder(base, adapter))


def estimate_merged_4bit_bytes(base: Path, adapter: Path | None) -> int:
    """The bytes of the model with its layers' matrices in NF4: half a byte a weight, one for 64, four for 16,384."""
    with TrainedWeights(base, adapter) as trained:
        sizes = {name: math.prod(shape) for name, shape in trained.shapes.items()}
        packed = sum(size for name, size in sizes.items() if is_layer_matrix(trained, name))
        # Two tables (64 and 1,024 bytes), the state, headers and index entries of six tensors a matrix.
        tables = 2700 * sum(is_layer_matrix(trained, name) for name in sizes)
        small = _small_bytes(trained, tokenizer_folder(base, adapter))
        return 2 * (sum(sizes.values()) - packed) + packed * 33 // 64 + packed // 4096 + tables + small


def is_layer_matrix(trained: TrainedWeights, name: str) -> bool:
    """Whether bitsandbytes quantizes this tensor: the matrices of the layers, not embeddings, head and norms."""
    return ".layers." in name and name.endswith(".weight") and len(trained.shapes[name]) == 2


def choose_dtype(trained: TrainedWeights, dtype: Dtype) -> tuple[str, str]:
    """The number type of the merged weights, and why."""
    if dtype != "auto":
        return dtype, "asked for"
    bytes_of = dict.fromkeys(FLOATING, 0)
    for stored in map(trained.stored, trained.shapes):
        if stored.dtype in FLOATING:
            bytes_of[stored.dtype] += stored.size_bytes
    main = max(bytes_of, key=lambda kind: bytes_of[kind])
    if main in ("F16", "BF16"):
        return next(name for name, kind in DTYPES.items() if kind == main), "as the base"
    return "float16", "the base is float32: float16 keeps 3 more bits of each weight than bfloat16"


def target_type(trained: TrainedWeights, name: str, dtype: Dtype, chosen: str) -> str:
    """The safetensors type of one merged tensor: `dtype` as asked for, `chosen` by `choose_dtype`."""
    stored = trained.stored(name).dtype
    # A 16-bit model may hold a few float32 tensors on purpose; they stay unless a type was asked for.
    if stored not in FLOATING or (dtype == "auto" and (stored in ("F16", "BF16") or chosen == "bfloat16")):
        return stored
    return DTYPES[chosen]


def _shards(trained: TrainedWeights, dtype: Dtype, chosen: str, limit: int) -> list[_Shard]:
    groups: list[list[tuple[str, str]]] = [[]]
    sizes = [0]
    for name in trained.shapes:
        target = target_type(trained, name, dtype, chosen)
        size = math.prod(trained.shapes[name]) * ITEM_BYTES[target]
        if sizes[-1] and sizes[-1] + size > limit:
            groups.append([])
            sizes.append(0)
        groups[-1].append((name, target))
        sizes[-1] += size
    count = len(groups)
    names = [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    return [_Shard(*parts) for parts in zip(names, map(tuple, groups), sizes, strict=True)]


def _blocks(trained: TrainedWeights, shard: _Shard, threads: int | None) -> Iterator[NDArray[Any]]:
    def compute(block: tuple[str, str, int, int]) -> NDArray[Any]:
        name, target, begin, end = block
        if target == trained.stored(name).dtype and not trained.is_changed(name):
            return np.ascontiguousarray(trained.raw(name, begin, end))
        values = trained.floats(name, begin, end)
        if target == "F16":
            check_float16(values, name, 'write it with dtype "bfloat16"')
        return np.ascontiguousarray(from_float32(values, target))

    work = (
        (name, target, begin, end) for name, target in shard.tensors for begin, end in row_blocks(trained.shapes[name])
    )
    return in_order(compute, work, threads)


def write_index(stage: Path, file_of: dict[str, str], total: int) -> None:
    """model.safetensors.index.json: which file holds each tensor, and the bytes of all."""
    write_json(stage / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": file_of})


def write_config(stage: Path, trained: TrainedWeights, dtype: str, **changes: Any) -> None:
    """config.json of the trained model, with `changes`."""
    # Leaves out the path of the base on this machine, which is private.
    config = {key: value for key, value in trained.config.items() if key != "_name_or_path"}
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    config["tie_word_embeddings"] = trained.tied
    if EMBEDDING in trained.shapes:
        config["vocab_size"] = trained.shapes[EMBEDDING][0]
    text = json.dumps({**config, **changes}, indent=2, sort_keys=True)
    (stage / "config.json").write_text(text + "\n", encoding="utf-8")


def write_generation_config(base: Path, stage: Path, ends: Sequence[int]) -> None:
    """The base's generation config, which with `ends` added: a base model has no end of turn."""
    config = read_json(base / "generation_config.json")
    if config is None and not ends:
        return
    config = config or {}
    before = stopping_ids(config)
    if any(token not in before for token in ends):
        config["eos_token_id"] = [*ends, *(token for token in before if token not in ends)]
    (stage / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def stopping_ids(generation: dict[str, Any]) -> list[int]:
    """The token ids at which a generation config stops."""
    ends = generation.get("eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or [])


def tokenizer_folder(base: Path, adapter: Path | None) -> Path:
    """The one folder that all tokenizer files come from.

    Raises:
        RecipeError: none of them has a tokenizer.
    """
    candidates = [folder for folder in (adapter, base) if folder is not None]
    for folder in candidates:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return folder
    looked, wrong = " and ".join(map(str, candidates)), "no tokenizer.json and no tokenizer.model"
    raise RecipeError(Problem(Where(looked), "", wrong, "give a folder that has the tokenizer"))


def copy_tokenizer(source: Path, out: Path, chat_template: str | None = None) -> None:
    """Copy the tokenizer's files to `out`; `chat_template` replaces the template among them."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if chat_template is None:
        return
    (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    settings = read_json(out / "tokenizer_config.json") or {}
    if settings.pop("chat_template", None) is not None:
        write_json(out / "tokenizer_config.json", settings)


def _small_bytes(trained: TrainedWeights, tokenizer: Path) -> int:
    """The bytes of everything but weights: headers (up to 200 bytes a tensor), config, tokenizer."""
    files = [tokenizer / name for name in TOKENIZER_FILES]
    files += [trained.base / "config.json", trained.base / "generation_config.json"]
    return 200 * len(trained.shapes) + sum(file.stat().st_size for file in files if file.is_file())
