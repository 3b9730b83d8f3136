"""Tiny random models in the layouts of other families, made in code, and what their own forward pass computes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from torch.nn.functional import linear, normalize, scaled_dot_product_attention, silu

HIDDEN, INNER, HEADS, GROUPS, LAYERS = 64, 128, 4, 2, 2
WORDS = ("hello", "world", "fine", "tuning", "capital", "of", "Peru", "Lima", "模型", "训练", "数据", "12", "345")


def write_sentencepiece(folder: Path, *, dummy_prefix: bool = False) -> int:
    """A small tokenizer.model as Baichuan 2's: BPE with bytes, single digits, reserved tokens. Returns its size."""
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    lines = [" ".join(chance.choices(WORDS, k=10)) for _ in range(500)]
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<reserved_106>", "<reserved_107>"],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    return 400


def write_baichuan(folder: Path, *, pickled: bool = False, bfloat16: bool = False) -> dict[str, Tensor]:
    """A tiny Baichuan 2 in its published layout. Returns its tensors."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "tokenizer_class": "BaichuanTokenizer",
        "model_type": "baichuan",
        "model_max_length": 512,
        "torch_dtype": "bfloat16" if bfloat16 else "float32",
        **_sizes(write_sentencepiece(folder)),
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.X", None]},
    }
    settings |= {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}, "pad_token": {"content": "<unk>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        json.dumps({"user_token_id": 3, "assistant_token_id": 4, "eos_token_id": 2, "do_sample": True, "top_k": 5})
    )
    tensors = _random_tensors(_BAICHUAN_NAMES, 3 * HIDDEN)
    if bfloat16:
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    rope = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(LAYERS)}
    if pickled:
        torch.save(tensors | rope, folder / "pytorch_model.bin")
    else:
        save_file(tensors | rope, folder / "model.safetensors")
    return tensors


def write_internlm2(folder: Path) -> dict[str, Tensor]:
    """A tiny InternLM2 in its published layout, with two key-value heads. Returns its tensors."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "num_key_value_heads": GROUPS,
        "rope_theta": 10_000,
        "rope_scaling": None,
        "bias": False,
        "torch_dtype": "float32",
        **_sizes(write_sentencepiece(folder)),
    }
    (folder / "config.json").write_text(json.dumps(config))
    width = HIDDEN // HEADS
    tensors = _random_tensors(_INTERNLM2_NAMES, (HEADS + 2 * GROUPS) * width)
    save_file(tensors, folder / "model.safetensors")
    return tensors


# What each tensor of the decoder below is called in a layout.
_BAICHUAN_NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "packed": "self_attn.W_pack",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "before": "input_layernorm",
    "after": "post_attention_layernorm",
}
_INTERNLM2_NAMES = {
    "embedding": "model.tok_embeddings",
    "norm": "model.norm",
    "head": "output",
    "packed": "attention.wqkv",
    "out": "attention.wo",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
    "before": "attention_norm",
    "after": "ffn_norm",
}


def _sizes(vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }


def _random_tensors(names: dict[str, str], packed: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "packed": (packed, HIDDEN),
        "out": (HIDDEN, HIDDEN),
        "gate": (INNER, HIDDEN),
        "up": (INNER, HIDDEN),
        "down": (HIDDEN, INNER),
        "before": (HIDDEN,),
        "after": (HIDDEN,),
    }
    whole = {f"{names['embedding']}.weight": (400, HIDDEN), f"{names['norm']}.weight": (HIDDEN,)}
    whole |= {f"{names['head']}.weight": (400, HIDDEN)}
    for layer in range(LAYERS):
        whole |= {f"model.layers.{layer}.{names[key]}.weight": shape for key, shape in shapes.items()}
    return {name: torch.randn(shape) * (0.2 if len(shape) > 1 else 1.0) for name, shape in whole.items()}


def baichuan_logits(tensors: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """What Baichuan 2's own forward pass gives: one product for query, key and value, and a normalized output layer.

    `ids`, `mask`: (batch, tokens); the mask is 0 where a row is padded. Returns (batch, tokens, vocabulary).
    """

    def split(packed: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (HEADS, -1)) for part in packed.split(HIDDEN, dim=-1)]

    return _logits(tensors, _BAICHUAN_NAMES, split, normalize(tensors["lm_head.weight"]), ids, mask)


def internlm2_logits(tensors: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """What InternLM2's own forward pass gives: wqkv has, for each key-value head, its queries, its key, its value."""

    def split(packed: Tensor) -> list[Tensor]:
        grouped = packed.unflatten(-1, (GROUPS, HEADS // GROUPS + 2, HIDDEN // HEADS))
        key, value = (grouped[..., part, :].repeat_interleave(HEADS // GROUPS, dim=-2) for part in (-2, -1))
        return [grouped[..., :-2, :].flatten(-3, -2), key, value]

    return _logits(tensors, _INTERNLM2_NAMES, split, tensors["output.weight"], ids, mask)


def _logits(
    tensors: dict[str, Tensor],
    names: dict[str, str],
    split: Callable[[Tensor], list[Tensor]],
    head: Tensor,
    ids: Tensor,
    mask: Tensor,
) -> Tensor:
    """A decoder with one product for query, key and value, which `split` turns into (batch, tokens, heads, width)."""
    hidden = tensors[f"{names['embedding']}.weight"][ids]
    batch, length = ids.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    causal |= torch.eye(length, dtype=torch.bool)  # a padded place sees itself, so that nothing is NaN
    width = HIDDEN // HEADS
    angles = torch.arange(length)[None, :, None].float() * (1.0 / 10_000 ** (torch.arange(0, width, 2).float() / width))
    cos, sin = (torch.cat((part, part), -1)[:, None] for part in (angles.cos(), angles.sin()))

    def rotated(values: Tensor) -> Tensor:
        left, right = values.chunk(2, -1)
        return values * cos + torch.cat((-right, left), -1) * sin

    def normed(values: Tensor, weight: Tensor) -> Tensor:
        return weight * (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + 1e-6))

    for layer in range(LAYERS):
        get = {key: tensors.get(f"model.layers.{layer}.{name}.weight", head) for key, name in names.items()}
        packed = linear(normed(hidden, get["before"]), get["packed"])
        query, key, value = (part.transpose(1, 2) for part in split(packed))
        seen = scaled_dot_product_attention(rotated(query), rotated(key), value, attn_mask=causal)
        hidden = hidden + linear(seen.transpose(1, 2).reshape(batch, length, HIDDEN), get["out"])
        inner = normed(hidden, get["after"])
        hidden = hidden + linear(silu(linear(inner, get["gate"])) * linear(inner, get["up"]), get["down"])
    return linear(normed(hidden, tensors[f"{names['norm']}.weight"]), head)


def recipe_text(folder: Path, **model: Any) -> str:
    """A recipe that trains the model in `folder` on two colours, chats as Baichuan 2 writes them."""
    keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in model.items())
    return f"""
[model]
id = "{folder.name}"
max_seq_length = 64
dtype = "float32"
{keys}
[data]
train = "rows.jsonl"
eval_fraction = 0.2
chat_template = "baichuan2"

[lora]
r = 2
lora_alpha = 32

[train]
per_device_train_batch_size = 2
max_steps = 3
learning_rate = 1e-2
optim = "adamw_torch"
save_strategy = "no"

[export]
formats = ["adapter", "merged_16bit", "gguf"]
quantization = ["f16"]
"""
