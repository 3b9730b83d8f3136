"""adapter_config.json of a PEFT LoRA adapter, read with care: a stranger may have written it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastft.data.limited import SECONDS, run_limited
from fastft.errors import MachineError, Problem, RecipeError, Where

MAX_BYTES = 4 * 1024**2
MAX_RANK = 65_536
# Keys whose text PEFT takes for a regular expression over the names of modules, or whose own keys it takes for some.
_EXPRESSIONS = ("target_modules", "exclude_modules", "layers_pattern")
_TABLES = ("rank_pattern", "alpha_pattern")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of a LoRA adapter, with a rank, an alpha and tables that can be.

    Raises:
        MachineError: it is missing or not JSON.
        RecipeError: not a LoRA adapter, one that repeats layers of its base, or a value that no adapter has.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        wrong = "not an adapter folder: adapter_config.json is missing" if folder.is_dir() else "no such folder"
        raise MachineError(Problem(Where(str(folder)), "", wrong, "give the folder that PEFT saved the adapter in"))
    try:
        with file.open("rb") as stream:
            config = json.loads(stream.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise MachineError(Problem(Where(str(file)), "", f"not JSON: {error}", "save the adapter again")) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise _unusable(file, "peft_type", "only LoRA adapters can be used", "train with LoRA", kind)
    _check_values(file, config)
    return config


def _check_values(file: Path, config: Mapping[str, Any]) -> None:
    for key in _EXPRESSIONS:
        if not isinstance(config.get(key) or [], str | list):
            raise _unusable(file, key, "must be texts", "save it again", config[key])
    if config.get("layer_replication"):
        wrong = "this adapter cannot be used: the adapter repeats layers of the base model"
        raise _unusable(file, "layer_replication", wrong, "train on the larger model itself")
    ranks = {"r": config.get("r"), **_entries(file, config, "rank_pattern")}
    for name, rank in ranks.items():
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise _unusable(file, name, f"must be a whole number from 1 to {MAX_RANK}", "save it again", rank)
    alphas = {"lora_alpha": config.get("lora_alpha"), **_entries(file, config, "alpha_pattern")}
    for name, alpha in alphas.items():
        if type(alpha) not in (int, float) or not abs(alpha) <= 1e9 or math.isnan(alpha):
            raise _unusable(file, name, "must be a number up to 1e9", "save it again", alpha)


def check_expressions(folder: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Match the regular expressions in `config` against names of tensors, in a process with limits on its time.

    Raises:
        RecipeError: one is no regular expression, or takes too long.
    """
    file, modules = folder / "adapter_config.json", sorted({name.rsplit(".", 1)[0] for name in names})
    for key in (*_EXPRESSIONS, *_TABLES):
        value = config.get(key) or []
        expressions = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(one, str) for one in expressions):
            raise _unusable(file, key, "must be texts", "save it again", expressions)
        # Without a repetition none takes long; most adapters have lists of names.
        doubtful = [one for one in expressions if any(sign in one for sign in "*+?{")]
        if doubtful and run_limited(match_all, [doubtful, modules]) != "done":
            wrong = f"takes more than {SECONDS} s to match names of modules"
            raise _unusable(file, key, wrong, "list the names", doubtful[0])
        for expression in expressions:
            _compile(file, key, expression)


def _compile(file: Path, key: str, expression: str) -> None:
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise _unusable(file, key, f"is no regular expression: {error}", "list the names", expression) from error


def match_all(task: tuple[list[str], list[str]]) -> None:
    """Match as PEFT does: the whole name, or its end; each name, all that it lies in, and one that cannot match."""
    expressions, modules = task
    names = {
        ".".join(parts[:length]) for name in modules for parts in [name.split(".")] for length in range(len(parts) + 1)
    }
    for expression in expressions:
        whole, end = re.compile(expression), re.compile(rf"(.*\.)?({expression})$")
        for name in sorted(names):
            for text in (name, f"{name}!"):
                whole.fullmatch(text)
                end.match(text)


def _entries(file: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise _unusable(file, key, "must be a table", "save it again", table)
    return {f"{key}.{name}": value for name, value in table.items()}


def _unusable(file: Path, name: str, wrong: str, instead: str, got: object = None) -> RecipeError:
    shown = None if got is None and name == "layer_replication" else json.dumps(got)[:80]
    return RecipeError(Problem(Where(str(file)), name[:100], wrong, instead, shown))
