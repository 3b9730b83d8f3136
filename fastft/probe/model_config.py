"""A model's config.json, read with care: a stranger may have written it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# The largest of well-known models has 30 kB.
MAX_BYTES = 4 * 1024**2
# Some families have a list of counts, with an entry a layer.
_COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
MOST = 2**31
_NUMBERS = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "initializer_range")
_TABLES = ("text_config", "quantization_config")
_MODEL_TYPE = re.compile(r"[\w.-]{0,100}")


def read_model_config(file: Path) -> dict[str, Any]:
    """The JSON object in a config.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or has a value that no model has; the message says which.
    """
    config = read_object(file, MAX_BYTES)
    for fault in _faults(config):
        raise ValueError(fault)
    return config


def read_object(file: Path, max_bytes: int | None = None) -> dict[str, Any]:
    """The JSON object in any file of a model.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `max_bytes`, or no JSON object; the message says which.
    """
    with file.open("rb") as stream:
        raw = stream.read() if max_bytes is None else stream.read(max_bytes + 1)
    if max_bytes is not None and len(raw) > max_bytes:
        raise ValueError(f"larger than {max_bytes // 1024**2} MiB")
    try:
        value = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  damage of a file, as the rest
    return value


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    for key in _TABLES:
        if not isinstance(config.get(key) or {}, dict):
            yield f"{key} is no table"
    for table in (config, config.get("text_config") or {}):
        yield from _wrong_sizes(table)
    for key, value in _items(config):
        if key == "model_type" and not (isinstance(value, str) and _MODEL_TYPE.fullmatch(value)):
            yield f"model_type is {_shown(value)}, not a name"  # CVE-2026-93348: it became source code
        if "attn_implementation" in key and isinstance(value, str) and "/" in value:
            yield f"{key} is {_shown(value)}: it would load code from the Hub"  # CVE-2026-4372


def _wrong_sizes(table: Mapping[str, Any]) -> Iterator[str]:
    for key in _COUNTS:
        if not all(map(_is_count, value if isinstance(value := table.get(key), list) else [value])):
            yield f"{key} is {_shown(value)}, not a whole number from 1 to {MOST}"
    for key in _NUMBERS:
        if not _is_number(value := table.get(key)):
            yield f"{key} is {_shown(value)}, not a number from 0 to 1e30"


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 1 <= value <= MOST)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1e30)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested tables; json.loads has bounded the depth."""
    if isinstance(value, dict):
        yield from value.items()
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _items(entry)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
