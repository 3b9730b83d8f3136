"""Weights that are there: what a path given to `fastft export`, `chat` or `serve` holds, and the base it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastft.data.render import make_renderer
from fastft.data.template import load_template
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.exports.merged import tokenizer_folder
from fastft.files.atomic import read_json
from fastft.files.seal import SEAL, damage
from fastft.files.tensors import weights_fingerprint
from fastft.probe.base_model import find_base_model
from fastft.probe.hashes import kept_sha256
from fastft.probe.hub import fetch
from fastft.runs.directory import RunDir, Settings
from fastft.runs.held_out import HeldOut
from fastft.runs.manifest import Manifest
from fastft.stages.inputs import convert

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class WeightsPath:
    """One set of weights: a LoRA adapter folder, a whole model's folder, or a GGUF file."""

    kind: Literal["adapter", "model", "gguf"]
    path: Path
    run: RunDir | None = None
    """The run that they lie in."""

    @property
    def name(self) -> str:
        """What to call files that are made of them."""
        return (self.path if self.run is None else self.run.path).resolve().name


def find_weights(path: Path) -> WeightsPath:
    """What `path` holds: a run's folder stands for its adapter, or with full fine-tuning for its whole model.

    Raises:
        UsageError: there is nothing at `path`, or no weights, or the run has not finished.
        MachineError: fastft wrote the weights, and they are not what it wrote.
    """
    found = _find_weights(path)
    sealed = found.path / SEAL
    wrong = damage(found.path, kept_sha256) if sealed.is_file() else None
    if wrong is not None:
        instead = "restore the folder from a copy, or run the recipe again"
        raise MachineError(Problem(Where(str(found.path)), "", f"is damaged: {wrong}", instead))
    return found


def _find_weights(path: Path) -> WeightsPath:
    run = _run_around(path)
    if run is not None and run.path == path:
        if not run.is_finished:
            raise _unusable(path, "this run has not finished", "go on with it: fastft run RECIPE --resume")
        whole = run.exports / "merged_16bit"
        return WeightsPath("adapter", run.adapter, run) if run.adapter.is_dir() else WeightsPath("model", whole, run)
    if path.is_file() and path.name.endswith((".gguf", ".gguf.FAILED")):
        return WeightsPath("gguf", path, run)
    if (path / ADAPTER_CONFIG).is_file():
        return WeightsPath("adapter", path, run)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return WeightsPath("model", path, run)
    wrong = "holds no weights" if path.exists() else "there is no such file or folder"
    raise _unusable(path, wrong, "name a run's folder, an adapter's or a model's folder, or a .gguf file")


def _run_around(path: Path) -> RunDir | None:
    """The run whose folder `path` is, or lies in as its adapter or one of its exports."""
    folders = (path, *list(path.parents)[:3])
    inside = (folder for folder in folders if RunDir(folder).recipe.is_file() and (folder / Settings.FILE).is_file())
    found = next(inside, None)
    return None if found is None else RunDir(found)


def held_out(weights: WeightsPath, base: Path, adapter: Path | None) -> HeldOut:
    """The held-out conversations of the run; without a run none, and the ends that the chat template writes.

    Raises:
        RecipeError: the template writes no control token after an answer.
    """
    kept = None if weights.run is None else weights.run.read(HeldOut)
    return HeldOut((), _end_ids(base, adapter)) if kept is None else kept


def _end_ids(base: Path, adapter: Path | None) -> tuple[int, ...]:
    """The tokens at which answers end under the chat template of the weights, the usual one first; () without one.

    Raises:
        RecipeError: the template writes no control token after an answer.
    """
    facts = load_tokenizer(tokenizer_folder(base, adapter))
    if facts.chat_template is None:
        return ()
    where = Where(str(adapter or base))
    renderer = make_renderer(load_template("model", base, facts.chat_template, where), facts, "assistant", where)
    return tuple(token for text in renderer.end_of_turn if (token := facts.id_of(text)) is not None)


def find_gguf(path: Path) -> Path:
    """The GGUF file that `path` is, or the only one that was exported of the run at `path`.

    Raises:
        UsageError: there is none, or more than one.
    """
    if path.is_file():
        return find_weights(path).path
    files = sorted(path.glob("exports/gguf/*.gguf")) or sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(str(file) for file in files)
        raise _unusable(path, f"{len(files)} GGUF files are there", f"name one of them: {names}")
    raise _unusable(path, "there is no GGUF file", f"make one: fastft export {path} --to gguf")


def find_base(weights: WeightsPath, base: str | None, say: Callable[[str], None]) -> tuple[str, Path]:
    """(name, folder) of the model that an adapter was trained on, fetch or convert when it must be.

    `base`, a folder or a Hub id, goes before what the adapter and its run say.

    Raises:
        UsageError: neither says which it is.
        MachineError: it cannot be had.
    """
    where = Where("--base" if base else str(weights.path / ADAPTER_CONFIG))
    candidates = [(base, None)] if base else _bases(weights)
    if not candidates:
        instead = "name the folder or Hub id of the 16-bit model: --base"
        raise UsageError(Problem(where, "base_model_name_or_path", "names no base model", instead))
    refused: list[MachineError] = []
    for name, revision in candidates:
        try:
            model = fetch(find_base_model(name, revision, Path(), where), revision, where, say)
            folder = convert(model, where, say)
        except MachineError as error:
            refused.append(error)
        else:
            _prove_base(weights, folder, where)
            return model.id, folder
    raise refused[0]


def _prove_base(weights: WeightsPath, folder: Path, where: Where) -> None:
    """Compare the base with the one that the run trained on: another of the same shape would be merged unnoticed."""
    manifest = _manifest(weights)
    known = None if manifest is None else manifest.base_model.fingerprint
    if known is not None and known != weights_fingerprint(folder):
        wrong, instead = "is not the model that the run trained on", f"give {_bases(weights)[0][0]}"
        raise UsageError(Problem(where, "", wrong, instead, str(folder)))


def _bases(weights: WeightsPath) -> list[tuple[str, str | None]]:
    """(name, revision) of the base as the run knows it and as the adapter does, which has a folder's full path."""
    manifest, name = _manifest(weights), _base_in_config(weights.path)
    known = [] if manifest is None else [(manifest.base_model.id, manifest.base_model.revision)]
    return known if name is None else [*known, (name, None)]


def _manifest(weights: WeightsPath) -> Manifest | None:
    return None if weights.run is None else weights.run.read(Manifest)


def _base_in_config(adapter: Path) -> str | None:
    try:
        name = (read_json(adapter / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    except json.JSONDecodeError:
        return None  # open_adapter tells what is wrong with it
    return name if isinstance(name, str) and name else None


def _unusable(path: Path, wrong: str, instead: str) -> UsageError:
    return UsageError(Problem(Where(str(path)), "", wrong, instead))
