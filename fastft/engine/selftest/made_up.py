"""A tiny made-up model with its rows, trained by fastft's own path: what the self-test tries its promises on."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Vocabulary
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastft.data.prepare import Prepared, prepare
from fastft.data.tokenizer import load_tokenizer
from fastft.engine.model import Model, Tokenizer, load_model
from fastft.engine.train import Material, make_trainer, train
from fastft.engine.trainer import Hooks, RunTrainer
from fastft.planning.facts import find_facts, with_rows
from fastft.planning.plan import Plan, make_plan
from fastft.recipe.loader import load
from fastft.runs.directory import RunDir, create_run_dir
from fastft.runs.metrics import StepMetrics

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SEED = 11
# Rows of an optimizer step, and their number in all: two steps.
STEP, ROWS = 4, 8
RECIPE = """\
[model]
id = "model"
engine = "{engine}"
max_seq_length = 256
load_in_4bit = {in_4bit}
[lora]
r = 4
lora_alpha = 8
[data]
train = "rows.jsonl"
eval = "held_out.jsonl"
[train]
max_steps = 2
learning_rate = 1e-2
lr_scheduler_type = "constant"
optim = "adamw_torch"
gradient_checkpointing = false
save_strategy = "steps"
save_steps = 1
seed = 11
"""


class Bench:
    """The made-up model with its rows, and runs of it in `folder`; every run begins with the same weights."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder, self.engine = folder, engine
        self.on_gpu = torch.cuda.is_available()
        make_model(folder / "model")
        for name, first in (("rows", 0), ("held_out", 100)):
            text = "".join(json.dumps(row) + "\n" for row in make_rows(ROWS, first))
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def job(self, name: str, *, in_4bit: bool = False, **train: Any) -> BenchRun:
        """A run of the recipe, with `train` in its [train] section; not yet loaded."""
        values = {"per_device_train_batch_size": STEP, "gradient_accumulation_steps": 1, **train}
        recipe = self.folder / f"{name}.toml"
        recipe.write_text(
            RECIPE.format(engine=self.engine, in_4bit=json.dumps(in_4bit))
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()),
            encoding="utf-8",
        )
        loaded = load(recipe)
        runs = self.folder / "runs"
        facts = find_facts(loaded, runs)
        prepared = prepare(
            loaded.recipe.data,
            load_tokenizer(self.folder / "model"),
            max_seq_length=loaded.recipe.model.max_seq_length,
            seed=SEED,
            recipe_dir=self.folder,
            locate=loaded.where,
        )
        run = create_run_dir(runs, loaded)
        return BenchRun(make_plan(loaded, with_rows(facts, loaded.recipe, prepared), str(run.path)), prepared, run)

    @functools.cached_property
    def trained(self) -> TrainedBench:
        """The model after two steps of four rows, and what its base was before."""
        job = self.job("two-steps")
        model, tokenizer = job.load()
        frozen = {
            name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad
        }
        steps = job.train(model, tokenizer)
        return TrainedBench(job, model, tokenizer, frozen, steps)


@dataclass(frozen=True)
class BenchRun:
    """Everything that the engine is given for a run of the made-up model."""

    plan: Plan
    prepared: Prepared
    run: RunDir

    def load(self) -> tuple[Model, Tokenizer]:
        """The model with its adapter, and the tokenizer."""
        template = self.prepared.template
        return load_model(self.plan, None if template is None else template.source)

    @property
    def material(self) -> Material:
        return Material(self.prepared.train.rows, None, (), (), 8, None)

    def train(
        self, model: Model, tokenizer: Tokenizer, checkpoint: Path | None = None, *, stop: bool = False
    ) -> list[StepMetrics]:
        """Train to the end, or to the first step with `stop`; the line of each step."""
        steps: list[StepMetrics] = []
        hooks = Hooks(nothing, nothing, steps.append, nothing, lambda: stop)
        train(self.plan, model, tokenizer, self.material, self.run, hooks, checkpoint)
        return steps

    def trainer(self) -> RunTrainer:
        """The trainer of the run, with a freshly loaded model."""
        model, tokenizer = self.load()
        hooks = Hooks(nothing, nothing, nothing, nothing, lambda: False)
        return make_trainer(self.plan, model, tokenizer, self.material, self.run, hooks)


@dataclass(frozen=True)
class TrainedBench:
    """A trained bench run: the model, its base's weights from before, the line of each step."""

    job: BenchRun
    model: Model
    tokenizer: Tokenizer
    frozen: dict[str, torch.Tensor]
    steps: list[StepMetrics]


def nothing(_: object) -> None:
    """For news that nobody needs here."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that reads bytes and one pair of them, with ChatML's special tokens and template."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "es"]
    # llama.cpp loads no BPE tokenizer without a merge.
    tokenizer = Vocabulary(models.BPE({token: number for number, token in enumerate(tokens)}, [("e", "s")]))
    # The cut of SmolLM, which llama.cpp knows by name.
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.chat_template = CHATML
    return fast


def make_model(folder: Path) -> None:
    """Save a Llama of 2 layers and width 256 with random weights, and its tokenizer."""
    fast = make_tokenizer()
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        # Heads of 64, as real models have them: attention kernels for GPUs refuse narrow ones.
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=False,
        # Five times the usual width: the losses of single tokens, and so wrong means of them, then lie far apart.
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def make_rows(count: int, first: int) -> Iterator[dict[str, Any]]:
    """Conversations whose answers are of 2 to 60 letters: a mean of rows is then no mean of tokens."""
    for number in range(first, first + count):
        answer = "yes" * (1 + number * 7 % 20)
        turns = [
            {"role": "user", "content": f"{number}: {'why? ' * (number % 3)}"},
            {"role": "assistant", "content": answer},
        ]
        yield {"messages": turns}
