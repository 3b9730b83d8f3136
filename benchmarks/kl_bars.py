"""How far each kind of export is from its trained model: mean and worst KL divergence over several models.

    PYTHONPATH=. python benchmarks/kl_bars.py --run runs/quickstart     writes kl_bars.json here

Seven models of two layers and random weights, each of another architecture, read rows of the quickstart; the eighth is
the run, on its held-out rows and on free text. `bfloat16` is what the rounding of a model on a GPU alone gives: the
trained model in bfloat16 against itself in float32. The bars in fastft/recipe/quantizations.py and
fastft/recipe/export_formats.py are three times the largest figure for 6 bits and more; for fewer, docs/benchmarks.md
says what they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastft.engine_choice import select
from fastft.exports.job import Job
from fastft.recipe.quantizations import QUANTIZATIONS
from fastft.stages.weights import find_base, find_weights, held_out
from tests.exports.families import write_family

ROOT = Path(__file__).parents[1]
MADE_UP = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
REAL_KINDS = ("merged_16bit", "f16", "q8_0", "q4_k_m", "q2_k")
KINDS = ("adapter", "merged_16bit", "merged_4bit", *QUANTIZATIONS)


def conversations() -> list[list[dict[str, str]]]:
    """The rows of the quickstart."""
    file = ROOT / "recipes/data/support_triage/train.jsonl"
    return [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]


def make(folder: Path, name: str) -> tuple[Path, Path]:
    """(base, adapter) of random weights, whose logits are as far apart as those of a trained model."""
    import torch
    from safetensors.torch import load_file, save_file

    base, adapter = write_family(folder, name)
    weights = load_file(base / "model.safetensors")
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[head] = (weights[head].to(torch.float32) * 4).to(weights[head].dtype)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return base, adapter


def measure(
    base: Path, adapter: Path, rows: Any, ends: tuple[int, ...], folder: Path, kinds: Sequence[str]
) -> dict[str, Any]:
    """Mean and worst KL of each kind, and of bfloat16 alone."""
    import numpy as np
    import torch

    from fastft.engine import export as engine
    from fastft.engine.reference import make_reference
    from fastft.exports.parity import kl_divergence

    model, tokenizer = engine.load_trained(base, adapter)
    rows = rows or engine.own_answers(model, tokenizer, ends)
    reference = make_reference(model, tokenizer, rows, ends)
    rounded = make_reference(model.to(torch.bfloat16), tokenizer, rows, ends)
    pairs = zip(reference.trained, rounded.trained, strict=True)
    divergences = np.concatenate([kl_divergence(*pair) for pair in pairs])
    found = {"bfloat16": (float(divergences.mean()), float(divergences.max()))}
    job = Job(base, adapter, folder, tuple(kinds), "model", ends)
    for kind in kinds:
        verdict = engine.compare(job, engine.write_artefact(job, kind), reference)
        found[kind] = (verdict.mean_kl, verdict.worst_kl)
        if verdict.reasons:
            print(kind, verdict.reasons, file=sys.stderr)
    return {kind: {"mean_kl": mean, "worst_kl": worst} for kind, (mean, worst) in found.items()}


def save(models: dict[str, Any]) -> None:
    """Write the figures so far, with the largest of each kind."""
    figures = ("mean_kl", "worst_kl")
    largest = {
        kind: {one: max(model[kind][one] for model in models.values() if kind in model) for one in figures}
        for kind in ("bfloat16", *KINDS)
    }
    text = json.dumps({"largest": largest, "models": models}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure all models and write their figures, with the largest of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart")
    parser.add_argument("--add", action="store_true", help="keep the models whose figures are there")
    asked = parser.parse_args()
    select("transformers")
    file = Path(__file__).with_suffix(".json")
    models: dict[str, Any] = {}
    if asked.add and file.is_file():
        models = json.loads(file.read_text(encoding="utf-8"))["models"]
    for name in MADE_UP:
        if name in models:
            continue
        with tempfile.TemporaryDirectory() as folder:
            base, adapter = make(Path(folder), name)
            models[name] = measure(base, adapter, conversations()[-8:], (2,), Path(folder) / "out", KINDS)
            save(models)
    if asked.run:
        weights = find_weights(asked.run)
        _, base = find_base(weights, None, print)
        kept = held_out(weights, base, weights.path)
        for text, rows in (("held-out rows", kept.conversations), ("free text", ())):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(base, weights.path, rows, kept.end_ids, Path(folder), REAL_KINDS)
                models[f"SmolLM2-135M, {text}"] = found
                save(models)


if __name__ == "__main__":
    main()
