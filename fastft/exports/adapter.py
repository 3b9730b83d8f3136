"""A PEFT LoRA adapter folder as plain arrays: which base tensor each part of it changes, and how."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastft.errors import Problem, RecipeError, Where
from fastft.exports.adapter_config import check_expressions, read_adapter_config
from fastft.files.tensors import FLOATING, Floats, TensorInfo, Weights, open_weights

# If set, the adapter computes something that no sum with the base weights expresses, or that is not implemented here.
UNMERGEABLE = {
    "alora_invocation_tokens": "the adapter is active only after certain tokens",
    "arrow_config": "the adapter routes between adapters",
    "fan_in_fan_out": "the adapter is for transposed (Conv1D) layers",
    "kasa_config": "KaSA adapters have singular values beside A and B",
    "monteclora_config": "MonteCLoRA adapters are random variables",
    "target_parameters": "the adapter targets bare parameters (fused experts)",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA pools its input",
    "velora_config": "VeLoRA adapters",
}
# These start from changed base weights, so A and B alone do not say what the adapter adds to the original ones.
CHANGED_BASE_STARTS = ("pissa", "olora", "loftq", "corda", "lora_ga")
PREFIX = "base_model.model."
# How PEFT names, by version, a module that was trained in full.
COPY = re.compile(r"\.((base_layer|modules_to_save(\.default)?)\.)+")
# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SINGLE_ROWS = ".token_adapter."
TOKEN_ROWS = re.compile(r"(?P<module>.+)\.trainable_tokens_delta(\.default)?$")
PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
                  r"(?:\.default)?(?:\.(?P<kind>weight|bias))?$")  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight matrix: `scale * b @ a`, then each output row set to length `magnitude` (DoRA).

    Holds names, not arrays: a large adapter is read one matrix at a time, like the base.
    """

    a: str
    """The tensor of shape (rank, inputs); for an embedding (vocabulary, hidden) it is stored transposed."""
    b: str
    """The tensor of shape (outputs, rank); for an embedding it is stored transposed."""
    shape: tuple[int, int]
    """(outputs, inputs) of the matrix that it belongs to."""
    scale: float
    magnitude: str | None = None
    """The tensor of shape (outputs,), the length of each row after the merge; None without DoRA."""
    embedding: bool = False

    def load(self, weights: Weights) -> tuple[Floats, Floats, Floats | None]:
        """(scale * a, b, magnitude) with the shapes of the fields."""
        a, b = weights.floats(self.a), weights.floats(self.b)
        if self.embedding:
            a, b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
        magnitude = None if self.magnitude is None else weights.floats(self.magnitude).reshape(-1)
        return a * np.float32(self.scale), b, magnitude


@dataclass(frozen=True)
class TokenRows:
    """Single rows of an embedding or output layer, trained instead of the whole (`trainable_token_indices`)."""

    tensor: str
    """Of shape (len(rows), hidden): the rows themselves, in the order of `rows`."""
    rows: tuple[int, ...]

    def place(self, values: Floats, begin: int, weights: Weights) -> None:
        """Put those that lie in `values`, the rows from `begin` on, in their places."""
        inside = [(at, row - begin) for at, row in enumerate(self.rows) if begin <= row < begin + len(values)]
        if inside:
            trained = weights.floats(self.tensor)
            for at, row in inside:
                values[row] = trained[at]


@dataclass(frozen=True)
class Adapter:
    """All changes of one adapter folder, by the name of the base tensor."""

    folder: Path
    weights: Weights
    """Open; the caller of `open_adapter` closes them."""
    low_rank: dict[str, LowRank]
    replaced: dict[str, str]
    """Base tensor to the adapter's own that was trained in full (`modules_to_save`, biases, resized embeddings)."""
    ensure_weight_tying: bool = False
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    """Base tensor to the rows of it that were trained alone."""
    copied: bool = False
    """Embedding or head were trained as copies of their own (`modules_to_save`), not saved as they were resized."""


def open_adapter(folder: Path, base_names: Iterable[str] = ()) -> Adapter:
    """The adapter in `folder` (`adapter_config.json`, `adapter_model.safetensors`), every tensor of it known.

    `base_names`: the tensors of the base, whose names the adapter's regular expressions are tried on first.

    Raises:
        MachineError: a file is missing, damaged or cut short.
        RecipeError: not a LoRA adapter, or a kind of LoRA that cannot be merged.
    """
    config = _mergeable_config(folder)
    where = Where(str(folder / "adapter_model.safetensors"))
    weights = _open(folder, config, base_names)
    parts: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, str] = {}
    tokens: dict[str, TokenRows] = {}
    known = set(base_names)
    for name, info in weights.tensors.items():
        key = _key(name, known).replace(SINGLE_ROWS, ".")
        match, single = PART.match(key), TOKEN_ROWS.match(key)
        if info.dtype not in FLOATING or (name.startswith("base_model.") and not name.startswith(PREFIX)):
            raise _unusable(where, name, f"unknown adapter tensor of type {info.dtype}", "save it with PEFT")
        if ".original_module." in key:
            continue  # PEFT's copy of the base's own
        if single is not None:
            tokens[f"{single['module']}.weight"] = _token_rows(single["module"], info, config, where)
        elif match is not None:
            if match["kind"] == "bias":
                wrong = "a bias on the low-rank matrices (lora_bias)"
                raise _unusable(where, name, wrong, "train with lora_bias false")
            parts.setdefault(match["module"], {})[match["part"]] = info
        else:
            replaced[_whole_name(key, where, name)] = name
    if not any((parts, replaced, tokens)):
        raise _unusable(where, "", "the adapter is empty", "save the adapter again")
    low_rank = {f"{module}.weight": _low_rank(module, found, config, where) for module, found in parts.items()}
    _check_rows(config, tokens, low_rank, where)
    tied, full = config.get("ensure_weight_tying") is True, config.get("modules_to_save") or []
    copied = "embed_tokens" in full or "lm_head" in full
    return Adapter(folder, weights, low_rank, replaced, tied, tokens, copied)


def _check_rows(
    config: dict[str, Any], tokens: dict[str, TokenRows], low_rank: dict[str, LowRank], where: Where
) -> None:
    """Refuse single rows that are named and not there, and those of a layer that also has a low-rank change."""
    if config.get("trainable_token_indices") and not tokens:
        raise _unusable(where, "trainable_token_indices", "the file holds none of these rows", "save the adapter again")
    for name in tokens.keys() & low_rank.keys():
        wrong = "single rows and a low-rank change of one layer cannot be merged"
        raise _unusable(where, name, wrong, "train without one of them")


def _whole_name(key: str, where: Where, name: str) -> str:
    """The base tensor that an adapter's tensor takes the place of."""
    if "lora_" in key or not key.endswith((".weight", ".bias")):
        raise _unusable(where, name, "unknown adapter tensor", "save it with PEFT")
    return COPY.sub(".", key)


def _token_rows(module: str, info: TensorInfo, config: dict[str, Any], where: Where) -> TokenRows:
    """The rows that `trainable_token_indices` names for `module`: a list for the embedding, or a table by layer."""
    named = config.get("trainable_token_indices")
    last = module.rpartition(".")[2]
    # An output layer that is the embedding itself has the embedding's rows.
    rows = named if isinstance(named, list) else (named or {}).get(last, next(iter((named or {}).values()), None))
    if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
        raise _unusable(where, module, "trains single rows that adapter_config.json does not name", "save it again")
    if len(info.shape) != 2 or info.shape[0] != len(rows):
        raise _unusable(where, module, f"has {info.shape} for {len(rows)} single rows", "save it again")
    return TokenRows(info.name, tuple(rows))


def _key(name: str, base_names: set[str]) -> str:
    """The name of an adapter's tensor as PEFT would write it for the base: without PREFIX and what wrappers add.

    See WRAPPERS; vision models have the text model under `language_model`.
    """
    key = WRAPPERS.sub("", name).removeprefix(PREFIX)
    wrapped = "language_model."
    if wrapped in key and not any(wrapped in one for one in base_names):
        key = key.replace(f"model.{wrapped}", "model.").replace(wrapped, "")
        key = key.replace("model.model.", "model.").replace("model.lm_head.", "lm_head.")
    return key


def vocabulary_rows(folder: Path) -> int | None:
    """The rows of the embedding or head that an adapter folder brings; None where it brings none."""
    with open_weights(folder, stem="adapter_model") as weights:
        for name, info in weights.tensors.items():
            if COPY.sub(".", name.replace(SINGLE_ROWS, ".")).endswith(("embed_tokens.weight", "lm_head.weight")):
                return info.shape[0]
    return None


def write_as_peft_does(folder: Path, base: Path, out: Path) -> None:
    """Copy the adapter in `folder` to the existing folder `out`, its tensors under the names that PEFT looks for.

    `target_modules` becomes the list of what has an adapter: an expression for a wrapped model may name nothing here.

    Raises:
        MachineError, RecipeError: as `open_weights`.
    """
    with open_weights(base) as weights:
        known = set(weights.tensors)
    with open_weights(folder, stem="adapter_model") as weights:
        # PEFT saves a trained copy of a resized layer under two names; both are one here.
        names = {_peft_name(name, known): name for name in weights.tensors}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        kept = {key: name for key, name in names.items() if ".original_module." not in key}
        begin = 0
        for key, name in kept.items():
            info = weights.tensors[name]
            end = begin + info.size_bytes
            header[PREFIX + key] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (out / "adapter_model.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name in kept.values():
                stream.write(weights.head(name, weights.tensors[name].size_bytes))
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    adapted = sorted({match["module"] for key in kept if (match := PART.match(key)) is not None})
    if adapted:
        settings |= {
            "target_modules": adapted,
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    (out / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _peft_name(name: str, known: set[str]) -> str:
    """The name by which PEFT looks for an adapter's tensor, without PREFIX."""
    key = _key(name, known)
    if SINGLE_ROWS not in key:
        key = COPY.sub(".", key)
    return re.sub(r"\.(lora_\w+|trainable_tokens_delta)\.default\b", r".\1", key)


def check_adapter(folder: Path, base: Path) -> None:
    """Read what PEFT will read, without loading it.

    Raises:
        MachineError: a file is missing, damaged or cut short.
        RecipeError: pickled weights, not a LoRA adapter, or values that harm.
    """
    with open_weights(base) as weights:
        names = list(weights.tensors)
    _open(folder, read_adapter_config(folder), names).__exit__(None, None, None)


def _open(folder: Path, config: dict[str, Any], base_names: Iterable[str]) -> Weights:
    weights = open_weights(folder, stem="adapter_model")
    check_expressions(folder, config, {name.removeprefix(PREFIX) for name in (*weights.tensors, *base_names)})
    return weights


def _low_rank(module: str, found: dict[str, TensorInfo], config: dict[str, Any], where: Where) -> LowRank:
    embedding = "lora_A" not in found and "lora_B" not in found
    first, second = ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_A", "lora_B")
    for lost in (first, second):
        if lost not in found:
            raise _unusable(where, module, f"its {lost} is missing", "save the adapter again")
    a, b = found[first], found[second]
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise _unusable(where, module, "only linear and embedding layers can be merged", "train without it")
    (rank, inputs), (outputs, other) = (a.shape[::-1], b.shape[::-1]) if embedding else (a.shape, b.shape)
    if rank != other:
        raise _unusable(where, module, f"{first} is {a.shape}, {second} is {b.shape}: ranks differ", "save it again")
    stated = _pattern(config.get("rank_pattern"), module, config["r"])
    if rank != stated:
        raise _unusable(where, module, f"rank {rank}, but adapter_config.json says {stated}", "use its own config")
    magnitude = _magnitude(module, found.get("lora_magnitude_vector"), outputs, embedding, config, where)
    scale = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale /= math.sqrt(rank) if config.get("use_rslora") else rank
    return LowRank(a.name, b.name, (outputs, inputs), scale, magnitude, embedding)


def _magnitude(
    module: str, magnitude: TensorInfo | None, outputs: int, embedding: bool, config: dict[str, Any], where: Where
) -> str | None:
    """The name of the DoRA magnitudes, one an output; None without DoRA."""
    if (magnitude is None) is (config.get("use_dora") is True) and not embedding:
        wrong = "no DoRA magnitude" if magnitude is None else "a DoRA magnitude that adapter_config.json does not name"
        raise _unusable(where, module, wrong, "use the adapter's own config")
    if embedding and config.get("use_dora"):
        raise _unusable(where, module, "DoRA on an embedding cannot be merged", "train without it")
    if magnitude is not None and magnitude.size != outputs:
        raise _unusable(where, module, f"{magnitude.size} DoRA magnitudes for {outputs} outputs", "save it again")
    return magnitude.name if magnitude else None


def _pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the end of the module's name wins."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _mergeable_config(folder: Path) -> dict[str, Any]:
    config, where = read_adapter_config(folder), Where(str(folder / "adapter_config.json"))
    for name, why in UNMERGEABLE.items():
        if config.get(name):
            raise _unusable(where, name, f"this adapter cannot be merged: {why}", "export it as an adapter")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGED_BASE_STARTS):
        wrong = "this start changes the base weights, so the adapter does not fit the original ones"
        instead = "save it with PEFT's path_initial_model_for_weight_conversion"
        raise _unusable(where, "init_lora_weights", wrong, instead, start)
    return config


def _unusable(where: Where, name: str, wrong: str, instead: str, got: str | None = None) -> RecipeError:
    return RecipeError(Problem(where, name, wrong, instead, got))
