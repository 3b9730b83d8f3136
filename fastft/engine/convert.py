"""A GGUF file as a folder that every loader understands: safetensors, config, tokenizer, chat template."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fastft.errors import MachineError, Problem, Where
from fastft.run import seal


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder`, which appears whole or not at all.

    Weights are stored in float32: what transformers de-quantizes the file to, before anything rounds it.

    Raises:
        MachineError: transformers cannot read the file, or the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        # The model's end token is right in its own metadata; transformers 5.17 takes the tokenizer's from elsewhere.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
        tokenizer.pad_token = tokenizer.eos_token
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        seal(partial, folder)
    except Exception as error:  # a damaged file breaks its reader in any way there is: struct.error, IndexError, ...
        wrong = f"the GGUF file cannot be converted: {' '.join(str(error).split())[:300]}"
        instead = "check the file and the free space of the cache, or name a safetensors model"
        raise MachineError(Problem(Where(str(gguf)), "model.id", wrong, instead)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
