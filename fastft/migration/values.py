"""Values of other tools as values of a recipe."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

from fastft.migration.arguments import LostError
from fastft.recipe.model import Scheduler
from fastft.recipe.optimizers import OPTIMIZERS, OTHER_NAMES
from fastft.recipe.reporters import REPORTERS

AUTO = "auto"
SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def text(value: Any) -> str:
    """A text; refuses anything that has parts."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    raise LostError("is not a text")


def whole(value: Any) -> int:
    """A whole number, also from text and from 2.0."""
    number = real(value)
    if number != int(number):
        raise LostError("is not a whole number")
    return int(number)


def real(value: Any) -> float:
    """A number, also from text: YAML reads 2e-5 as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        raise LostError("is not a number") from None
    if not math.isfinite(number):
        raise LostError("is not a finite number")
    return number


def flag(value: Any) -> bool:
    """True or false, also from text."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() in known:
        return known[str(value).lower()]
    raise LostError("is neither true nor false")


def is_on(value: Any) -> bool:
    """Whether a switch that may be missing, or hold a text, is on."""
    return str(value).lower() not in ("none", "false", "no", "0", "", "null")


def flag_or_auto(value: Any) -> bool | str:
    """True, false or "auto"."""
    return AUTO if value == AUTO else flag(value)


def tokens(value: Any) -> list[str]:
    """Texts of tokens: a list, or one text with commas between them; a file of them is refused."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise LostError("is not a list of texts")
    if any(part.endswith(".txt") for part in parts):
        raise LostError("is a file of tokens: write them into data.add_special_tokens")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def names(value: Any) -> list[str]:
    """A list of texts, also from one text with commas or spaces, or from a list in JSON."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value.replace("'", '"'))
        except ValueError:
            raise LostError("is not a list of texts") from None
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
        return list(dict.fromkeys(part.strip() for part in parts))
    raise LostError("is not a list of texts")


def table_of(value: Any) -> dict[str, Any]:
    """A table, also from JSON; an empty one for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def optimizer(value: Any) -> str:
    """The optimizer by the name that it has here."""
    name = text(value).lower()
    found = OTHER_NAMES.get(name, name if name in OPTIMIZERS else None)
    if found is None:
        raise LostError("fastft has no such optimizer")
    if row := OPTIMIZERS[found].refused:
        raise LostError(f"is not run here: {row}")
    return found


def optimizer_arguments(value: Any) -> dict[str, Any]:
    """`optim_args` of TrainingArguments, `rank=64,scale=0.25`, as the table that it is here."""
    given: dict[str, Any] = {}
    for part in text(value).replace(" ", "").split(","):
        name, equals, word = part.partition("=")
        if not equals:
            raise LostError("is not a list of name=value")
        given[name] = {"true": True, "false": False}.get(word.lower(), _number_or_text(word))
    return given


def _number_or_text(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def scheduler(value: Any) -> str:
    """The schedule of the learning rate."""
    name = text(value).lower()
    if name not in get_args(Scheduler):
        raise LostError("fastft has no such schedule")
    return name


def reporters(value: Any) -> list[str] | str:
    """Where metrics go; "all" means whatever is installed, which fastft does not guess."""
    if not is_on(value):
        return "none"
    chosen = [name for name in names(value) if name not in ("none", "all")]
    unknown = [name for name in chosen if name not in REPORTERS]
    if unknown:
        raise LostError(f"fastft cannot report to {unknown[0]}")
    return chosen or "none"


def targets(value: Any) -> list[str]:
    """The layers of the adapter: all linear ones are the seven projections."""
    chosen = names(value)
    if any(name in ("all", "all-linear") for name in chosen):
        return list(SEVEN_PROJECTIONS)
    if any(not part.replace(".", "").replace("_", "").isalnum() for part in chosen):
        raise LostError("is a pattern; a recipe names layers")
    return chosen


def attention(value: Any) -> str:
    """The attention kernel; one that the recipe does not know computes the same, so the engine chooses."""
    known = {"fa2": "flash_attention_2", "flash_attn": "flash_attention_2", "disabled": "eager", "xformers": AUTO}
    name = text(value)
    name = known.get(name, name)
    return name if name in ("eager", "sdpa", "flash_attention_2", "flex_attention") else AUTO


def number_type(value: Any) -> str:
    """The number format of the weights."""
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
    name = text(value).removeprefix("torch.")
    name = short.get(name, name)
    if name not in (AUTO, "bfloat16", "float16", "float32"):
        raise LostError("is no number format of a recipe")
    return name


def checkpointing(value: Any) -> bool | str:
    """Gradient checkpointing; where activations are kept meanwhile changes no result."""
    return "unsloth" if value in ("unsloth", "offload", "offload_disk") else flag(value)


def strategy(value: Any) -> str:
    """When to save or evaluate."""
    name = text(value).lower() if not isinstance(value, bool) else ("no" if value is False else "steps")
    name = name.removeprefix("intervalstrategy.")
    if name not in ("no", "steps", "epoch"):
        raise LostError('a recipe knows "no", "steps" and "epoch"')
    return name


def share(value: Any) -> float:
    """A share of the rows; a count of rows cannot be said."""
    number = real(value)
    if not 0 < number < 1:
        raise LostError("is a count of rows; write data.eval_fraction, a share of them")
    return number
