"""The processes of benchmarks/gpu.py: making the model, the matrix rate, and each contender as its users write it.

Called with one JSON argument; writes its figures to a file after each step. Every step is timed in one way: from the
log line of the step before to its own, which has read the loss and so has waited for the device.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEED = 3407


class Report:
    """The figures of one process, written whole after each step."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._out, self._started = Path(given["out"]), given["started"]
        self._last = 0.0
        self.values: dict[str, Any] = {"steps": []}

    def step(self, loss: float, grad_norm: float, tokens: int, examples: int) -> None:
        """Record the optimizer step that just ended."""
        now = time.time()
        self.values.setdefault("first_step_seconds", round(now - self._started, 2))
        seconds = now - self._last if self._last else 0.0
        self._last = now
        step = {"loss": loss, "grad_norm": grad_norm, "tokens": tokens, "examples": examples}
        self.values["steps"].append({**step, "seconds": round(seconds, 3)})
        self.write()

    def write(self) -> None:
        """Write the figures so far, with the peak memory."""
        import torch

        if torch.cuda.is_available():
            self.values["allocated_bytes"] = torch.cuda.max_memory_allocated()
            self.values["reserved_bytes"] = torch.cuda.max_memory_reserved()
        else:
            self.values["allocated_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._out.write_text(json.dumps(self.values), encoding="utf-8")


def make(given: dict[str, Any]) -> None:
    """Random bf16 weights for the config in the model's folder, and the real tokenizer of Llama 3."""
    began = time.time()
    import torch
    from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = Path(given["model"])
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=llama_tokenizer(),
        bos_token="<|begin_of_text|>",  # noqa: S106
        eos_token="<|eot_id|>",  # noqa: S106
        pad_token="<|finetune_right_pad_id|>",  # noqa: S106
    )
    tokenizer.save_pretrained(folder)
    Path(given["out"]).write_text(json.dumps({"seconds": round(time.time() - began, 1)}), encoding="utf-8")


def llama_tokenizer() -> Any:
    """The vocabulary that Meta publishes in the package llama-models, as a fast tokenizer."""
    from importlib import import_module

    from transformers.convert_slow_tokenizer import TikTokenConverter

    module = import_module("llama_models.llama3.tokenizer")
    known = module.Tokenizer.get_instance().special_tokens
    special = sorted(known, key=lambda text: int(known[text]))
    file = Path(str(module.__file__)).with_name("tokenizer.model")
    return TikTokenConverter(str(file), module.Tokenizer.pat_str, extra_special_tokens=special).converted()


def matrix(given: dict[str, Any]) -> None:
    """The best rate of a bf16 matrix product, FLOP/s: the square and the feed-forward shape, a second each."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 256 if given["small"] else 8192
    best = 0.0
    for rows, inner, columns in ((size, size, size), (2 * size, size // 2, 7 * size // 4)):
        left = torch.randn(rows, inner, dtype=torch.bfloat16, device=device)
        right = torch.randn(inner, columns, dtype=torch.bfloat16, device=device)
        out = left @ right
        began, done = _now(), 0
        while _now() - began < 1.0:
            for _ in range(10):
                torch.matmul(left, right, out=out)
            done += 10
        best = max(best, 2.0 * rows * inner * columns * done / (_now() - began))
    Path(given["out"]).write_text(json.dumps({"flops": best}), encoding="utf-8")


def _now() -> float:
    """The time after the device has finished all its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rows_of(recipe: str, model: str) -> dict[str, list[list[int]]]:
    """The ids and labels that fastft prepared: the same for every contender. Imports no torch."""
    from fastft.recipe.loader import load
    from fastft.stages.inputs import prepare_rows

    rows = prepare_rows(load(Path(recipe), []), Path(model)).train.rows
    encoded = rows[:]
    names = ("input_ids", "labels")
    return {name: [getattr(row, name).tolist() for row in encoded] for name in names}


def plain(given: dict[str, Any]) -> None:
    """Contender 1: transformers, PEFT, bitsandbytes and TRL with their defaults, batch 8 and checkpointing included."""
    rows = rows_of(given["recipe"], given["model"])
    import torch
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer
    from trl import SFTConfig, SFTTrainer

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    more = {} if given["small"] else {"quantization_config": quantization, "device_map": {"": 0}}
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.bfloat16, **more)
    if not given["small"]:
        model = prepare_model_for_kbit_training(model)

    class OnProcessor(SFTTrainer):  # type: ignore[misc]
        """TRL 1.15 computes its loss in a Triton kernel alone, which needs a GPU."""

        compute_loss = Trainer.compute_loss

    trainer = (OnProcessor if given["small"] else SFTTrainer)(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
        train_dataset=_dataset(rows),
        # The rows are ready: TRL's own preparation would look for text in them.
        args=SFTConfig(
            **_shared(given),
            learning_rate=2e-5,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        ),
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules=ALL_LINEAR, task_type="CAUSAL_LM"),
    )
    _train(trainer, given, "16-bit weights (no 4-bit on a processor)" if given["small"] else "4-bit")


def unsloth(given: dict[str, Any]) -> None:
    """Contender 2: Unsloth as its Llama 3.1 notebook writes it: its checkpointing, and padding-free as by default.

    Rows are given as ids and labels, which its trainer takes as they are. `dataset_kwargs` and `max_length` are left to
    it: with them it would pad each batch, because it cannot know that no row is too long.
    """
    rows = rows_of(given["recipe"], given["model"])
    from unsloth import FastLanguageModel  # noqa: I001 -- before transformers, as Unsloth asks
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=given["model"], max_seq_length=256 if given["small"] else 2048, load_in_4bit=not given["small"]
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=ALL_LINEAR,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=SEED,
    )
    arguments = SFTConfig(
        **_shared(given),
        learning_rate=2e-5,  # the recipe's, so that loss curves compare
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        optim="adamw_torch" if given["small"] else "adamw_8bit",
        weight_decay=0.01,
    )
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=_dataset(rows), args=arguments)
    _train(trainer, given, "16-bit weights (no 4-bit on a processor)" if given["small"] else "4-bit")


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of both hand-written contenders: batch, number of steps and a line a step."""
    return {
        "output_dir": given["runs"],
        "per_device_train_batch_size": given["batch"],
        "gradient_accumulation_steps": given["accumulation"],
        "max_steps": given["steps"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": SEED,
        **({"bf16": False} if given["small"] and not given.get("any_precision") else {}),
        # Without it plain transformers refuses bfloat16 on a processor.
        "use_cpu": bool(given.get("any_precision")),
    }


def _dataset(rows: dict[str, list[list[int]]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(rows)


def _train(trainer: Any, given: dict[str, Any], settings: str) -> None:
    """Train, counting the real tokens of each micro-batch on the device."""
    from transformers import TrainerCallback

    report = Report(given)
    # What the trainer made of its arguments, which it changes silently.
    rows = "padding-free rows" if trainer.args.padding_free else "padded rows"
    report.values |= {"batch": f"{given['batch']} x {given['accumulation']}", "settings": f"{settings}, {rows}"}
    tokens: list[Any] = []
    examples: list[int] = []
    take = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **values: Any) -> Any:
        # Padding carries no attention; without a mask nothing is padded.
        mask, lengths = inputs.get("attention_mask"), inputs.get("packed_seq_lengths")
        tokens.append(inputs["input_ids"].numel() if mask is None else mask.sum())
        # A shape: reading the positions would make the GPU wait.
        examples.append(len(inputs["input_ids"]) if lengths is None else lengths.numel())
        return take(model, inputs, *rest, **values)

    class Lines(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                total = sum(int(count) for count in tokens)
                report.step(float(logs["loss"]), float(logs["grad_norm"]), total, sum(examples))
                tokens.clear()
                examples.clear()

    trainer.training_step = counted
    trainer.add_callback(Lines())
    trainer.train()
    report.write()


def fastft(given: dict[str, Any]) -> None:
    """Contenders 3 and 4: `fastft run` on the recipe, timed by the lines that it shows."""
    from rich.console import Console

    from fastft.commands.run import run
    from fastft.runs.result import Result
    from fastft.stages.attempt import Start

    report = Report(given)
    runs = Path(given["runs"]) / Path(given["recipe"]).stem

    class Clock:
        """Stands for the terminal: a step's line appears when the step has ended."""

        def write(self, text: str) -> int:
            if text.startswith("step "):
                _take_lines(report, runs)
            print(text, end="", flush=True)
            return len(text)

        def flush(self) -> None:
            sys.stdout.flush()

    finished = run(
        Path(given["recipe"]),
        [],
        runs,
        Start(fresh=True),
        Console(file=Clock(), width=200),  # type: ignore[arg-type]
    )
    plan = json.loads((finished.path / "plan.json").read_text(encoding="utf-8"))
    result = json.loads((finished.path / Result.FILE).read_text(encoding="utf-8"))
    report.values["forecast"] = result["forecast"]
    report.values["out_of_memory"] = result["out_of_memory"]
    report.values |= _of_plan(plan)
    report.write()


def _take_lines(report: Report, runs: Path) -> None:
    """The steps in metrics.jsonl that the report does not have yet."""
    [run_dir] = runs.iterdir()
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["event"] == "step"]
    report.values |= _of_plan(json.loads((run_dir / "plan.json").read_text(encoding="utf-8")))
    if len(steps) <= len(report.values["steps"]):  # a run that ran out of memory began again
        report.values["steps"].clear()
    for line in steps[len(report.values["steps"]) :]:
        report.step(line["loss"], line["grad_norm"], line["tokens"], line["examples"])


def _of_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Batch and settings of the current plan."""
    schedule, chosen = plan["schedule"], {key: choice["value"] for key, choice in plan["choices"].items()}
    load = plan["calls"][0]["kwargs"]
    parts = ["4-bit" if load.get("load_in_4bit") else f"{load['dtype']} weights"]
    parts.append("packed" if chosen["train.packing"] else "not packed")
    checkpointing = chosen["train.gradient_checkpointing"]
    parts.append("no checkpointing" if checkpointing is False else f"checkpointing {checkpointing}")
    batch = f"{schedule['per_device_train_batch_size']} x {schedule['gradient_accumulation_steps']}"
    return {"batch": batch, "settings": ", ".join(parts)}


JOBS = {
    "make": make,
    "matrix": matrix,
    "contender-1": plain,
    "contender-2": unsloth,
    "contender-3": fastft,
    "contender-4": fastft,
}


def main(arguments: Sequence[str]) -> None:
    """Do the job that the JSON argument names."""
    given = json.loads(arguments[0])
    JOBS[given["job"]](given)


if __name__ == "__main__":
    main(sys.argv[1:])
