"""How close each kind of export is to the trained model, on held-out rows and on free text, and how it answers.

    python benchmarks/parity.py runs/quickstart     writes parity.json here

Agreement and KL divergence are those of the parity gate (fastft/exports/parity.py). `exact_match` counts the held-out
rows that a GGUF file answers exactly when it is asked through the conversation that `fastft chat` uses.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

from fastft.engine_choice import select
from fastft.exports.job import Job
from fastft.inference.conversation import Conversation, Sampling
from fastft.inference.llamacpp import GgufModel
from fastft.recipe.export_formats import FOLDER_FORMATS
from fastft.recipe.loader import load
from fastft.stages.weights import find_base, find_weights, held_out

KINDS = ("adapter", "merged_16bit", "merged_4bit", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m")
FIGURES = ("positions", "top1_agreement", "agreement", "mean_kl", "mean_kl_base_trained")


def exact_match(file: Path, rows: list[dict[str, Any]]) -> int:
    """The rows whose last answer the file gives exactly."""
    right = 0
    with GgufModel(file, context_tokens=1024) as model:
        for row in rows:
            *before, question, answer = row["messages"]
            system = before[0]["content"] if before else None
            answered = "".join(Conversation(model, Sampling(), system).answer(question["content"]))
            right += answered.strip() == answer["content"].strip()
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run with one system prompt and held-out rows (JSONL)")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes/quickstart.toml")
    asked = parser.parse_args()
    select("transformers")
    from fastft.engine import export as engine
    from fastft.engine.reference import make_reference

    weights = find_weights(asked.run)
    _, base = find_base(weights, None, print)
    kept = held_out(weights, base, weights.path)
    ends = kept.end_ids
    loaded = load(asked.recipe, [])
    assert loaded.recipe.data.eval is not None
    lines = (loaded.folder / loaded.recipe.data.eval).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    model, tokenizer = engine.load_trained(base, weights.path)
    texts = {"held-out rows": kept.conversations, "free text": engine.own_answers(model, tokenizer, ends)}
    references = {name: make_reference(model, tokenizer, text, ends) for name, text in texts.items()}
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        job = Job(base, weights.path, Path(folder), KINDS, weights.name, ends)
        for kind in KINDS:
            artefact = engine.write_artefact(job, kind)
            entry: dict[str, Any] = {"kind": kind, "bytes": artefact.size_bytes, "seconds": round(artefact.seconds, 2)}
            for name, reference in references.items():
                verdict = engine.compare(job, artefact, reference)
                figures = {figure: getattr(verdict, figure) for figure in FIGURES}
                entry[name] = {**figures, "bar": verdict.bar, "passed": verdict.passed}
            if kind not in FOLDER_FORMATS:
                entry["exact_match"] = {"right": exact_match(artefact.path, rows), "rows": len(rows)}
            entries.append(entry)
            print(json.dumps(entry))
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    record = {"command": "python benchmarks/parity.py runs/quickstart", **machine, "exports": entries}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
