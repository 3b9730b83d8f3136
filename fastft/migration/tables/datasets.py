"""The rows that other tools name: a path or Hub id, and how its columns are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastft.migration.arguments import LostError, OtherTaskError, Settings
from fastft.migration.values import names, real, text, whole

# Template names of Axolotl, LLaMA-Factory and Unsloth -> fastft.data.template.TEMPLATES; "model" is the model's own.
_TEMPLATES = {
    "alpaca": "alpaca",
    "baichuan2": "baichuan2",
    "chatml": "chatml",
    "gemma": "gemma",
    "gemma3": "model",
    "gemma-3": "model",
    "gemma3n": "model",
    "gemma4": "gemma-4",
    "gemma-4": "gemma-4",
    "gpt-oss": "gpt-oss",
    "gpt": "gpt-oss",
    "granite": "granite",
    "llama-3": "llama-3",
    "llama3": "llama-3",
    "llama-3.1": "llama-3.1",
    "llama-3.2": "llama-3.2",
    "llama-3.3": "llama-3.3",
    "mistral": "mistral",
    "mistral_v1": "mistral",
    "phi": "phi",
    "phi-3": "phi",
    "phi_3": "phi",
    "phi3": "phi",
    "phi_35": "phi",
    "phi-4": "phi-4",
    "phi_4": "phi-4",
    "qwen": "qwen2.5",
    "llama2": "model",
    "qwen3_5_nothink": "model",
    "qwen25": "qwen2.5",
    "qwen_25": "qwen2.5",
    "qwen-2.5": "qwen2.5",
    "qwen2.5": "qwen2.5",
    "qwen2": "qwen2.5",
    "qwen3": "qwen3",
    "qwen-3": "qwen3",
    "qwen3-instruct": "model",
    "qwen3-thinking": "model",
    "qwen3_nothink": "model",
    "qwen3_5": "qwen3.5",
    "vicuna": "vicuna",
    "zephyr": "zephyr",
    "tokenizer_default": "model",
    "command_a": "model",
    "cohere": "model",
    "deepseek_v2": "model",
    "deepseek_v3": "model",
    "exaone4": "model",
    "falcon_h1": "model",
    "jamba": "model",
    "llama4": "model",
    "lfm2": "model",
    "glm4": "model",
    "glm4_moe": "model",
}


def template(value: Any) -> Settings | str:
    """The chat template by the name that it has here; a template of one model alone is the model's own."""
    name = text(value)
    if "{%" in name or "{{" in name:
        raise LostError(
            'a template in the file; save it as template.jinja and set data.chat_template = "template.jinja"'
        )
    if name.endswith(".jinja"):
        return {"data.chat_template": name}
    found = _TEMPLATES.get(name.removeprefix("tokenizer_default_fallback_").lower())
    if found is None:
        raise LostError('fastft has no template of this name; the model\'s own is data.chat_template = "model"')
    return "the model's own template, the default" if found == "model" else {"data.chat_template": found}


def axolotl_template(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Axolotl's chat_template, which may stand in another key."""
    if value == "jinja":
        return template(given.get("chat_template_jinja") or "{%")
    return template(value)


def hub(name: str, configuration: Any = None, split: Any = None) -> str:
    """A Hub dataset as org/name/configuration:split; "train" is the default split."""
    named = f"{name}/{configuration}" if configuration and configuration != "default" else name
    return named if split in (None, "train") else f"{named}:{split}"


def sources(entries: list[Settings]) -> Settings:
    """One source as `data.train`, several or limited ones as `data.sources`."""
    if len(entries) == 1 and set(entries[0]) == {"path"}:
        return {"data.train": entries[0]["path"]}
    return {"data.sources": entries}


_AXOLOTL_TYPES = {
    "chat_template": "auto",
    "chat_template.default": "auto",
    "alpaca": "alpaca",
    "alpaca_chat.load_qa": "alpaca",
    "sharegpt": "sharegpt",
    "completion": "text",
    "input_output": None,
}


def axolotl_datasets(value: Any, _: Mapping[str, Any]) -> Settings | str:
    """Axolotl's datasets, with the format and the columns that all of them share."""
    entries = value if isinstance(value, list) else [value]
    found: Settings = {}
    paths = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise LostError("names no path")
        path, of_rows = _axolotl_entry(entry)
        paths.append(path)
        for field, setting in of_rows.items():
            if found.setdefault(field, setting) != setting:
                raise LostError(f"two sources differ in {field}; a recipe has one for all")
    return {**found, **sources(paths)}


def _axolotl_entry(entry: Mapping[str, Any]) -> tuple[Settings, Settings]:
    files = entry.get("data_files")
    path = text(names(files)[0]) if files and not str(entry["path"]).count("/") else entry["path"]
    source: Settings = {"path": hub(path, entry.get("name"), entry.get("split"))}
    if entry.get("shards"):
        source["weight"] = 1 / whole(entry["shards"])
    settings: Settings = {}
    kind = entry.get("type", "chat_template")
    if isinstance(kind, dict):
        settings["data.columns"] = {
            new: kind[old]
            for new, old in (("prompt", "field_instruction"), ("completion", "field_output"))
            if kind.get(old)
        }
        raise LostError("a prompt format of its own; save the rows as prompt and completion, or as messages")
    if kind not in _AXOLOTL_TYPES or _AXOLOTL_TYPES[kind] is None:
        if any(word in str(kind) for word in ("transform", "dpo", "kto", "orpo", "bradley", "stepwise", "ultra")):
            raise OtherTaskError(f"rows of type {kind} are for another kind of training")
        raise LostError(f"rows of type {kind} are made by code of Axolotl")
    settings["data.format"] = _AXOLOTL_TYPES[kind]
    if kind == "alpaca":
        settings["data.chat_template"] = "alpaca"
    settings.update(_axolotl_columns(entry, str(kind)))
    return source, {field: setting for field, setting in settings.items() if setting != "auto"}


def _axolotl_columns(entry: Mapping[str, Any], kind: str) -> Settings:
    mapping = entry.get("message_property_mappings") or {}
    role = mapping.get("role") or entry.get("message_field_role") or "role"
    if role not in ("role", "from"):
        raise LostError(f"turns name their role in {role}; a recipe reads role or from")
    found: Settings = {}
    column = entry.get("field_messages")
    wanted = "conversations" if role == "from" else "messages"
    if kind.startswith("chat_template"):
        found["data.format"] = "sharegpt" if role == "from" else "messages"
        if column and column != wanted:
            found["data.columns"] = {wanted: column}
    if kind == "completion" and entry.get("field", "text") != "text":
        found["data.columns"] = {"text": entry["field"]}
    if entry.get("chat_template"):
        made = template(entry["chat_template"])
        found.update({} if isinstance(made, str) else made)
    if entry.get("roles_to_train") not in (None, ["assistant"], ["gpt"], ["assistant", "gpt"]):
        raise LostError("roles_to_train names other roles than the assistant's")
    return found


def axolotl_eval(value: Any, _: Mapping[str, Any]) -> Settings | str:
    """One held-out source."""
    entries = value if isinstance(value, list) else [value]
    if len(entries) != 1 or not isinstance(entries[0], dict):
        raise LostError("a recipe has one held-out source")
    return {"data.eval": hub(text(entries[0].get("path")), entries[0].get("name"), entries[0].get("split"))}


def llama_factory_datasets(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Names of dataset_info.json, which is read where it is found; else `<dataset_dir>/<name>.json`."""
    folder = text(given.get("dataset_dir") or "data")
    known = _dataset_info(folder, given)
    limit = {"limit": whole(given["max_samples"])} if given.get("max_samples") else {}
    found: Settings = {}
    paths = []
    for name in names(value):
        entry = known.get(name, {})
        if entry.get("ranking") or "images" in entry.get("columns", {}):
            raise OtherTaskError(f"{name} has preferences or pictures")
        file = entry.get("file_name") or f"{name}.json"
        path = (
            hub(entry["hf_hub_url"], entry.get("subset"), entry.get("split"))
            if "hf_hub_url" in entry
            else f"{folder}/{file}"
        )
        paths.append({"path": path, **limit})
        if entry.get("formatting") == "sharegpt" and entry.get("tags", {}).get("role_tag") == "role":
            found["data.format"] = "messages"
    if len(paths) > 1:
        found.pop("data.format", None)  # sources of several forms are detected one by one
    return {**found, **sources(paths)}


def _dataset_info(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's list of data sets, below the working folder or one above the file; else an empty one."""
    start = Path(str(given.get("<folder>", "."))).resolve()
    for place in (Path.cwd(), start, *list(start.parents)[:4]):
        file = place / folder / "dataset_info.json"
        if file.is_file() and file.stat().st_size < 2**20:
            try:
                read = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return {}
            return read if isinstance(read, dict) else {}
    return {}


def trl_dataset(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """TRL's dataset_name with its configuration and split."""
    return {"data.train": hub(text(value), given.get("dataset_config"), given.get("dataset_train_split"))}


def trl_test_split(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """The split that is evaluated, where anything is."""
    if given.get("eval_strategy", "no") in ("no", False) or not given.get("dataset_name"):
        return "nothing is evaluated"
    return {"data.eval": hub(text(given["dataset_name"]), given.get("dataset_config"), value)}


def trl_mixture(value: Any, _: Mapping[str, Any]) -> Settings | str:
    """Several Hub datasets, each with a share, and the share that is held out."""
    if not isinstance(value, dict) or not isinstance(value.get("datasets"), list):
        raise LostError("is no table with datasets")
    entries = []
    for entry in value["datasets"]:
        name = entry.get("id") or entry.get("path")
        source: Settings = {"path": hub(text(name), entry.get("config") or entry.get("name"), entry.get("split"))}
        if entry.get("weight") not in (None, 1, 1.0):
            source["weight"] = real(entry["weight"])
        entries.append(source)
    held_out = value.get("test_split_size")
    return {**sources(entries), **({"data.eval_fraction": real(held_out)} if held_out and real(held_out) < 1 else {})}


def swift_datasets(value: Any, _: Mapping[str, Any]) -> Settings | str:
    """ms-swift's datasets: `org/name#500` is the first 500 rows."""
    entries = []
    for name in names(value):
        path, _hash, count = name.removeprefix("HF::").removeprefix("MS::").partition("#")
        if path.endswith("/self-cognition"):
            raise LostError("ms-swift writes model_name and model_author into the rows of self-cognition")
        entries.append({"path": path, **({"limit": whole(count)} if count else {})})
    return sources(entries)
