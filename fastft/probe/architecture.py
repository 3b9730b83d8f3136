"""The sizes of a base model: from its config.json, or by its Hub id before it is on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

# Llama's names of the layers; the first four read or write attention heads.
BLOOM_PROJECTIONS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Architecture:
    """A decoder of Llama's shape: attention with `key_value_heads`, a gated feed-forward of `inner` in each layer.

    `layout` "bloom": one matrix for queries, keys and values, a feed-forward without a gate, norms and projections with
    biases, a norm behind the embedding.

    `norms`: norm vectors of `hidden` weights per layer. `head_norms`: norm vectors of `head_dim` weights per layer
    (Qwen3 and Gemma 3 normalise queries and keys).
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    ties_embeddings: bool
    has_attention_bias: bool = False
    norms: int = 2
    head_norms: int = 0
    layout: Literal["llama", "bloom"] = "llama"

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Each linear projection of a layer: (inputs, outputs)."""
        query, key_value = self.query_width, self.key_value_width
        if self.layout == "bloom":
            sides = (
                (self.hidden, 3 * query),
                (query, self.hidden),
                (self.hidden, self.inner),
                (self.inner, self.hidden),
            )
            return dict(zip(BLOOM_PROJECTIONS, sides, strict=True))
        attention = ((self.hidden, query), (self.hidden, key_value), (self.hidden, key_value), (query, self.hidden))
        feed_forward = ((self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden))
        return dict(zip(PROJECTIONS, attention + feed_forward, strict=True))

    @property
    def body_weights(self) -> int:
        """Weights of all projections: those that 4-bit loading quantizes, and that each token is multiplied with."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.projections.values())

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding; the output layer has as many, its own or shared ones."""
        return self.vocabulary * self.hidden

    @property
    def vocabulary_weights(self) -> int:
        """Stored weights of embedding and output layer together."""
        return self.embedding_weights * (1 if self.ties_embeddings else 2)

    @property
    def small_weights(self) -> int:
        """Norms and biases."""
        if self.layout == "bloom":
            biases = sum(outputs for _, outputs in self.projections.values())
            return self.layers * (2 * self.norms * self.hidden + biases) + 4 * self.hidden
        bias = self.query_width + 2 * self.key_value_width if self.has_attention_bias else 0
        layer = self.norms * self.hidden + self.head_norms * self.head_dim + bias
        return self.layers * layer + self.hidden

    @property
    def weights(self) -> int:
        """All stored weights."""
        return self.body_weights + self.vocabulary_weights + self.small_weights

    @property
    def largest_projection_weights(self) -> int:
        return max(inputs * outputs for inputs, outputs in self.projections.values())

    def adapter_weights(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of a LoRA adapter: r (inputs + outputs) for each adapted projection (Hu et al. 2021).

        Where none of `targets` is a name of this layout, its usual one is adapted (fastft.probe.layers).
        """
        sides = self.projections
        if self.layout == "bloom" and not any(name in sides for name in targets):
            targets = BLOOM_PROJECTIONS[:1]
        return rank * self.layers * sum(sum(sides[name]) for name in targets if name in sides)


def _llama(
    layers: int, hidden: int, inner: int, heads: int, key_value: int, vocabulary: int, *, tied: bool, bias: bool = False
) -> Architecture:
    return Architecture(layers, hidden, inner, heads, key_value, hidden // heads, vocabulary, tied, bias)


def _qwen3(layers: int, hidden: int, inner: int, heads: int, tied: bool) -> Architecture:
    return Architecture(layers, hidden, inner, heads, 8, 128, 151_936, tied, head_norms=2)


def _gemma2(layers: int, hidden: int, inner: int, heads: int, key_value: int, head_dim: int) -> Architecture:
    return Architecture(layers, hidden, inner, heads, key_value, head_dim, 256_000, True, norms=4)


def _bloom(layers: int, hidden: int, heads: int) -> Architecture:
    return Architecture(layers, hidden, 4 * hidden, heads, heads, hidden // heads, 250_880, True, layout="bloom")


# From the published config.json of each; a test compares every weight count with the one that the Hub shows.
KNOWN: Mapping[str, Architecture] = {
    "llama-2-7b": _llama(32, 4096, 11_008, 32, 32, 32_000, tied=False),
    "llama-2-13b": _llama(40, 5120, 13_824, 40, 40, 32_000, tied=False),
    "llama-3-8b": _llama(32, 4096, 14_336, 32, 8, 128_256, tied=False),
    "llama-3.1-8b": _llama(32, 4096, 14_336, 32, 8, 128_256, tied=False),
    "llama-3.1-70b": _llama(80, 8192, 28_672, 64, 8, 128_256, tied=False),
    "llama-3.3-70b": _llama(80, 8192, 28_672, 64, 8, 128_256, tied=False),
    "llama-3.2-1b": _llama(16, 2048, 8192, 32, 8, 128_256, tied=True),
    "llama-3.2-3b": _llama(28, 3072, 8192, 24, 8, 128_256, tied=True),
    "mistral-7b-v0.1": _llama(32, 4096, 14_336, 32, 8, 32_000, tied=False),
    "mistral-7b-v0.2": _llama(32, 4096, 14_336, 32, 8, 32_000, tied=False),
    "mistral-7b-v0.3": _llama(32, 4096, 14_336, 32, 8, 32_768, tied=False),
    "qwen2.5-0.5b": _llama(24, 896, 4864, 14, 2, 151_936, tied=True, bias=True),
    "qwen2.5-1.5b": _llama(28, 1536, 8960, 12, 2, 151_936, tied=True, bias=True),
    "qwen2.5-3b": _llama(36, 2048, 11_008, 16, 2, 151_936, tied=True, bias=True),
    "qwen2.5-7b": _llama(28, 3584, 18_944, 28, 4, 152_064, tied=False, bias=True),
    "qwen2.5-14b": _llama(48, 5120, 13_824, 40, 8, 152_064, tied=False, bias=True),
    "qwen2.5-32b": _llama(64, 5120, 27_648, 40, 8, 152_064, tied=False, bias=True),
    "qwen2.5-72b": _llama(80, 8192, 29_568, 64, 8, 152_064, tied=False, bias=True),
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, True),
    "qwen3-8b": _qwen3(36, 4096, 12_288, 32, False),
    "qwen3-14b": _qwen3(40, 5120, 17_408, 40, False),
    "qwen3-32b": _qwen3(64, 5120, 25_600, 64, False),
    "gemma-2-2b": _gemma2(26, 2304, 9216, 8, 4, 256),
    "gemma-2-9b": _gemma2(42, 3584, 14_336, 16, 8, 256),
    "gemma-2-27b": _gemma2(46, 4608, 36_864, 32, 16, 128),
    "gemma-3-1b": Architecture(26, 1152, 6912, 4, 1, 256, 262_144, True, norms=4, head_norms=2),
    # Yang et al. 2023, "Baichuan 2", tables 1 and 2; the Hub shows no count for its .bin files.
    "baichuan2-7b": _llama(32, 4096, 11_008, 32, 32, 125_696, tied=False),
    "bloom-560m": _bloom(24, 1024, 16),
    "bloom-7b1": _bloom(30, 4096, 32),
    "smollm2-135m": _llama(30, 576, 1536, 9, 3, 49_152, tied=True),
    "smollm2-360m": _llama(32, 960, 2560, 15, 5, 49_152, tied=True),
    "smollm2-1.7b": _llama(24, 2048, 8192, 32, 32, 49_152, tied=True),
}
_OWNERS = frozenset(
    {
        "meta-llama",
        "mistralai",
        "qwen",
        "google",
        "huggingfacetb",
        "unsloth",
        "nousresearch",
        "bigscience",
        "baichuan-inc",
    }
)
# Endings of tuned or converted forms with the same sizes.
_ENDINGS = ("-bnb-4bit", "-unsloth", "-instruct-2507", "-instruct", "-it", "-pt", "-base", "-hf", "-chat", "-chat-hf")
# Of a GGUF file in a package, such as "SmolLM2-135M-Instruct.Q4_1.gguf".
_GGUF_ENDING = re.compile(r"([.-](i?q\d\w*|b?f\d+))?\.gguf$")


def architecture_of(model_id: str, config: Mapping[str, Any]) -> Architecture | None:
    """The sizes of a model: those in `config` unless it is empty, else those known for its name, else None."""
    return from_config(config) if config else by_hub_id(model_id)


def by_hub_id(model_id: str) -> Architecture | None:
    """The sizes of a well-known model, also under the names of its instruction-tuned and 4-bit forms and GGUF files."""
    owner, _, name = model_id.lower().partition("/")
    if owner.startswith("package:"):
        name = _GGUF_ENDING.sub("", name)
    elif owner not in _OWNERS:
        return None
    name = name.replace("meta-llama-", "llama-")
    while name not in KNOWN:
        shorter = next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
        shorter = shorter.replace("-instruct-v0.", "-v0.")
        if shorter == name:
            return None
        name = shorter
    return KNOWN[name]


def from_config(config: Mapping[str, Any]) -> Architecture | None:
    """The sizes in a config.json of Llama's shape; None for a mixture of experts or where a size is missing."""
    config = config.get("text_config") or config
    kind = str(config.get("model_type", ""))
    if kind == "bloom":
        return _bloom_from_config(config)
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        inner, layers = int(config["intermediate_size"]), int(config["num_hidden_layers"])
        vocabulary = int(config["vocab_size"])
        key_value_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
    except (KeyError, TypeError):  # TypeError: a list with an entry a layer
        return None
    if any(key in config for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    return Architecture(
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        # transformers ties by default, but Llama, Mistral and Qwen do not tie where config.json does not say.
        ties_embeddings=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        has_attention_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
        norms=4 if kind in ("gemma2", "gemma3", "gemma3_text") else 2,
        head_norms=2 if kind in ("qwen3", "gemma3", "gemma3_text") else 0,
    )


def _bloom_from_config(config: Mapping[str, Any]) -> Architecture | None:
    """The sizes in a config.json of BLOOM, which has had two names for each."""
    try:
        hidden = int(config.get("n_embed") or config["hidden_size"])
        layers = int(config.get("n_layer") or config["num_hidden_layers"])
        heads = int(config.get("n_head") or config["num_attention_heads"])
        vocabulary = int(config["vocab_size"])
    except (KeyError, TypeError):
        return None
    tied = bool(config.get("tie_word_embeddings", True))
    return replace(_bloom(layers, hidden, heads), vocabulary=vocabulary, ties_embeddings=tied)
