"""A tiny random Llama, its tokenizer, its rows and its recipes, all made in code, and runs of them in seconds."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastft.commands.run import run as run_pipeline
from fastft.data.added_tokens import tokenizer_of
from fastft.data.prepare import Prepared, prepare
from fastft.engine.model import load_model
from fastft.engine.selftest.made_up import CHATML, SPECIAL
from fastft.engine.train import Material, make_trainer
from fastft.engine.trainer import Hooks, RunTrainer
from fastft.errors import Interrupted
from fastft.planning.facts import find_facts, with_rows
from fastft.planning.plan import Plan, make_plan
from fastft.recipe.loader import load
from fastft.runs.directory import RunDir, create_run_dir
from fastft.stages.attempt import Start

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "black", "white", "grey", "brown", "pink")


def make_model(folder: Path, seed: int = 0) -> Path:
    """Save a Llama of 2 layers and width 64 that reads one token a byte: some 100,000 random weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        # Ten times the usual width of random weights: with it, adapters alone can move the output to any token.
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one or two turns and of very different lengths, no two alike."""
    chance = random.Random(seed)  # noqa: S311 -- not for secrets
    rows = []
    for number in range(count):
        question = f"{number}: " + " ".join(chance.choices(COLOURS, k=chance.choice((1, 2, 3, 8, 16))))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": question.split()[1]}]
        if number % 3 == 0:
            messages += [
                {"role": "user", "content": "and last?"},
                {"role": "assistant", "content": question.split()[-1]},
            ]
        rows.append({"messages": messages})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, model: Path, changes: Mapping[str, Any] | None = None, name: str = "tiny") -> Path:
    """Write a recipe for `model` on `folder`/train.jsonl; `changes` are {"section.key": value}, None takes a key away.

    Its defaults: an adapter of rank 4, 4 rows an optimizer step, 12 steps over 2 epochs of 24 rows, a checkpoint and a
    metrics line at each step.
    """
    values: dict[str, Any] = {
        "model.id": str(model),
        "model.max_seq_length": 256,
        "lora.r": 4,
        "lora.lora_alpha": 8,
        "data.train": "train.jsonl",
        "train.per_device_train_batch_size": 4,
        "train.num_train_epochs": 2,
        "train.learning_rate": 1e-2,
        "train.optim": "adamw_torch",
        "train.gradient_checkpointing": False,
        "train.save_strategy": "steps",
        "train.save_steps": 1,
        "train.save_total_limit": 20,
        "train.seed": 11,
        **(changes or {}),
    }
    lines = []
    for section in ("model", "lora", "classification", "data", "train", "eval", "export"):
        lines.append(f"[{section}]")
        for key, value in values.items():
            if key.startswith(f"{section}.") and value is not None:
                # JSON is TOML for strings, numbers, booleans and flat arrays.
                lines.append(f"{key.partition('.')[2]} = {json.dumps(value)}")
    if not (folder / "train.jsonl").exists():
        write_rows(folder / "train.jsonl", make_rows(24))
    recipe = folder / f"{name}.toml"
    recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return recipe


@dataclass(frozen=True)
class Ran:
    """A finished run: its folder, and what the user saw meanwhile."""

    folder: RunDir
    shown: str

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The metrics line of each logged step."""
        return [event for event in events(self.folder) if event["event"] == "step"]

    @property
    def losses(self) -> list[str]:
        """The loss of each logged step, every bit of it."""
        return [float(step["loss"]).hex() for step in self.steps]

    @property
    def result(self) -> dict[str, Any]:
        """result.json."""
        return read_result(self.folder)


def read_result(folder: RunDir) -> dict[str, Any]:
    """result.json."""
    result: dict[str, Any] = json.loads((folder.path / "result.json").read_text(encoding="utf-8"))
    return result


def events(folder: RunDir) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]


def run(recipe: Path, *, resume: bool = False, start: Start | None = None, shown: io.StringIO | None = None) -> Ran:
    """`fastft run` in this process, into `runs` beside the recipe. What the user sees goes to `shown`."""
    shown = io.StringIO() if shown is None else shown
    console = Console(file=shown, width=200)
    folder = run_pipeline(recipe, [], recipe.parent / "runs", start or Start(resume=resume), console)
    return Ran(folder, shown.getvalue())


class SignalAt(io.StringIO):
    """What a user sees, and a signal to this very process as soon as `text` is shown: a kill at a known moment."""

    def __init__(self, text: str, number: signal.Signals) -> None:
        super().__init__()
        self._text, self._number = text, number

    def write(self, text: str) -> int:
        if self._text in text and self._text not in self.getvalue():
            os.kill(os.getpid(), self._number)
        return super().write(text)


def stop(recipe: Path, step: int) -> tuple[RunDir, Interrupted]:
    """Run `recipe` and end it with a SIGTERM that arrives after optimizer step `step - 1` and before `step` is done."""
    with pytest.raises(Interrupted) as stopped:
        run(recipe, shown=SignalAt(f"step {step - 1}/", signal.SIGTERM))
    return RunDir(recipe.parent / "runs" / recipe.stem), stopped.value


@dataclass(frozen=True)
class Parts:
    """Everything that the engine is given for a run."""

    plan: Plan
    prepared: Prepared
    material: Material
    hooks: Hooks
    folder: RunDir

    def load(self) -> tuple[Any, Any]:
        """The model with its adapter, and the tokenizer."""
        template = self.prepared.template
        return load_model(self.plan, None if template is None else template.source)

    def trainer(self) -> RunTrainer:
        """The trainer of the run, with a freshly loaded model."""
        model, tokenizer = self.load()
        return make_trainer(self.plan, model, tokenizer, self.material, self.folder, self.hooks)


def make_parts(recipe: Path) -> Parts:
    """What `fastft run` makes of a recipe before the engine starts."""
    loaded = load(recipe)
    runs = recipe.parent / "runs"
    facts = find_facts(loaded, runs)
    assert facts.base_model.folder is not None
    section = loaded.recipe
    tokenizer = tokenizer_of(section.data, facts.base_model.folder, loaded.where)
    prepared = prepare(
        section.data,
        tokenizer,
        max_seq_length=section.model.max_seq_length,
        seed=section.train.seed,
        recipe_dir=loaded.folder,
        locate=loaded.where,
        own=section.labelled,
    )
    folder = create_run_dir(runs, loaded)
    plan = make_plan(loaded, with_rows(facts, section, prepared), str(folder.path))
    held_out = None if prepared.eval is None else prepared.eval.rows
    material = Material(prepared.train.rows, held_out, (), (), 8, section.train.early_stopping_patience)
    hooks = Hooks(lambda _: None, lambda _: None, lambda _: None, lambda _: None, lambda: False)
    return Parts(plan, prepared, material, hooks, folder)


def command(recipe: Path, *more: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`fastft run` as a process of its own, in `cwd`, with a cache of its own there."""
    values = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    values.pop("FASTFT_ENGINE", None)
    return subprocess.Popen(
        [sys.executable, "-m", "fastft", "run", str(recipe), *more],
        cwd=cwd,
        env=values,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
