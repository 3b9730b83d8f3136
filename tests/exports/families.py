"""Tiny random models with adapters, of every architecture that GGUF export knows, made in code with numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fastft.exports.merged import write_merged
from tests.exports.tiny import Arrays, write_json, write_tokenizer

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, LAYERS, VOCABULARY = 256, 512, 4, 2, 64, 2, 300
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LONG = {"type": "longrope", "short_factor": [1.0] * (HEAD // 2), "long_factor": [2.0] * (HEAD // 2)}
SPLIT = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
FUSED = {
    "self_attn.qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_up_proj": (2 * INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
AFTER_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
GEMMA2 = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 64}
GEMMA3: dict[str, Any] = {"sliding_window": 64, "rope_theta": 1e6, "rope_local_base_freq": 10000.0}
GRANITE: dict[str, Any] = {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22,
                           "logits_scaling": 8.0}  # fmt: skip
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PARTIAL: dict[str, Any] = {"short_factor": [1.0] * 24, "long_factor": [2.0] * 24, "type": "longrope"}
# name: (class, tied, what else the config has, what differs in the adapter)
FAMILIES: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", False, {}, {}),
    "llama-tied-bfloat16": ("LlamaForCausalLM", True, {"torch_dtype": "bfloat16"}, {}),
    "llama-3.1": ("LlamaForCausalLM", False, {"rope_scaling": LLAMA3}, {"use_rslora": True}),
    "llama-dora": ("LlamaForCausalLM", False, {}, {"use_dora": True}),
    "llama-embedding": ("LlamaForCausalLM", True, {}, {"embedding": True}),
    "mistral": ("MistralForCausalLM", False, {"torch_dtype": "bfloat16"}, {}),
    "qwen2": ("Qwen2ForCausalLM", True, {}, {}),
    "qwen3": ("Qwen3ForCausalLM", False, {"torch_dtype": "bfloat16"}, {"use_rslora": True}),
    "gemma2": ("Gemma2ForCausalLM", True, GEMMA2, {}),
    "gemma3": ("Gemma3ForCausalLM", True, {**GEMMA3, "torch_dtype": "bfloat16"}, {}),
    "smollm3": ("SmolLM3ForCausalLM", True, {"rope_theta": 5e6, "pad_token_id": 0}, {}),
    "granite": ("GraniteForCausalLM", True, GRANITE, {}),
    "olmo2": ("Olmo2ForCausalLM", False, {"rope_theta": 5e5}, {}),
    "phi4-mini": (
        "Phi3ForCausalLM",
        True,
        {
            "rope_scaling": PARTIAL,
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.75,
            "pad_token_id": 0,
        },
        {},
    ),
    "phi3": ("Phi3ForCausalLM", False, {"pad_token_id": 0}, {}),
    "phi3-long": ("Phi3ForCausalLM", False, {"rope_scaling": LONG, "original_max_position_embeddings": 64}, {}),
}
# Of those, models with a rotary scaling: other metadata, the same tensors.
SCALED: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "llama-linear": ("LlamaForCausalLM", False, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {}),
    "llama-yarn": ("LlamaForCausalLM", False, {"rope_scaling": YARN}, {}),
    "qwen3-yarn": ("Qwen3ForCausalLM", False, {"rope_scaling": YARN}, {}),
}


def write_family(folder: Path, name: str, seed: int = 0, vocabulary: int = VOCABULARY) -> tuple[Path, Path]:
    """(base, adapter) of the model `name` in `folder`."""
    architecture, tied, more, adapter = (FAMILIES | SCALED)[name]
    random = np.random.default_rng([seed, *name.encode()])

    def normal(*shape: int) -> Any:
        return random.normal(0, 0.05, shape).astype(np.float32)

    projections = FUSED if architecture.startswith("Phi3") else SPLIT
    norms = FOUR_NORMS if architecture.startswith("Gemma") else AFTER_NORMS if name == "olmo2" else TWO_NORMS
    arrays: Arrays = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN), "model.norm.weight": 1 + normal(HIDDEN)}
    change: Arrays = {}
    # So many that the one that differs is among them: without rotation, with full attention.
    layers = {"smollm3": 4, "gemma3": 6}.get(name, LAYERS)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        arrays |= {f"{prefix}.{norm}.weight": 1 + normal(HIDDEN) for norm in norms}
        if architecture[:5] in ("Qwen3", "Gemma") and architecture != "Gemma2ForCausalLM":
            arrays |= {f"{prefix}.{norm}.weight": 1 + normal(HEAD) for norm in HEAD_NORMS}
        if name == "olmo2":
            arrays |= {f"{prefix}.self_attn.{part}_norm.weight": 1 + normal(heads * HEAD)
                       for part, heads in (("q", HEADS), ("k", KV_HEADS))}  # fmt: skip
        for module, (outputs, inputs) in projections.items():
            arrays[f"{prefix}.{module}.weight"] = normal(outputs, inputs)
            if architecture.startswith("Qwen2") and module[10:] in ("q_proj", "k_proj", "v_proj"):
                arrays[f"{prefix}.{module}.bias"] = normal(outputs)
            low = f"base_model.model.{prefix}.{module}"
            change[f"{low}.lora_A.weight"] = 2 * normal(4, inputs)
            change[f"{low}.lora_B.weight"] = 2 * normal(outputs, 4)
            if adapter.get("use_dora"):
                change[f"{low}.lora_magnitude_vector"] = 1 + normal(outputs)
    if not tied:
        arrays["lm_head.weight"] = normal(vocabulary, HIDDEN)
    if adapter.get("embedding"):
        change["base_model.model.model.embed_tokens.lora_embedding_A"] = 2 * normal(4, vocabulary)
        change["base_model.model.model.embed_tokens.lora_embedding_B"] = 2 * normal(HIDDEN, 4)
    config = {
        "architectures": [architecture], "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": vocabulary, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": tied, "torch_dtype": "float32", **more,
    }  # fmt: skip
    if config["model_type"] == "gemma3":
        config["model_type"] = "gemma3_text"
    if architecture.startswith("Gemma"):
        config |= {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": HEAD}
    base = folder / name
    whole = folder / f"{name}-float32" if more.get("torch_dtype") == "bfloat16" else base
    whole.mkdir(parents=True)
    save_file(arrays, whole / "model.safetensors", metadata={"format": "pt"})
    write_json(whole / "config.json", config)
    write_json(whole / "generation_config.json", {"eos_token_id": 2})
    write_tokenizer(whole, vocabulary)
    if whole != base:
        write_merged(whole, None, base, dtype="bfloat16")
    adapted = folder / f"{name}-adapter"
    adapted.mkdir()
    save_file(change, adapted / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": sorted(projections)}
    settings |= {key: value for key, value in adapter.items() if key.startswith("use_")}
    write_json(adapted / "adapter_config.json", settings)
    return base, adapted
