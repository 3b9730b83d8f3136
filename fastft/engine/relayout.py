"""A model in another layout, or of pickled weights, as a folder of safetensors that every loader understands."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fastft.data.sentencepiece_model import write_fast_tokenizer
from fastft.errors import MachineError, Problem, Where
from fastft.exports.merged import MAX_SHARD_BYTES, copy_tokenizer, write_index
from fastft.files.atomic import free_bytes, read_json
from fastft.files.seal import sealed_folder
from fastft.files.tensors import write_header
from fastft.probe.layouts import Layout, Part
from fastft.probe.model_config import read_model_config

# safetensors' names of what torch.load may give.
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# What transformers reads of a generation config, and a layout of its own may have more in.
GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p")


def relayout(original: Path, folder: Path, layout: Layout | None, where: Where) -> None:
    """Write the model of `original` to `folder`, which appears whole or not at all; tensor by tensor.

    `layout` None keeps names and config, and only turns pickles into safetensors.

    Raises:
        MachineError: a file is missing or damaged or is no plain table of tensors, or the disk is too small.
    """
    try:
        with sealed_folder(folder) as stage:
            config = read_model_config(original / "config.json")
            new_config = config if layout is None else layout.to_llama(config)
            (stage / "config.json").write_text(json.dumps(new_config, indent=2) + "\n", encoding="utf-8")
            generation = read_json(original / "generation_config.json") or {}
            kept = {key: value for key, value in generation.items() if layout is None or key in GENERATION}
            if kept:
                (stage / "generation_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            for name in ("README.md", "LICENSE"):
                if (original / name).is_file():
                    shutil.copyfile(original / name, stage / name)
            if layout is not None and (original / "tokenizer.model").is_file():
                write_fast_tokenizer(original, stage, where)
            else:
                copy_tokenizer(original, stage)
            _write_weights(original, stage, layout, config, where)
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        wrong = f"the model cannot be converted: {' '.join(str(error).split())[:300]}"
        instead = "check its files and the free space of the cache, or use another model"
        raise MachineError(Problem(where, "model.id", wrong, instead, str(original))) from error


def _write_weights(original: Path, stage: Path, layout: Layout | None, config: dict[str, Any], where: Where) -> None:
    tensors = dict(_tensors(original))
    parts = [
        (name, part) for name in tensors for part in ((Part(name),) if layout is None else layout.parts(config, name))
    ]
    sizes = [math.prod(_shape(tensors[name], part)) * tensors[name].element_size() for name, part in parts]
    needed, free = sum(sizes), free_bytes(stage)
    if needed > free:
        wrong = f"converting needs {needed / 1e9:.1f} GB in {stage.parent}, {free / 1e9:.1f} GB are free"
        raise MachineError(Problem(where, "model.id", wrong, "free some space, or set XDG_CACHE_HOME to another disk"))
    shards = _shards(parts, sizes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        heads = [(part.name, NAMES[tensors[own].dtype], _shape(tensors[own], part)) for own, part in shard]
        with (stage / name).open("wb") as stream:
            write_header(stream, heads)
            for own, part in shard:
                stream.write(_values(tensors[own], part).reshape(-1).view(torch.uint8).numpy().data)
    write_index(
        stage, {part.name: name for name, shard in zip(names, shards, strict=True) for _, part in shard}, needed
    )


def _tensors(original: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a folder by name, mapped and not read; of pickles, what torch's weights_only reader accepts."""
    files = sorted(original.glob("*.safetensors")) or sorted(original.glob("pytorch_model*.bin"))
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                yield from ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118 -- no mapping
            continue
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise ValueError(f"{file.name} is no table of tensors")
        yield from loaded.items()


def _shards(parts: Sequence[tuple[str, Part]], sizes: Sequence[int]) -> list[list[tuple[str, Part]]]:
    """`parts` in files of at most MAX_SHARD_BYTES each."""
    shards: list[list[tuple[str, Part]]] = [[]]
    filled = 0
    for part, size in zip(parts, sizes, strict=True):
        if filled and filled + size > MAX_SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += size
    return shards


def _shape(tensor: torch.Tensor, part: Part) -> tuple[int, ...]:
    return tuple(tensor.shape) if part.rows is None else (sum(map(len, part.rows)), *tensor.shape[1:])


def _values(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    values = tensor if part.rows is None else torch.cat([tensor[run.start : run.stop] for run in part.rows])
    if part.normalized:
        values = torch.nn.functional.normalize(values.float()).to(values.dtype)
    return values.contiguous()
