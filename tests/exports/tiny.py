"""Tiny random models and adapters for the export tests, made in code with numpy and written by `safetensors` itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD_DIM = HIDDEN // HEADS
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Arrays = dict[str, NDArray[Any]]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def base_arrays(seed: int = 0, vocabulary: int = 300, tied: bool = True) -> Arrays:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[Any]:
        return random.normal(0, 0.05, shape).astype(np.float32)

    arrays: Arrays = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        arrays |= {f"{prefix}.{name}.weight": normal(*shape) for name, shape in PROJECTIONS.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            arrays[f"{prefix}.{norm}.weight"] = 1 + normal(HIDDEN)
    arrays["model.norm.weight"] = 1 + normal(HIDDEN)
    if not tied:
        arrays["lm_head.weight"] = normal(vocabulary, HIDDEN)
    return arrays


def llama_config(vocabulary: int = 300, tied: bool = True, **changes: object) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        **changes,
    }


def write_tokenizer(folder: Path, vocabulary: int = 300) -> None:
    """A byte-level BPE tokenizer trained on three sentences, with ChatML's special tokens as 0, 1 and 2."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    text = [
        "the quick brown fox jumps over the lazy dog",
        "user and assistant and system",
        "what is the answer to this",
    ]
    tokenizer.train_from_iterator(text * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "add_bos_token": False,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_base(folder: Path, arrays: Arrays | None = None, tied: bool = True, **changes: object) -> Arrays:
    """A Llama in `folder`; returns its arrays."""
    folder.mkdir(parents=True)
    arrays = base_arrays(tied=tied) if arrays is None else arrays
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = arrays["model.embed_tokens.weight"].shape[0]
    write_json(folder / "config.json", llama_config(vocabulary, tied, **changes))
    write_json(folder / "generation_config.json", {"eos_token_id": 2})
    write_tokenizer(folder, vocabulary)
    return arrays


def write_adapter(
    folder: Path,
    rank: int = 4,
    seed: int = 1,
    modules: tuple[str, ...] = tuple(PROJECTIONS),
    extra: Arrays | None = None,
    **config: object,
) -> Arrays:
    """A LoRA adapter for `write_base`'s model in `folder`; returns its arrays by PEFT's names."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    for layer in range(LAYERS):
        for module in modules:
            outputs, inputs = PROJECTIONS[module]
            name = f"base_model.model.model.layers.{layer}.{module}"
            arrays[f"{name}.lora_A.weight"] = random.normal(0, 0.1, (rank, inputs)).astype(np.float32)
            arrays[f"{name}.lora_B.weight"] = random.normal(0, 0.1, (outputs, rank)).astype(np.float32)
    arrays |= extra or {}
    save_file(arrays, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(modules), **config}
    write_json(folder / "adapter_config.json", settings)
    return arrays
