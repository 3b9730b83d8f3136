"""How far each kind of export is from its trained model: mean and worst KL divergence over eight models.

    PYTHONPATH=. python benchmarks/kl_bars.py --run runs/quickstart     writes kl_bars.json here

Seven models of two layers, one of each architecture that GGUF export knows, are trained in seconds on the quickstart's
rows, first all of their weights, then an adapter; the eighth is the run. `bfloat16` is what the rounding of a model on
a GPU alone gives: the trained model in bfloat16 against itself in float32. The bars in fastft/recipe/quantizations.py
and fastft/recipe/export_formats.py are three times the largest figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastft.engine_choice import select
from fastft.exports.job import Job
from fastft.recipe.quantizations import QUANTIZATIONS
from fastft.stages.weights import find_base, find_weights, held_out
from tests.exports.families import write_family

ROOT = Path(__file__).parents[1]
MADE_UP = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
KINDS = ("adapter", "merged_16bit", "merged_4bit", *QUANTIZATIONS)


def conversations() -> list[list[dict[str, str]]]:
    """The rows of the quickstart."""
    file = next(ROOT.glob("recipes/data/**/*train*.jsonl"))
    return [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]


def train(model: Any, texts: list[list[int]], steps: int, rate: float) -> float:
    """The last loss of plain training on token ids."""
    import torch

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    loss = torch.zeros(())
    for step in range(steps):
        batch = [texts[(step * 8 + index) % len(texts)][:96] for index in range(8)]
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss)


def make(folder: Path, name: str) -> tuple[Path, Path]:
    """(base, adapter), both trained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, _ = write_family(folder, name)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in conversations()]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    half = len(ids) // 2
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    first = train(model, ids[:half], 40, 4e-3)
    stored = torch.bfloat16 if name in ("mistral", "qwen3", "gemma3") else torch.float16
    model.to(stored).save_pretrained(folder / "trained")
    for file in base.iterdir():
        if not file.name.startswith(("model", "config", "generation")):
            (folder / "trained" / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(folder / "trained", dtype=torch.float32, attn_implementation="eager")
    peft: Any = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    second = train(peft, ids[half:], 20, 4e-3)
    peft.save_pretrained(folder / "adapter")
    print(f"{name}: loss {first:.2f}, with the adapter {second:.2f}", file=sys.stderr)
    return folder / "trained", folder / "adapter"


def measure(base: Path, adapter: Path, rows: Any, ends: tuple[int, ...], folder: Path) -> dict[str, Any]:
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
    job = Job(base, adapter, folder, KINDS, "model", ends)
    for kind in KINDS:
        verdict = engine.compare(job, engine.write_artefact(job, kind), reference)
        found[kind] = (verdict.mean_kl, verdict.worst_kl)
        if verdict.reasons:
            print(kind, verdict.reasons, file=sys.stderr)
    return {kind: {"mean_kl": mean, "worst_kl": worst} for kind, (mean, worst) in found.items()}


def main() -> None:
    """Measure all models and write their figures, with the largest of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart")
    asked = parser.parse_args()
    select("transformers")
    models: dict[str, Any] = {}
    for name in MADE_UP:
        with tempfile.TemporaryDirectory() as folder:
            base, adapter = make(Path(folder), name)
            models[name] = measure(base, adapter, conversations()[-16:], (2,), Path(folder) / "out")
    if asked.run:
        weights = find_weights(asked.run)
        _, base = find_base(weights, None, print)
        kept = held_out(weights, base, weights.path)
        for text, rows in (("held-out rows", kept.conversations), ("free text", ())):
            with tempfile.TemporaryDirectory() as folder:
                models[f"SmolLM2-135M, {text}"] = measure(base, weights.path, rows, kept.end_ids, Path(folder))
    figures = ("mean_kl", "worst_kl")
    kinds = ("bfloat16", *KINDS)
    largest = {kind: {one: max(model[kind][one] for model in models.values()) for one in figures} for kind in kinds}
    text = json.dumps({"largest": largest, "models": models}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(largest, indent=1))


if __name__ == "__main__":
    main()
