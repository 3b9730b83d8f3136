"""What a run leaves on record: the manifest of what it stands on, and the result of what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft import __version__
from fastft.data.prepare import Prepared
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, Where
from fastft.planning.facts import Facts
from fastft.planning.plan import Plan
from fastft.recipe.loader import LoadedRecipe
from fastft.runs.directory import RunDir

if TYPE_CHECKING:
    pass


def make_manifest(
    loaded: LoadedRecipe, facts: Facts, prepared: Prepared, plan: Plan, tokenizer: TokenizerFacts, base: Path
) -> dict[str, Any]:
    """What the run stands on: enough to tell whether another run, or a resumed one, is the same."""
    from fastft.files.tensors import weights_fingerprint

    template, base_model = prepared.template, facts.base_model
    return {
        "fastft": __version__,
        "python": sys.version.split()[0],
        "packages": dict(facts.installed),
        "device": plan.device,
        "engine": plan.engine,
        "base_model": {
            "id": base_model.id,
            "revision": loaded.recipe.model.revision,
            "tokenizer_sha256": tokenizer.sha256,
            "weight_bytes": base_model.weight_bytes,
            # One in 4 bits and its 16-bit original do not have the same.
            "fingerprint": None if "quantization_config" in base_model.config else weights_fingerprint(base),
        },
        "data": {
            "train": loaded.recipe.data.train,
            "train_sha256": prepared.train_sha256,
            "eval": loaded.recipe.data.eval,
            "eval_sha256": prepared.eval_sha256,
            "format": prepared.format,
        },
        "chat_template": None if template is None else {"name": template.name, "sha256": template.sha256},
        "seed": loaded.recipe.train.seed,
    }


def refuse_changes(run_dir: RunDir, manifest: dict[str, Any]) -> None:
    """Refuse to go on with a run whose data, template or versions are not what it began with.

    Raises:
        DataError: naming all that changed.
    """
    before = run_dir.manifest
    if before is None:
        return
    compared = ("data", "base_model", "chat_template", "packages", "engine", "seed")
    changed = [name for key in compared for name in _differences(key, before.get(key), manifest[key])]
    if changed:
        wrong = f"changed since the run began: {', '.join(changed)}"
        instead = "put it back as it was, or start a new run without --resume"
        raise DataError(Problem(Where(str(run_dir.path / "manifest.json")), "", wrong, instead))


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """What differs between two entries of a manifest: `data.train_sha256`, `packages.torch (2.13.0, now 2.14.0)`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [line for key in keys for line in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    if before == now:
        return []
    return [name if name.endswith("sha256") else f"{name} ({before}, now {now})"]
