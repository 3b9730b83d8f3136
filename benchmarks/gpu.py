"""Llama-3.1-8B on one GPU: fastft beside Unsloth's notebooks and beside transformers, PEFT, bitsandbytes and TRL.

    python benchmarks/gpu.py                 the 8B model, four contenders, under 10 minutes on an H200
    python benchmarks/gpu.py --model 1b      the shape of Llama-3.2-1B, for a first try
    python benchmarks/gpu.py --small         a tiny model on a processor: proves the script alone

Writes gpu.json and gpu.md to --out (here, by default) after each contender, so that a run cut short loses nothing. The
weights are random: speed and memory do not depend on their values. The rows are of log-normal lengths, mean 300 and at
most 2048 tokens; each contender trains the same rows, ids and labels included, the same number of them in an optimizer
step, in a process of its own (benchmarks/contenders.py). Tokens are useful ones, padding not counted; utilisation is
the model's own operations, recomputation not counted, against a bf16 matrix product measured on the same card.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastft.data.prepare import Prepared
from fastft.planning.batching import describe, packed_rows
from fastft.planning.choices import written_batch
from fastft.planning.work import work_per_token
from fastft.probe.architecture import Architecture, architecture_of
from fastft.probe.device import GIB, find_device
from fastft.probe.software import installed
from fastft.recipe.loader import load
from fastft.stages.inputs import prepare_rows

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "recipes" / "llama31_sft.toml"
CONTENDERS = {
    1: "transformers + PEFT + bitsandbytes + TRL, defaults",
    2: "Unsloth, as its notebooks write it",
    3: "fastft, the shipped recipe",
    4: "fastft, the fastest settings that fit",
}
# Those that matter most come first, in case the time runs out.
ORDER = (2, 3, 4, 1)
MEAN_TOKENS = 300
# Tokens that the chat template of Llama 3.1 puts around a row of one question and one answer.
AROUND = 45
# Words of one token each, with the space before it.
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as", "with", "his", "they")
LLAMA_31 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SIZES: Mapping[str, Mapping[str, int]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
KEY_VALUE_HEADS = {"8b": 8, "1b": 8, "small": 2}


def write_config(folder: Path, size: str) -> None:
    """config.json of the model; the weights are made by a process on the GPU."""
    config = {**LLAMA_31, **SIZES[size], "num_key_value_heads": KEY_VALUE_HEADS[size]}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_rows(path: Path, count: int, longest: int, mean: float) -> None:
    """Conversations of one question and one answer, half of the words each; log-normal, sigma 0.8."""
    source = random.Random(3407)  # noqa: S311 -- the same rows each time
    sigma = 0.8
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            length = source.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
            words = source.choices(WORDS, k=round(min(max(length, AROUND + 12), longest - 8)) - AROUND)
            half = len(words) // 2
            asked, answered = f"{number} {' '.join(words[:half])}", " ".join(words[half:])
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            stream.write(json.dumps({"messages": turns}) + "\n")


def write_recipe(path: Path, model: Path, rows: Path, changes: Mapping[str, Any]) -> Path:
    """The shipped recipe for this model and these rows, without evaluation, checkpoints and exports; and `changes`."""
    recipe = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    recipe["model"]["id"], recipe["data"]["train"] = str(model), str(rows)
    del recipe["data"]["eval"], recipe["train"]["num_train_epochs"]
    recipe["train"] |= {"save_strategy": "no", "logging_steps": 1}
    recipe["export"] = {"formats": ["adapter"]}
    for key, value in changes.items():
        section, name = key.split(".")
        recipe[section][name] = value
    lines = []
    for section, values in recipe.items():
        # JSON is TOML for texts, numbers, booleans and flat lists.
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fastest(recipe: Path, write: Any, small: bool) -> dict[str, Any]:
    """The settings of contender 4, from fastft's own forecast: what fits in 90 % of the memory, in this order.

    16-bit weights without checkpointing, 16-bit with it, 4-bit without, 4-bit with; then the largest batch that divides
    the rows of a step.
    """
    for in_4bit, checkpointing in ((False, False), (False, "unsloth"), (True, False), (True, "unsloth")):
        changes = {"model.load_in_4bit": in_4bit and not small, "train.gradient_checkpointing": checkpointing}
        command = [sys.executable, "-m", "fastft", "plan", str(write(recipe, changes)), "--json"]
        plan = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        fitting = plan["memory"]["fitting"]
        if fitting["largest_batch"] > 0 and fitting["target_batch"]:
            return {
                **changes,
                "train.per_device_train_batch_size": fitting["target_batch"],
                "train.gradient_accumulation_steps": fitting["target_accumulation"],
            }
    raise SystemExit("fastft's forecast says that the model fits this device in no way")


class Benchmark:
    """One run of the comparison: its files, the time it has left, its results."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.until = time.monotonic() + float(options.budget)
        self.size = "small" if options.small else options.model
        self.model, self.rows = options.model_folder or work / "model", work / "rows.jsonl"
        self.found: dict[str, Any] = {
            "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(find_device()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "packages": installed(),
            "model": self.size,
            "contenders": {},
        }

    def child(self, job: str, settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The figures that a separate process wrote within `seconds`."""
        out = self.work / f"{job}.json"
        out.unlink(missing_ok=True)
        given = {"job": job, "out": str(out), "model": str(self.model), "started": time.time(), **settings}
        log = self.options.out / f"gpu-{job}.log" if self.options.keep_logs else self.work / f"{job}.log"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, str(HERE / "contenders.py"), json.dumps(given)]
        ended = "well"
        with log.open("w", encoding="utf-8") as stream:
            try:
                done = subprocess.run(
                    command, stdout=stream, stderr=stream, timeout=seconds, env=environment, check=False
                )
            except subprocess.TimeoutExpired:
                ended = f"cut off after {seconds:.0f} s"
            else:
                if done.returncode:
                    ended = f"exit code {done.returncode}: {log.read_text(encoding='utf-8').strip()[-600:]}"
        known: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        return {"ended": ended, **known}

    def left(self) -> float:
        """Seconds of the budget that are left."""
        left: float = self.until - time.monotonic()
        return max(1.0, left)

    def recipe(self, path: Path, changes: Mapping[str, Any]) -> Path:
        """The recipe of contenders 3 and 4 with `changes`."""
        small: dict[str, Any] = {"model.load_in_4bit": False, "model.max_seq_length": 256} if self.options.small else {}
        micro_batches = 4 if self.options.small else self.options.accumulation
        accumulation = {} if micro_batches is None else {"train.gradient_accumulation_steps": micro_batches}
        steps = {"train.max_steps": self.options.steps}
        return write_recipe(path, self.model, self.rows, {**steps, **accumulation, **changes, **small})

    def prepare(self) -> Prepared:
        """Model, tokenizer and rows; the measured matrix rate; the sizes of a step."""
        if self.options.model_folder is None:
            self.make()
        self.note("measuring the matrix rate")
        self.found["matrix_flops"] = self.child("matrix", {"small": self.options.small}, 60).get("flops")
        longest, mean = (256, 90) if self.options.small else (2048, MEAN_TOKENS)
        loaded = load(self.recipe(self.work / "shipped.toml", {}), [])
        train = loaded.recipe.train
        step_rows = train.examples_per_step or written_batch(train) * (train.gradient_accumulation_steps or 1)
        # A packed row holds about longest / mean examples; half a step more than is trained, so that no epoch ends.
        write_rows(self.rows, round((self.options.steps + 0.5) * step_rows * longest / mean), longest, mean)
        prepared = prepare_rows(loaded, self.model)
        lengths = prepared.train.rows.lengths
        packing = not self.options.small or find_device().is_gpu
        per_row = len(lengths) / len(packed_rows(lengths, longest)) if packing else 1.0
        # Batch 8 is TRL's default: every contender's batch must divide the examples of a step.
        self.found["examples_per_step"] = max(8, 8 * round(step_rows * per_row / 8))
        self.found["rows"] = describe(lengths).__dict__
        return prepared

    def make(self) -> None:
        """Random weights and the tokenizer, in a process of its own."""
        self.model.mkdir()
        write_config(self.model, self.size)
        self.note("making the model")
        made = self.child("make", {}, self.left())
        if made["ended"] != "well":
            raise SystemExit(f"the model could not be made: {made['ended']}")
        self.found["model_seconds"] = made["seconds"]

    def settings(self, number: int) -> dict[str, Any]:
        """The input of one contender."""
        shared = {"small": self.options.small, "steps": self.options.steps, "runs": str(self.work / "runs")}
        shipped = str(self.work / "shipped.toml")
        if number == 3:
            return {**shared, "recipe": shipped}
        if number == 4:
            path = self.work / "fastest.toml"
            changes = fastest(path, self.recipe, self.options.small)
            return {**shared, "recipe": str(self.recipe(path, changes))}
        batch = {1: 8, 2: 2}[number]
        return {**shared, "recipe": shipped, "batch": batch, "accumulation": self.found["examples_per_step"] // batch}

    def run(self) -> None:
        """Everything, with the files written after each contender."""
        lengths = self.prepare().train.rows.lengths
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        model = architecture_of("", config)
        assert model is not None
        flops = operations(model, lengths, self.recipe(self.work / "shipped.toml", {}))
        self.found["operations_per_token"] = flops
        chosen = [number for number in ORDER if number in self.options.only]
        for index, number in enumerate(chosen):
            # A slow contender may use half of the time that is left, so that each gets its turn.
            share = self.left() / (len(chosen) - index) * (1.5 if index < len(chosen) - 1 else 1.0)
            self.note(f"{CONTENDERS[number]} (at most {share:.0f} s)")
            seen = self.child(f"contender-{number}", self.settings(number), share)
            self.found["contenders"][str(number)] = {
                "name": CONTENDERS[number],
                **seen,
                **rates(seen.get("steps", []), flops, self.found["matrix_flops"]),
            }
            self.write()

    def write(self) -> None:
        """Write gpu.json and gpu.md with the results so far."""
        (self.options.out / "gpu.json").write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")
        (self.options.out / "gpu.md").write_text(table(self.found), encoding="utf-8")

    def note(self, text: str) -> None:
        print(f"{self.left():4.0f} s left: {text}", file=sys.stderr, flush=True)


def operations(model: Architecture, lengths: Sequence[int], recipe: Path) -> float:
    """Floating-point operations for one useful token, recomputation not counted."""
    lora = load(recipe, []).recipe.lora
    adapter = model.adapter_weights(lora.r, lora.target_modules)
    span = describe(lengths).mean_span
    work = work_per_token(model, adapter_weights=adapter, full_finetuning=False, recomputes=False, span=span)
    return work.total


def rates(steps: Sequence[Mapping[str, float]], flops: float, matrix_flops: float | None) -> dict[str, Any]:
    """Tokens and examples a second and the utilisation, over all steps but the first, which compiles kernels."""
    measured = steps[1:]
    seconds = sum(step["seconds"] for step in measured)
    if not seconds:
        return {}
    tokens = sum(step["tokens"] for step in measured)
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "samples_per_second": round(sum(step["examples"] for step in measured) / seconds, 2),
        "utilisation": None if not matrix_flops else round(tokens * flops / seconds / matrix_flops, 4),
        # Steps that train nothing have no rate (arXiv 2601.02609 compared with one).
        "trains": all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps),
    }


def table(found: Mapping[str, Any]) -> str:
    """The comparison in Markdown."""
    rows, step = found["rows"], found["examples_per_step"]
    rate = (found["matrix_flops"] or 0.0) / 1e12
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    lines = [
        f"{found['device']}; {found['date']}; model {found['model']}; {rows['examples']} rows of {rows['mean']} tokens"
        f" on average (median {rows['median']}, longest {rows['longest']}), {step} examples an optimizer step;"
        f" bf16 matrix product {rate:.1f} TFLOP/s; {packages}.",
        "",
        "| | batch x accumulation | settings | useful tokens/s | samples/s | against 2 | first step | peak allocated |"
        " reserved | utilisation | loss, first to last | ended |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    second = found["contenders"].get("2", {}).get("tokens_per_second")
    for number, entry in sorted(found["contenders"].items()):
        steps = entry.get("steps", [])
        tokens = entry.get("tokens_per_second")
        cells = [
            f"{number}. {entry['name']}",
            entry.get("batch", "?"),
            entry.get("settings", "?"),
            "-" if tokens is None else f"{tokens:,.0f}",
            "-" if tokens is None else f"{entry['samples_per_second']:.2f}",
            "-" if not (tokens and second) else f"{tokens / second:.2f} x",
            f"{entry['first_step_seconds']:.0f} s" if "first_step_seconds" in entry else "-",
            *(
                f"{entry[key] / GIB:.1f} GiB" if entry.get(key) else "-"
                for key in ("allocated_bytes", "reserved_bytes")
            ),
            f"{entry['utilisation']:.1%}" if entry.get("utilisation") else "-",
            f"{steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}" if steps else "-",
            entry["ended"].splitlines()[0] if entry.get("trains", True) else "does not train",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("8b", "1b"), default="8b")
    parser.add_argument("--small", action="store_true", help="a tiny model, without 4-bit weights, on a processor")
    parser.add_argument("--only", type=lambda text: [int(part) for part in text.split(",")], default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each contender")
    parser.add_argument("--budget", type=float, default=570, help="seconds for everything")
    parser.add_argument("--accumulation", type=int, help="micro-batches of a step; by default as the recipe has it")
    parser.add_argument("--model-folder", type=Path, help="a model of this shape that was made before")
    parser.add_argument("--work", type=Path, help="a folder with 20 GB free for the weights")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--keep-logs", action="store_true", help="leave what each process printed beside gpu.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        benchmark = Benchmark(options, Path(work))
        benchmark.run()
        print(table(benchmark.found))


if __name__ == "__main__":
    main()
