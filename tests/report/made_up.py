"""A made-up run on disk: real records of every kind, with texts that try to leave their place on the page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from fastft.files.records import write_checked
from fastft.recipe.loader import load
from fastft.runs.directory import RunDir, Settings
from fastft.runs.manifest import BaseModelIdentity, DataIdentity, Manifest, TemplateIdentity
from fastft.runs.metrics import EvaluationMetrics, MetricsFile, OutOfMemory, StepMetrics
from fastft.runs.result import BeforeAfter, ExactMatch, Result, ShownAnswer
from fastft.runs.score import Score
from tests.golden import RECIPES, golden_plan

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src='https://example.org/x.png' onerror=alert(1)>",
    "</pre></section></style></title><h1 class='verdict better'>Better</h1>",
    "&lt;b&gt; &amp; <!-- ]]> <svg onload=alert(1)>",
    "\N{RIGHT-TO-LEFT OVERRIDE}evil \x00\x1b[31m \ud800",
)
RESULT = Result(
    finished="2026-11-25T12:00:00+00:00",
    steps=60,
    train_loss=0.5,
    eval_loss=BeforeAfter(3.0, 0.25),
    exact_match=None,
    total_seconds=300.0,
    peak_memory_bytes=2 * 1024**3,
    train_rows=480,
    best_checkpoint=None,
    trained_weights=4884480,
    weights=139400064,
    train_tokens_seen=18500,
    train_seconds=185.0,
    out_of_memory=(),
    weights_folder="runs/quickstart/adapter",
    forecast={
        "optimizer_steps": Score(60.0, 60.0, 0.0),
        "peak_memory_bytes": Score(3.0 * 1024**3, 2.0 * 1024**3, 0.5),
        "train_seconds": Score(None, 185.0, None),
    },
)


def with_figures(result: Result, loss: BeforeAfter, match: ExactMatch | None) -> Result:
    return dataclasses.replace(result, eval_loss=loss, exact_match=match)


def make_run(folder: Path, *, steps: int = 60, result: Result | None = RESULT) -> RunDir:
    """A run of the quickstart in `folder`, finished where it has a `result`; its texts are HOSTILE."""
    recipe = next(path for path in RECIPES if path.stem == "quickstart")
    run = RunDir(folder)
    folder.mkdir(parents=True)
    text = f"# {HOSTILE[0]} {HOSTILE[2]}\n{recipe.read_text()}"
    run.recipe.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    run.write(Settings(load(recipe, ["train.seed=7"]).settings(), digest))
    plan = golden_plan(recipe).as_json()
    write_checked(run.plan, plan | {"base_model": HOSTILE[1]})
    base = BaseModelIdentity(HOSTILE[1], HOSTILE[3], "aa", 1, "bb", {})
    data = DataIdentity(HOSTILE[0], "cc", None, None, "messages")
    template = TemplateIdentity(HOSTILE[2], "dd")
    run.write(Manifest("0.1.0", "3.11.7", {"torch": HOSTILE[3]}, "a <device>", "unsloth", base, data, template, 7))
    metrics = MetricsFile(run.metrics)
    metrics.append(EvaluationMetrics(0, {"eval_loss": 3.0}))
    for step in range(1, steps + 1):
        loss = float("nan") if step == 5 else 3.0 / step
        metrics.append(StepMetrics(step, 60, step / 60, loss, 1e-3 / step, 1.0 + step % 3, 300, 4, 3.0, 2 * 1024**3))
    metrics.append(OutOfMemory(4, "4 x 1", "2 x 2"))
    metrics.append(EvaluationMetrics(steps, {"eval_loss": 0.25}))
    reject = {"split": "train", "file": HOSTILE[1], "line": 3, "reason": HOSTILE[2]}
    run.rejects.write_text("".join(json.dumps(reject) + "\n" for _ in range(30)))
    if result is not None:
        run.write(result)
    return run


def hostile_answers() -> ExactMatch:
    """One answer of each kind, of hostile texts without a half of a surrogate pair: JSON files are UTF-8."""
    one, two, three, four = HOSTILE[:4]
    shown = (
        ShownAnswer(two, one, three, one),
        ShownAnswer(three, two, two, four),
        ShownAnswer(four, three, None, ""),
        ShownAnswer(one, four, four, four),
    )
    return ExactMatch(4, 2, 2, shown[0], shown)
