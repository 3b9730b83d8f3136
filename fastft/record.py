"""What a run leaves on record: the manifest of what it stands on, and the result of what came out."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft import __version__
from fastft.data.example import Example
from fastft.data.prepare import Prepared
from fastft.data.render import Prompt
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, Where
from fastft.facts import Facts
from fastft.plan.plan import Plan
from fastft.recipe.loader import LoadedRecipe
from fastft.run import RunDir

if TYPE_CHECKING:
    from fastft.engine.train import Trained


def make_manifest(
    loaded: LoadedRecipe, facts: Facts, prepared: Prepared, plan: Plan, tokenizer: TokenizerFacts, base: Path
) -> dict[str, Any]:
    """What the run stands on: enough to tell whether another run, or a resumed one, is the same."""
    from fastft.export.tensors import fingerprint

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
            "fingerprint": None if "quantization_config" in base_model.config else fingerprint(base),
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


def make_result(
    prepared: Prepared, trained: Trained, prompts: list[Prompt], figures: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The figures of a finished run; `seconds` is what all of it took."""
    asked = [] if prepared.eval is None else prepared.eval.examples[: len(prompts)]
    questions = [_question(example) for example in asked]
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "steps": trained.steps,
        "train_loss": trained.train_loss,
        "eval_loss": {"before": trained.eval_loss_before, "after": trained.eval_loss_after},
        "exact_match": _exact_match(trained, prompts, questions),
        "total_seconds": round(seconds, 1),
        "peak_memory_bytes": trained.peak_memory_bytes,
        "train_rows": len(prepared.train.rows),
        "best_checkpoint": trained.best_checkpoint,
        **figures,
    }


def weights_bytes(result: dict[str, Any]) -> int | None:
    """The size of the trained weights that were written, None where none were."""
    folder = result.get("weights_folder")
    return None if folder is None else sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """What differs between two entries of a manifest: `data.train_sha256`, `packages.torch (2.13.0, now 2.14.0)`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [line for key in keys for line in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    if before == now:
        return []
    return [name if name.endswith("sha256") else f"{name} ({before}, now {now})"]


def _question(example: Example) -> str:
    """The last thing that was asked in an example."""
    return next((message.content for message in reversed(example.messages) if message.role == "user"), "")


def _exact_match(trained: Trained, prompts: list[Prompt], questions: list[str]) -> dict[str, Any] | None:
    """Counts before and after, and one held-out row that shows the difference best: wrong before, right after."""
    before, after = trained.answers_before, trained.answers_after
    if after is None:
        return None
    right = [text.strip() == prompt.reference.strip() for text, prompt in zip(after.texts, prompts, strict=True)]
    shown = right.index(True) if any(right) else 0
    example = {
        "question": questions[shown],
        "reference": prompts[shown].reference,
        "before": None if before is None else before.texts[shown],
        "after": after.texts[shown],
    }
    counts = {"rows": len(prompts), "before": None if before is None else before.exact, "after": after.exact}
    return {**counts, "example": example}
