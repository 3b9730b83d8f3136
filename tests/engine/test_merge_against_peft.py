"""The torch-free merge computes what PEFT's own forward pass computes, for each kind of LoRA that it accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fastft.exports.merged import write_merged
from tests.exports.tiny import write_base

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ALL},
    "rank-stabilised": {"target_modules": ALL, "use_rslora": True},
    "dora": {"target_modules": ALL, "use_dora": True},
    "patterns": {"target_modules": ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 40}},
    "all linear layers by regex": {"target_modules": r".*\.(q_proj|down_proj)"},
    "embedding in full": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "embedding and head in full": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding in full, tied": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True,
    },
    "embedding low-rank": {"target_modules": ["q_proj", "embed_tokens"]},
    "head low-rank": {"target_modules": ["q_proj", "lm_head"]},
    "single rows": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 299, 3]},
    "single rows and the head in full": {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head"],
        "trainable_token_indices": {"embed_tokens": [7, 299]},
    },
    "single rows of both": {
        "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [7, 299], "lm_head": [7, 299]},
    },
    "other rows of both": {
        "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [7, 299], "lm_head": [8, 299]},
    },
}  # fmt: skip

# Those that an adapter of a model with added tokens has; PEFT saves the embedding that grew beside them.
GROW = ("plain", "embedding and head in full", "single rows", "single rows and the head in full", "single rows of both")


@pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of tied embeddings and of each other's renames
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "added"), [*((kind, 0) for kind in KINDS), *((kind, 8) for kind in GROW)])
def test_merged_logits_equal_the_adapter_logits(tmp_path: Path, kind: str, added: int, tied: bool) -> None:
    if tied and kind == "single rows and the head in full":
        pytest.skip("PEFT 0.21 saves it and cannot run it")
    write_base(tmp_path / "base", tied=tied)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    if added:
        base.resize_token_embeddings(300 + added, mean_resizing=False)
    tokens = torch.cat((torch.randint(0, 300 + added, (2, 13)), torch.tensor([[7, 299, 3, 299 + added]] * 2)), 1)
    before = base(tokens).logits
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **KINDS[kind]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.02 if "magnitude" in name else 0.1))
        trained = model.eval()(tokens).logits
        model.save_pretrained(tmp_path / "adapter")
        write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(tokens).logits
    assert (trained - before).abs().max() > 0.1
    # R13: a float32 merge is within 1e-3; float32 sums in another order stay far below on logits of this size.
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=0)
