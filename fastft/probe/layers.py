"""The linear layers that a model has: LoRA's usual targets by architecture, and the names in its weight files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastft.errors import FastftError
from fastft.probe.base_model import BaseModel

# Models without Llama's names, from PEFT's own table (peft/utils/constants.py, 0.19); a test compares both.
LORA_TARGETS: Mapping[str, tuple[str, ...]] = {
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "gptj": ("q_proj", "v_proj"),
    "opt": ("q_proj", "v_proj"),
}
# Never refused: a tied output layer has no weights of its own in the files.
_ALWAYS = ("lm_head", "embed_tokens")


def usual_targets(model: BaseModel) -> tuple[str, ...] | None:
    """The targets of a model without Llama's names, from its config or, before that is here, its Hub id."""
    kind = str(model.config.get("model_type", ""))
    if not kind:
        name = model.id.lower().rpartition("/")[2]
        kind = next((known for known in LORA_TARGETS if name.startswith((known, known.replace("gpt_", "gpt-")))), "")
    return LORA_TARGETS.get(kind)


def missing_targets(model: BaseModel, targets: Iterable[str]) -> tuple[list[str], list[str]]:
    """(those of `targets` that no layer has, the layers that there are); nothing while the weights are not here."""
    targets = list(targets)
    if not targets or model.folder is None or not model.is_here:
        return [], []
    from fastft.files.tensors import open_weights  # numpy, which most plans do without

    try:
        with open_weights(model.folder) as weights:
            names = {name.removesuffix(".weight") for name in weights.tensors if name.endswith(".weight")}
    except FastftError:  # damaged weights are refused, with their fault, where they are loaded
        return [], []
    missing = [one for one in targets if one not in _ALWAYS and not any(_is(name, one) for name in names)]
    there = sorted({name.rpartition(".")[2] for name in names if any(part.isdigit() for part in name.split("."))})
    return missing, there


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
