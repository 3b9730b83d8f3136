"""Merged weights in bitsandbytes' 4 bits (NF4, double quantization), as transformers, vLLM and Unsloth load them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

from fastft.console import BytesWritten, ignore_bytes
from fastft.exports.job import Artefact, Job
from fastft.exports.merged import (
    choose_dtype,
    copy_tokenizer,
    estimate_merged_4bit_bytes,
    is_layer_matrix,
    tokenizer_folder,
    write_config,
    write_generation_config,
    write_index,
)
from fastft.exports.trained import TrainedWeights
from fastft.files.atomic import staged_folder

# What is held in memory before it is written as one file.
SHARD_BYTES = 1 << 30

Tensors = dict[str, torch.Tensor]


def write_merged_4bit(job: Job, kind: str, on_bytes: BytesWritten = ignore_bytes) -> Artefact:
    """Write base + adapter to `job.place(kind)`, matrix by matrix; memory holds one shard of 1 GiB.

    `on_bytes` learns how far the tensors are; the bytes in all are an estimate until the end.

    Raises:
        FastftError: as `fastft.exports.merged.write_merged`.
    """
    start, place = time.monotonic(), job.place(kind)
    needed = estimate_merged_4bit_bytes(job.base, job.adapter)
    with TrainedWeights(job.base, job.adapter) as trained:
        chosen, reason = choose_dtype(trained, "auto")
        dtype = getattr(torch, chosen)
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        with staged_folder(place, needed) as stage:
            file_of: dict[str, str] = {}
            for number, shard in enumerate(_shards(trained, dtype, needed, on_bytes), start=1):
                file = f"model-{number:05d}.safetensors"
                save_file(shard, stage / file, metadata={"format": "pt"})
                file_of |= dict.fromkeys(shard, file)
            write_index(stage, file_of, sum(path.stat().st_size for path in stage.glob("*.safetensors")))
            write_config(stage, trained, chosen, quantization_config=settings.to_dict())
            write_generation_config(job.base, stage, job.end_ids)
            copy_tokenizer(tokenizer_folder(job.base, job.adapter), stage)
        notes = (f"{chosen} where not in 4 bits: {reason}", *trained.notes)
    size = sum(path.stat().st_size for path in place.iterdir())
    return Artefact(kind, place, size, time.monotonic() - start, notes)


def _shards(trained: TrainedWeights, dtype: torch.dtype, estimate: int, on_bytes: BytesWritten) -> Iterator[Tensors]:
    shard: Tensors = {}
    done = 0
    for name in trained.shapes:
        if shard and sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            yield shard
            shard = {}
        values = torch.from_numpy(trained.floats(name)).to(dtype)
        made = _quantized(name, values) if is_layer_matrix(trained, name) else {name: values}
        shard |= made
        done += sum(tensor.nbytes for tensor in made.values())
        on_bytes(done, max(done, estimate))
    yield shard
    on_bytes(done, done)


def _quantized(name: str, values: torch.Tensor) -> Tensors:
    """The tensors that bitsandbytes' Linear4bit saves for one matrix of shape (outputs, inputs)."""
    packed, state = quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    return {name: packed, **{f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}}
