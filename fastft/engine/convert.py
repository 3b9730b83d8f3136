"""A GGUF file as a folder that every loader understands: safetensors, config, tokenizer, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fastft.errors import MachineError, Problem, Where
from fastft.files.seal import sealed_folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder`, which appears whole or not at all.

    Weights are stored in float32: what transformers de-quantizes the file to, before anything rounds it.

    Raises:
        MachineError: transformers cannot read the file, or the disk is full.
    """
    try:
        with sealed_folder(folder) as stage:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
            # The metadata has the right end token; transformers 5.17 gives the tokenizer another one.
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
            tokenizer.pad_token = tokenizer.eos_token
            model.save_pretrained(stage)
            tokenizer.save_pretrained(stage)
            reader = GGUFReader(gguf)
            _restore_pre_tokenizer(stage / "tokenizer.json", reader)
            licence = reader.get_field("general.license")
            if licence is not None:
                (stage / "README.md").write_text(f"---\nlicense: {licence.contents()}\n---\n", encoding="utf-8")
    except Exception as error:  # a damaged file may raise anything: struct.error, IndexError, ...
        wrong = f"the GGUF file cannot be converted: {' '.join(str(error).split())[:300]}"
        instead = "check the file and the free space of the cache, or name a safetensors model"
        raise MachineError(Problem(Where(str(gguf)), "model.id", wrong, instead)) from error


# How byte-level BPE tokenizers cut text before merging, by the name that llama.cpp gives it (`tokenizer.ggml.pre`).
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}


def _restore_pre_tokenizer(path: Path, reader: GGUFReader) -> None:
    """Give tokenizer.json the pre-tokenizer that the GGUF names.

    transformers 5.17 gives every GGUF with BPE a plain ByteLevel pre-tokenizer with SentencePiece's byte fallback: it
    merges digits that the model never saw merged, and exporters take the tokenizer for a SentencePiece one.
    """
    field = reader.get_field("tokenizer.ggml.pre")
    cut = None if field is None else _PRE_TOKENIZERS.get(str(field.contents()))
    if cut is None:
        return
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer |= {"pre_tokenizer": cut, "normalizer": None, "decoder": _BYTE_LEVEL, "post_processor": None}
    tokenizer["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
