"""Models that are a Llama under other names: how their config.json and tensors become a Llama's, without their code.

Their own modelling code is remote code, and of the years when transformers was another: Baichuan's fails under
transformers 5. The same weights in Llama's layout give the same logits, train through Unsloth and become GGUF files.
A new layout is one row of LAYOUTS; tests/engine/test_relayout.py proves each on random weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A tensor of the Llama: the runs of `rows` of the first axis of an original one, all where None.

    `normalized`: each row is divided by its length, as torch.nn.functional.normalize does.
    """

    name: str
    rows: tuple[range, ...] | None = None
    normalized: bool = False


@dataclass(frozen=True)
class Layout:
    """One layout: the `model_type` in its config.json, and what becomes of config and tensors.

    `refusal`: why a model of this type is no Llama; None where it is one. `parts`: the tensors that an original one
    becomes, none where it is computed and not learnt.
    """

    name: str
    model_type: str
    to_llama: Callable[[Config], Config]
    parts: Callable[[Config, str], Iterator[Part]]
    refusal: Callable[[Config], str | None] = lambda _: None


def layout_of(config: Config) -> Layout | None:
    """The layout of a model that is a Llama under other names, by its config.json; None for any other model."""
    return next((one for one in LAYOUTS if one.model_type == config.get("model_type")), None)


_SAME_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
)
QUERY, KEY, VALUE = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
# Baichuan 1 has a plain output layer, and no other vocabulary of this size is known.
_BAICHUAN_1_VOCABULARY = 64_000


def _llama_config(config: Config, **more: Any) -> Config:
    same = {key: config[key] for key in _SAME_KEYS if key in config}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, **same, **more}


def _baichuan_refusal(config: Config) -> str | None:
    # The 7B models have RoPE, and a table of positions; the 13B ones have ALiBi, and their config.json no such key.
    if "max_position_embeddings" not in config or config.get("num_hidden_layers") == 40:
        return (
            "a Baichuan with ALiBi instead of rotary positions (13B) is no Llama, and its own code needs old libraries"
        )
    return None


def _baichuan_config(config: Config) -> Config:
    return _llama_config(config, num_key_value_heads=config["num_attention_heads"], rope_theta=10_000.0)


def _baichuan_parts(config: Config, name: str) -> Iterator[Part]:
    if name.endswith("rotary_emb.inv_freq"):
        return
    found = re.fullmatch(r"(model\.layers\.\d+\.)self_attn\.W_pack\.(weight)", name)
    if found is None:
        normalized = name == "lm_head.weight" and config.get("vocab_size") != _BAICHUAN_1_VOCABULARY
        yield Part(name, normalized=normalized)
        return
    width = int(config["hidden_size"])
    for number, projection in enumerate((QUERY, KEY, VALUE)):
        yield Part(f"{found[1]}{projection}.{found[2]}", (range(number * width, (number + 1) * width),))


_INTERNLM2_NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "model.tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
}


def _internlm2_config(config: Config) -> Config:
    heads, scaling = config["num_attention_heads"], config.get("rope_scaling")
    values = {key: config[key] for key in ("rope_theta", "head_dim") if key in config}
    if isinstance(scaling, dict):
        values["rope_scaling"] = {"rope_type": scaling.get("type", scaling.get("rope_type")), **scaling}
    key_value = config.get("num_key_value_heads") or heads
    bias = {"attention_bias": True} if config.get("bias") else {}
    return _llama_config(config, num_key_value_heads=key_value, **values, **bias)


def _internlm2_parts(config: Config, name: str) -> Iterator[Part]:
    if name.endswith("rotary_emb.inv_freq"):
        return
    found = re.fullmatch(r"(model\.layers\.\d+\.)attention\.wqkv\.(weight|bias)", name)
    if found is None:
        stem, _, ending = name.rpartition(".")
        layer = re.fullmatch(r"(model\.layers\.\d+\.)(.+)", stem)
        head, stem = (layer[1], layer[2]) if layer else ("", stem)
        yield Part(f"{head}{_INTERNLM2_NAMES.get(stem, stem)}.{ending}")
        return
    # For each key-value head: its query heads, its key head, its value head.
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    own = heads // groups
    starts = range(0, (heads + 2 * groups) * width, (own + 2) * width)
    for projection, begin, end in ((QUERY, 0, own), (KEY, own, own + 1), (VALUE, own + 1, own + 2)):
        rows = tuple(range(start + begin * width, start + end * width) for start in starts)
        yield Part(f"{found[1]}{projection}.{found[2]}", rows)


LAYOUTS = (
    Layout("Baichuan", "baichuan", _baichuan_config, _baichuan_parts, _baichuan_refusal),
    Layout("InternLM2", "internlm2", _internlm2_config, _internlm2_parts),
)
