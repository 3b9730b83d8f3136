"""The weights at a path that `fastft export`, `chat` or `serve` gets, and their base model."""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastft.data.render import make_renderer
from fastft.data.template import load_template
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.exports.kept import artefact_damage, exported_damage
from fastft.exports.merged import tokenizer_folder
from fastft.exports.record import read_exports
from fastft.files.atomic import read_json
from fastft.files.records import read_record
from fastft.files.seal import SEAL, damage
from fastft.files.tensors import weights_fingerprint
from fastft.probe.base_model import find_base_model
from fastft.probe.hashes import kept_sha256
from fastft.probe.hub import fetch
from fastft.runs.classification import Classifier
from fastft.runs.directory import RunDir, Settings
from fastft.runs.held_out import HeldOut
from fastft.runs.manifest import BaseModelIdentity, Manifest
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
        """The name for files that are made from them."""
        return (self.path if self.run is None else self.run.path).resolve().name


def find_weights(path: Path) -> WeightsPath:
    """The weights at `path`: of a run's folder its adapter, or with full fine-tuning its whole model.

    Raises:
        UsageError: there is nothing at `path`, or no weights, or the run has not finished.
        MachineError: fastft wrote the weights, and they are not what it wrote.
    """
    found = _find_weights(path)
    refuse_damaged(found.path)
    return found


def refuse_damaged(path: Path) -> None:
    """Raise MachineError when fastft wrote this folder or file, and it is no longer what was written."""
    wrong = exported_damage(path)
    if (path / SEAL).is_file():
        wrong = damage(path, kept_sha256)
    if wrong is not None:
        raise _damaged(path, wrong)


def refuse_damaged_run(run: RunDir) -> None:
    """Raise MachineError when the adapter or an export of a finished run is no longer what was written."""
    refuse_damaged(run.adapter)
    for one in read_exports(run.exports).artefacts:
        path = run.exports / one.path
        wrong = artefact_damage(run.exports, one) if os.path.lexists(path) else None
        if wrong is not None:
            raise _damaged(path, wrong)


def _find_weights(path: Path) -> WeightsPath:
    # The run at `path`, or the one that `path` is the adapter or an export of.
    runs = (RunDir(folder) for folder in (path, *list(path.parents)[:3]))
    run = next((run for run in runs if run.recipe.is_file() and (run.path / Settings.FILE).is_file()), None)
    if run is not None and run.path == path:
        if run.result is None:
            raise _unusable(path, "this run has not finished", "continue it: fastft run RECIPE")
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


def find_classifier(weights: WeightsPath) -> Classifier | None:
    """What is known of the classifier that these weights are; None for a language model."""
    known = None if weights.kind == "gguf" else read_record(weights.path / Classifier.FILE, Classifier)
    return known or (None if weights.run is None else weights.run.read(Classifier))


def refuse_classifier(weights: WeightsPath, command: str) -> None:
    """Raise UsageError for a classifier, which `command` cannot use."""
    if find_classifier(weights) is not None:
        wrong = f"is a classifier: it gives labels, and fastft {command} needs a model that answers"
        raise _unusable(weights.path, wrong, f"write fastft predict {weights.path} FILE")


def held_out(weights: WeightsPath, base: Path, adapter: Path | None) -> HeldOut:
    """The record of the run; without a run no conversations, and the end tokens of the chat template, if there is one.

    Raises:
        RecipeError: the template writes no control token after an answer.
    """
    kept = None if weights.run is None else weights.run.read(HeldOut)
    if kept is not None:
        return kept
    facts = load_tokenizer(tokenizer_folder(base, adapter))
    if facts.chat_template is None:
        return HeldOut((), ())
    where = Where(str(adapter or base))
    renderer = make_renderer(load_template("model", base, facts.chat_template, where), facts, "assistant", where)
    return HeldOut((), tuple(token for text in renderer.end_of_turn if (token := facts.id_of(text)) is not None))


def find_gguf(path: Path) -> Path | None:
    """The GGUF file at `path`, or the only one that the run at `path` exported; None where there is none.

    Raises:
        UsageError: there is more than one, or `path` is another file or a classifier.
    """
    if path.is_file():
        return find_weights(path).path
    if (path / Classifier.FILE).is_file():
        refuse_classifier(find_weights(path), "serve")
    files = sorted(path.glob("exports/gguf/*.gguf")) or sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return find_weights(files[0]).path
    if files:
        names = ", ".join(str(file) for file in files)
        raise _unusable(path, f"{len(files)} GGUF files are there", f"name one of them: {names}")
    return None


def find_base(weights: WeightsPath, base: str | None, say: Callable[[str], None]) -> tuple[str, Path]:
    """(name, folder) of the model that an adapter was trained on; downloads or converts it first if needed.

    `base`, a folder or a Hub id, takes precedence over what the run and the adapter name.

    Raises:
        UsageError: neither names one, or it is not the model that the run trained on.
        MachineError: it cannot be downloaded or converted.
    """
    where = Where("--base" if base else str(weights.path / ADAPTER_CONFIG))
    manifest = None if weights.run is None else weights.run.read(Manifest)
    trained_on = None if manifest is None else manifest.base_model
    candidates = [(base, None)] if base else _named_bases(weights.path, trained_on)
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
            continue
        # Otherwise another model of the same shape would be merged unnoticed.
        if trained_on and trained_on.fingerprint and trained_on.fingerprint != weights_fingerprint(folder):
            wrong = "is not the model that the run trained on"
            raise UsageError(Problem(where, "", wrong, f"give {trained_on.id}", str(folder)))
        return model.id, folder
    raise refused[0]


def _named_bases(adapter: Path, trained_on: BaseModelIdentity | None) -> list[tuple[str, str | None]]:
    """(name, revision) of the base in the run's manifest and in the adapter, which has a folder's full path."""
    known = [] if trained_on is None else [(trained_on.id, trained_on.revision)]
    try:
        name = (read_json(adapter / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    except json.JSONDecodeError:  # open_adapter reports it
        return known
    return [*known, (name, None)] if isinstance(name, str) and name else known


def _damaged(path: Path, wrong: str) -> MachineError:
    instead = "restore it from a copy, or remove it and make it anew"
    return MachineError(Problem(Where(str(path)), "", f"is damaged: {wrong}", instead))


def _unusable(path: Path, wrong: str, instead: str) -> UsageError:
    return UsageError(Problem(Where(str(path)), "", wrong, instead))
