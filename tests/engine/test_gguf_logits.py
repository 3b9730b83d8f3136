"""Files of every GGUF architecture and rotary scaling give in llama.cpp the logits of transformers.

Only this finds a scale, a rotation or a norm that llama.cpp computes otherwise: the tensor check sees no metadata.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fastft.exports.gguf.writer import write_gguf
from fastft.inference.llamacpp import GgufModel
from tests.exports.families import SCALED, VOCABULARY, write_family


@pytest.mark.parametrize("name", ["smollm3", "granite", "olmo2", "phi4-mini", *SCALED])
def test_llama_cpp_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    base, _ = write_family(tmp_path, name)
    file = write_gguf(base, None, tmp_path / "out.gguf", "f32").file
    # Beyond the original context of the scaled ones, where a wrong scaling shows.
    ids = np.random.default_rng(0).integers(3, VOCABULARY, 200).tolist()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    with GgufModel(file, context_tokens=256) as found:
        logits = np.asarray(found.logits(ids))
    # llama.cpp keeps keys and values in float16: measured 0.2 % of the spread at most; no scaling at all gives 20 %.
    assert np.abs(logits - expected).max() < 0.02 * expected.std()
