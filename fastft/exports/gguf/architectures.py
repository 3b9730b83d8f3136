"""What llama.cpp expects of each architecture: metadata from config.json, and changes to tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastft.errors import Problem, RecipeError, Where
from fastft.files.tensors import Floats

Config = dict[str, Any]

# Of how many layers one has full attention and the others a sliding window, where not all have full attention.
FULL_ATTENTION_EVERY = {"gemma2": 2, "gemma3": 6}


@dataclass(frozen=True)
class GgufArchitecture:
    """How one Hugging Face model class becomes a llama.cpp model."""

    name: str
    """llama.cpp's name of it."""
    describe: Callable[[Any, Config], None]
    """Writes the metadata; gets a `gguf.GGUFWriter` and the config."""
    interleaved_rope: bool = False
    """llama.cpp rotates neighbouring pairs, transformers halves: the rows of Q and K are reordered."""
    norm_offset: float = 0.0
    """Added to norm weights (Gemma multiplies by 1 + weight)."""
    computed: Callable[[Config], dict[str, Floats]] = lambda _: {}
    """Tensors that llama.cpp wants and the model computes."""


def find_architecture(config: Config, file: Path) -> GgufArchitecture:
    """The architecture that `config["architectures"]` names.

    Raises:
        RecipeError: it is not known here.
    """
    names = config.get("architectures") or [None]
    if names[0] not in ARCHITECTURES:
        wrong, known = "GGUF is not known for this model", ", ".join(ARCHITECTURES)
        way = 'write it as "merged_16bit" and convert that with llama.cpp\'s convert_hf_to_gguf.py (--llama-cpp DIR)'
        raise RecipeError(Problem(Where(str(file)), "architectures", wrong, f"{way}; known: {known}", str(names[0])))
    found = ARCHITECTURES[names[0]]
    for field, right, got in _assumed(found.name, config):
        if got != right:
            where = Where(str(file))
            raise not_for_gguf(
                where, field, f"llama.cpp computes {found.name} with {right} whatever stands here", str(got)
            )
    return found


def _assumed(name: str, config: Config) -> Iterator[tuple[str, Any, Any]]:
    """(field, what llama.cpp has built in, the model's) for what a GGUF file of the architecture cannot say.

    From the `load_hparams` and graphs of llama.cpp's src/models; a value that is missing is the model class's default.
    """
    turned, _ = rope(config)
    if config.get("layer_types") is not None and name != "phi3":
        every, layers = FULL_ATTENTION_EVERY.get(name, 1), range(1, config["num_hidden_layers"] + 1)
        kinds = ["sliding_attention" if layer % every else "full_attention" for layer in layers]
        yield "layer_types", kinds, list(config["layer_types"])
    if name != "phi3":
        yield (
            "partial_rotary_factor",
            1.0,
            turned.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)),
        )
    yield from _assumed_of_rope(name, turned)
    if name in FULL_ATTENTION_EVERY:
        yield from _assumed_of_gemma(name, config, turned)
    else:
        yield "use_sliding_window", False, config.get("use_sliding_window", False)
        yield "hidden_act", "silu", config.get("hidden_act", "silu")
    if name in ("smollm3", "olmo2"):
        yield from _assumed_of_newer(name, config)


def _assumed_of_rope(name: str, turned: Config) -> Iterator[tuple[str, Any, Any]]:
    if turned["rope_type"] == "llama3" and name not in ("llama", "granite"):
        yield "rope_parameters.rope_type", "default", "llama3"
    if turned["rope_type"] == "yarn":
        unknown = {key: turned.get(key) for key in ("mscale", "mscale_all_dim", "truncate")}
        yield "rope_parameters", dict.fromkeys(unknown), unknown
        yield "rope_parameters.extrapolation_factor", 1.0, turned.get("extrapolation_factor", 1.0)
        scale = 0.1 * math.log(turned.get("factor") or 1.0) + 1
        given = turned.get("attention_factor") or scale
        yield "rope_parameters.attention_factor", scale, scale if math.isclose(given, scale, rel_tol=1e-3) else given


def _assumed_of_newer(name: str, config: Config) -> Iterator[tuple[str, Any, Any]]:
    yield "attention_bias", False, config.get("attention_bias", False)
    if name == "smollm3":
        yield "mlp_bias", False, config.get("mlp_bias", False)
        every, layers = config.get("no_rope_layer_interval", 4), range(1, config["num_hidden_layers"] + 1)
        turning = config.get("no_rope_layers") or [int(layer % every != 0) for layer in layers]
        yield "no_rope_layers", [int(layer % 4 != 0) for layer in layers], list(turning[: len(layers)])
    if name == "olmo2":
        yield "tie_word_embeddings", False, config.get("tie_word_embeddings", False)
        yield "head_dim", config["hidden_size"] // config["num_attention_heads"], _head_size(config)


def _assumed_of_gemma(name: str, config: Config, turned: Config) -> Iterator[tuple[str, Any, Any]]:
    yield "hidden_activation", "gelu_pytorch_tanh", config.get("hidden_activation") or "gelu_pytorch_tanh"
    every = FULL_ATTENTION_EVERY[name]
    yield "sliding_window_pattern", every, config.get("sliding_window_pattern") or every
    # llama.cpp knows the 27B models by their layers: there a head's share of the width scales the attention.
    is_27b = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[name]
    scalar = config["hidden_size"] // config["num_attention_heads"] if is_27b else config.get("head_dim", 256)
    yield "query_pre_attn_scalar", scalar, config.get("query_pre_attn_scalar", scalar)
    yield "use_bidirectional_attention", False, config.get("use_bidirectional_attention") or False
    if name == "gemma2":
        yield "rope_theta", 10000.0, turned["rope_theta"]
        yield "rope_type", "default", turned["rope_type"]
    else:
        yield "attn_logit_softcapping", None, config.get("attn_logit_softcapping")


def ignored_window(name: str, config: Config) -> str | None:
    """A note where the model has a sliding window that llama.cpp does not compute: longer texts give other answers."""
    window = config.get("sliding_window")
    if name not in ("llama", "phi3") or not window or window >= config["max_position_embeddings"]:
        return None
    return f"llama.cpp has no sliding window for {name}: beyond {window:,} tokens it answers otherwise than in training"


def not_for_gguf(where: Where, field: str, wrong: str, got: str | None = None) -> RecipeError:
    """The error for a part of a model that the writer cannot write, with an alternative."""
    return RecipeError(Problem(where, field, wrong, 'write "merged_16bit" and convert it with llama.cpp', got))


def _common(writer: Any, config: Config) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim") is not None:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def _rope(writer: Any, config: Config) -> None:
    from gguf import RopeScalingType

    full, sliding_theta = rope(config)
    kind, factor = full.get("rope_type", "default"), full.get("factor")
    if kind in ("linear", "yarn") and factor is not None:
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(factor)
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
        for key, add in (
            ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if full.get(key) is not None:
                add(full[key])
    if kind not in ("default", "linear", "yarn", "llama3"):
        wrong = "this rotary scaling is not known for GGUF"
        raise not_for_gguf(Where("config.json"), "rope_parameters", wrong, str(kind))
    writer.add_rope_freq_base(full["rope_theta"])
    if sliding_theta is not None:
        writer.add_rope_freq_base_swa(sliding_theta)


def rope(config: Config) -> tuple[Config, float | None]:
    """(rotary settings of full attention with `rope_theta` and `rope_type`, theta of sliding attention or None).

    transformers 5 keeps all in `rope_parameters`, one entry a kind of attention where they differ; before it there were
    `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    full = dict(settings.get("full_attention") or settings)
    sliding = settings.get("sliding_attention") or {}
    full.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    full.setdefault("rope_type", full.get("type", "default"))
    if config.get("original_max_position_embeddings") is not None:
        full.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
    return full, sliding.get("rope_theta", config.get("rope_local_base_freq"))


def _llama(writer: Any, config: Config) -> None:
    _common(writer, config)
    _rope(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(_head_size(config))


def _head_size(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _granite(writer: Any, config: Config) -> None:
    _llama(writer, config)
    # A scale that config.json leaves out is 1 in transformers; without one in the file llama.cpp has its own.
    writer.add_attention_scale(config.get("attention_multiplier", 1.0))
    writer.add_embedding_scale(config.get("embedding_multiplier", 1.0))
    writer.add_residual_scale(config.get("residual_multiplier", 1.0))
    writer.add_logit_scale(config.get("logits_scaling", 1.0))


def _llama3_factors(config: Config) -> dict[str, Floats]:
    """How much slower each rotary frequency turns in Llama 3.1 and later (transformers' `rope_type = "llama3"`)."""
    full, _ = rope(config)
    if full["rope_type"] != "llama3":
        return {}
    size = _head_size(config)
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    # In the order and precision of llama.cpp's converter, so that the factors have the same bits.
    frequencies = np.float32(1) / np.float32(full["rope_theta"]) ** exponents
    wavelengths = np.float32(2 * math.pi) / frequencies
    factor, low, high = full["factor"], full["low_freq_factor"], full["high_freq_factor"]
    length = full["original_max_position_embeddings"]
    smooth = (length / wavelengths - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < length / high, 1.0, np.where(wavelengths > length / low, factor, factors))
    return {"rope_freqs.weight": factors.astype(np.float32)}


def _qwen(writer: Any, config: Config) -> None:
    _common(writer, config)
    _rope(writer, config)


def _olmo2(writer: Any, config: Config) -> None:
    _qwen(writer, {"rms_norm_eps": 1e-5, **config})


def _gemma2(writer: Any, config: Config) -> None:
    _common(writer, config)
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _gemma3(writer: Any, config: Config) -> None:
    _common(writer, config)
    _rope(writer, config)
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _phi3(writer: Any, config: Config) -> None:
    full, _ = rope(config)
    longest = config["max_position_embeddings"]
    original = int(full.get("original_max_position_embeddings") or longest)
    size = int(full.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) * config["hidden_size"])
    _common(writer, {**config, "head_dim": None})
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(size // config["num_attention_heads"])
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_sliding_window(config.get("sliding_window") or 0)
    if full.get("long_factor"):
        scale = longest / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)


def _phi3_factors(config: Config) -> dict[str, Floats]:
    full, _ = rope(config)
    if not full.get("long_factor"):
        return {}
    return {
        f"rope_factors_{kind}.weight": np.array(full[f"{kind}_factor"], dtype=np.float32) for kind in ("long", "short")
    }


LLAMA = GgufArchitecture("llama", _llama, interleaved_rope=True, computed=_llama3_factors)
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": GgufArchitecture("qwen2", _qwen),
    "Qwen3ForCausalLM": GgufArchitecture("qwen3", _qwen),
    "Gemma2ForCausalLM": GgufArchitecture("gemma2", _gemma2, norm_offset=1.0),
    "Gemma3ForCausalLM": GgufArchitecture("gemma3", _gemma3, norm_offset=1.0),
    "SmolLM3ForCausalLM": GgufArchitecture("smollm3", _llama, interleaved_rope=True),
    "GraniteForCausalLM": GgufArchitecture("granite", _granite, interleaved_rope=True, computed=_llama3_factors),
    "Olmo2ForCausalLM": GgufArchitecture("olmo2", _olmo2),
    "Phi3ForCausalLM": GgufArchitecture("phi3", _phi3, computed=_phi3_factors),
}
