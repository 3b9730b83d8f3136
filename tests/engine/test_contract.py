"""Every keyword of every upstream call that a plan shows is one that the installed libraries know by name.

Unsloth's GPU classes cannot be imported without a GPU: their signatures are read from their source. A `**kwargs` there
is no excuse: what goes through it is listed in PASSED_ON with the place that it must reach.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import typing
from pathlib import Path

import peft
import pytest
import torch
import trl
import unsloth
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SchedulerType,
    Trainer,
    TrainingArguments,
)
from transformers.training_args import OptimizerNames

from fastft.planning.calls import Call, shard_call
from fastft.planning.facts import Facts
from fastft.planning.plan import make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.layers import LORA_TARGETS
from fastft.probe.software import installed
from fastft.recipe.loader import load
from fastft.recipe.model import Scheduler
from fastft.recipe.optimizers import OPTIMIZERS
from tests.engine.tiny import ROOT
from tests.golden import row_facts

A100 = Device("cuda", "NVIDIA A100-SXM4-80GB", 80 * GIB, 1, computes_bfloat16=True)
T4 = Device("cuda", "Tesla T4", 15 * GIB, 1, computes_bfloat16=False)
CPU = Device("cpu", "CPU (x86_64, 2 cores)", 16 * GIB, 1, computes_bfloat16=False)
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
# Keys that the shipped recipes leave out and that become keywords of their own.
MORE = [
    "lora.use_dora=true",
    "model.attn_implementation=sdpa",
    "train.neftune_noise_alpha=5.0",
    "train.tf32=true",
    "train.eval_strategy=steps",
    "train.eval_steps=1",
    "train.save_strategy=steps",
    "train.save_steps=1",
    "train.load_best_model_at_end=true",
    "train.early_stopping_patience=1",
    'train.deepspeed="zero2"',
    'data.add_tokens=["<think>"]',
    'data.add_special_tokens=["<call>"]',
]
# What Unsloth's GPU loader does not name: (where it goes through **kwargs, the callable that must name it).
PASSED_ON = {
    "use_dora": (("models/llama.py", "FastLlamaModel", "get_peft_model"), peft.LoraConfig),
    "ensure_weight_tying": (("models/llama.py", "FastLlamaModel", "get_peft_model"), peft.LoraConfig),
}
# Unsloth's GPU loader hands this to the loaders of other families; that of Llama models picks its attention itself.
DROPPED = {"attn_implementation"}


# Of a config with labels.
HEAD = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}


def plans(recipe: Path, engine: str, device: Device) -> list[Call]:
    """The calls of a shipped recipe on `device`, as it stands and with the keys that it leaves out."""
    found: list[Call] = []
    if load(recipe).recipe.task != "sft":
        engine = "transformers"
    plain = ["train.gradient_checkpointing=true"] if engine == "transformers" else []
    for more in ([], MORE):
        task = load(recipe).recipe.task
        fits = [one for one in more if task == "sft" or "deepspeed" not in one]
        fits = [one for one in fits if task != "classification" or "tokens" not in one]
        overrides = [f"model.engine={engine}", *plain, *fits]
        data = load(recipe).recipe.data
        if more and data.eval is None and data.eval_fraction is None:
            overrides.append("data.eval_fraction=0.1")
        loaded = load(recipe, overrides)
        facts = Facts(
            device,
            installed(),
            BaseModel(loaded.recipe.model.id, "hub", None),
            1000,
            100,
            100 * GIB,
            row_facts([100] * 1000),
        )
        found += make_plan(loaded, facts, "runs/x").calls.in_order
    return found


@functools.cache
def definition(file: str, owner: str, function: str) -> ast.FunctionDef:
    """Unsloth's `owner.function`, parsed from its source."""
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    [wanted] = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return wanted


def parameters_in_source(file: str, owner: str, function: str) -> set[str]:
    """The names of the parameters of Unsloth's `owner.function`."""
    arguments = definition(file, owner, function).args
    return {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}


def known_parameters(name: str, device: Device) -> set[str]:
    """The parameters that the callable of a plan names."""
    if name == "unsloth.FastLanguageModel.from_pretrained":
        if device.is_gpu:
            return parameters_in_source("models/loader.py", "FastLanguageModel", "from_pretrained") | DROPPED
        return set(inspect.signature(unsloth.FastLanguageModel.from_pretrained).parameters) | _popped_on_cpu()
    if name == "unsloth.FastLanguageModel.get_peft_model":
        if device.is_gpu:
            named = parameters_in_source("models/llama.py", "FastLlamaModel", "get_peft_model")
        else:
            named = set(inspect.signature(unsloth.FastLanguageModel.get_peft_model).parameters)
        return named | set(PASSED_ON)
    if name == "trl.SFTConfig":
        return {field.name for field in dataclasses.fields(trl.SFTConfig)}
    if name == "transformers.PreTrainedTokenizerBase.add_tokens":
        return set(inspect.signature(PreTrainedTokenizerBase.add_tokens).parameters)
    if name == "peft.LoraConfig":
        return set(inspect.signature(peft.LoraConfig).parameters)
    if name == "transformers.TrainingArguments":
        return {field.name for field in dataclasses.fields(TrainingArguments)}
    head: set[str] = set()
    if name == "transformers.AutoModelForSequenceClassification.from_pretrained":
        # What is not the loader's goes to the config.
        head = {key for key in HEAD if hasattr(PreTrainedConfig(**{key: HEAD[key]}), key)}
        name = "transformers.AutoModelForCausalLM.from_pretrained"
    assert name == "transformers.AutoModelForCausalLM.from_pretrained"
    # The auto class hands on what it does not take itself.
    named = set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    text = inspect.getsource(PreTrainedModel.from_pretrained) + inspect.getsource(AutoModelForCausalLM.from_pretrained)
    taken = {
        key
        for key in ("dtype", "trust_remote_code", "quantization_config", "attn_implementation")
        if f'"{key}"' in text
    }
    return named | taken | head


def _popped_on_cpu() -> set[str]:
    """What the CPU loader takes out of its **kwargs by name."""
    text = inspect.getsource(unsloth.FastLanguageModel.from_pretrained)
    return {"use_exact_model_name"} if '"use_exact_model_name"' in text else set()


@pytest.mark.parametrize("device", [A100, T4, CPU], ids=["A100", "T4", "CPU"])
@pytest.mark.parametrize("engine", ["unsloth", "transformers"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_keyword_of_a_plan_is_known_upstream(recipe: Path, engine: str, device: Device) -> None:
    unknown = [
        f"{call.name}({key}=)"
        for call in plans(recipe, engine, device)
        for key in call.kwargs
        if key not in known_parameters(call.name, device)
    ]
    assert unknown == []


def test_every_keyword_of_splitting_a_model_is_known_to_torch() -> None:
    call = shard_call(load(RECIPES[0], ['train.fsdp="full_shard"']).recipe)

    assert call is not None
    assert call.name == f"{fully_shard.__module__}.{fully_shard.__name__}"
    assert call.kwargs.keys() <= inspect.signature(fully_shard).parameters.keys()


@pytest.mark.parametrize("keyword", PASSED_ON)
def test_a_keyword_that_is_passed_on_is_known_where_it_arrives(keyword: str) -> None:
    place, target = PASSED_ON[keyword]
    called = definition(*place)
    assert called.args.kwarg is not None
    assert keyword in inspect.signature(target).parameters
    # The very function does arguments = dict(..., **kwargs) and LoraConfig(**arguments).
    text = ast.unparse(called)
    assert "LoraConfig(**arguments)" in text
    assert "**kwargs)" in text


def test_unsloth_still_picks_the_attention_of_llama_models_itself() -> None:
    text = ast.unparse(definition("models/llama.py", "FastLlamaModel", "from_pretrained"))
    assert "kwargs.pop('attn_implementation', None)" in text


def test_the_quantization_of_plain_transformers_is_one_that_it_knows() -> None:
    recipe = next(path for path in RECIPES if path.stem == "llama31_sft")
    call = next(call for call in plans(recipe, "transformers", A100) if "quantization_config" in call.kwargs)
    assert set(call.kwargs["quantization_config"]) <= set(inspect.signature(BitsAndBytesConfig).parameters)


def test_no_optimizer_of_transformers_is_forgotten() -> None:
    upstream = [row.upstream for row in OPTIMIZERS.values() if row.upstream is not None]

    assert sorted(upstream) == sorted(entry.value for entry in OptimizerNames)


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if row.class_name])
def test_every_other_optimizer_is_a_class_with_its_arguments(name: str) -> None:
    module, _, kind = OPTIMIZERS[name].class_name.rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(module), kind)).parameters

    assert {*OPTIMIZERS[name].arguments, *OPTIMIZERS[name].fixed, "weight_decay"} <= set(known)
    for key, argument in OPTIMIZERS[name].arguments.items():
        assert known[key].default == argument.default or key in OPTIMIZERS[name].fixed


@pytest.mark.parametrize("name", typing.get_args(Scheduler))
def test_every_scheduler_of_the_recipe_is_one_of_transformers(name: str) -> None:
    assert name in {entry.value for entry in SchedulerType}


@pytest.mark.parametrize("name", typing.get_args(Scheduler))
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adafactor", "rmsprop", "sgd"])
def test_a_step_can_be_taken_with_it_on_a_processor(name: str, optimizer: str, tmp_path: Path) -> None:
    arguments = trl.SFTConfig(str(tmp_path), optim=optimizer, lr_scheduler_type=name, report_to="none", bf16=False)
    trainer = Trainer(torch.nn.Linear(2, 2), arguments)
    trainer.create_optimizer_and_scheduler(10)
    assert trainer.lr_scheduler is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this asserts what Unsloth's CPU backend patches")
def test_the_trainer_of_trl_is_the_one_that_unsloth_put_there() -> None:
    from fastft.engine.trainer import SftTrainer

    patched = trl.SFTTrainer
    assert issubclass(SftTrainer, patched)
    assert patched._unsloth_cpu
    assert patched.__mro__[1].compute_loss._unsloth_cpu
    assert trl.SFTConfig.__post_init__._unsloth_cpu


def test_the_usual_targets_are_those_of_peft() -> None:
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    assert {kind: tuple(known[kind]) for kind in LORA_TARGETS} == dict(LORA_TARGETS)
