"""Sharing a model among ranks with DeepSpeed: its configuration with every number filled in, and what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastft.errors import Problem
from fastft.planning.choices import Choices
from fastft.planning.facts import Facts
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.model import Recipe
from fastft.recipe.shardings import FSDP2, ZERO_STAGES

# What a configuration file may hold; what else there is changes rows, batches or the model itself.
_KNOWN = (
    "zero_optimization",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "steps_per_print",
    "wall_clock_breakdown",
    "communication_data_type",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
_INSTEAD = {
    "optimizer": "take it out: train.optim and train.learning_rate say it",
    "scheduler": "take it out: train.lr_scheduler_type and the warm-up of the recipe say it",
}
# Their state is split anywhere, also within a matrix: each number must be updated by itself.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "rmsprop", "sgd")


def deepspeed_file_problems(text: str) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to write instead) in a DeepSpeed configuration, as far as no number of the plan is needed.

    `text`: that of the file.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield f"is not valid JSON: {error}", "correct the file"
        return
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in ZERO_STAGES.values():
        yield "says no zero_optimization.stage of 1, 2 or 3", 'write it, or take the shipped "zero2"'
        return
    for name in config.keys() - set(_KNOWN):
        yield f"has {name}, which is not known here", _INSTEAD.get(name, "take it out")
    for name in ("offload_optimizer", "offload_param"):
        target = (zero.get(name) or {}).get("device", "none")
        if target not in ("none", "cpu"):
            yield f"moves to {target} with zero_optimization.{name}", 'write "cpu" or "none"'
    autos = [name for name, value in zero.items() if value == "auto" and name not in _BY_WIDTH]
    if autos:
        yield f"has zero_optimization.{autos[0]} = auto", "write a value"


# What transformers makes of "auto" (integrations/deepspeed.py, trainer_config_finalize): by the width of the model.
_BY_WIDTH: dict[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda width: width * width,
    "stage3_prefetch_bucket_size": lambda width: int(0.9 * width * width),
    "stage3_param_persistence_threshold": lambda width: 10 * width,
}


def _shipped(stage: int, width: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {name: by_width(width) for name, by_width in _BY_WIDTH.items()}
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {"zero_optimization": zero}


def _sections(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """The configuration as it is shipped or as the file says."""
    name, width = str(recipe.train.deepspeed), int(facts.base_model.config.get("hidden_size") or 4096)
    if name in ZERO_STAGES:
        return _shipped(ZERO_STAGES[name], width)
    read: dict[str, Any] = json.loads(facts.deepspeed or '{"zero_optimization": {"stage": 2}}')
    zero = read["zero_optimization"]
    wide = {key: by_width(width) for key, by_width in _BY_WIDTH.items() if zero.get(key) == "auto"}
    return read | {"zero_optimization": zero | wide}


def _numbers(recipe: Recipe, facts: Facts, choices: Choices) -> dict[str, Any]:
    """What the plan decides, in DeepSpeed's words."""
    batch, accumulation = recipe.train.per_device_train_batch_size, choices.gradient_accumulation_steps.value
    return {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": None if accumulation is None else batch * accumulation * facts.processes,
        "gradient_clipping": recipe.train.max_grad_norm,
        "bf16": {"enabled": choices.bf16.value},
        "fp16": {"enabled": choices.fp16.value},
    }


def deepspeed_config(recipe: Recipe, facts: Facts, choices: Choices) -> dict[str, Any] | None:
    """The whole configuration of DeepSpeed, without an "auto"; None where the recipe asks for none."""
    if recipe.train.deepspeed is None:
        return None
    sections, numbers = _sections(recipe, facts), _numbers(recipe, facts, choices)
    filled = {name: {**_section(sections, name), **value} for name, value in numbers.items() if isinstance(value, dict)}
    # The trainer's own optimizer also where its state is moved to main memory: DeepSpeed's would have to be compiled.
    return sections | numbers | filled | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def _section(sections: dict[str, Any], name: str) -> dict[str, Any]:
    found = sections.get(name)
    return found if isinstance(found, dict) else {}


def sharing(loaded: LoadedRecipe, facts: Facts) -> str:
    """How the recipe shares the model, by the name that `--engine` takes."""
    train = loaded.recipe.train
    if train.fsdp is not None:
        return FSDP2
    return "ddp" if train.deepspeed is None else f"zero{_sections(loaded.recipe, facts)['zero_optimization']['stage']}"


def sharding_obstacles(loaded: LoadedRecipe, facts: Facts, choices: Choices) -> Iterator[Problem]:
    """What stops this machine from sharing the model as the recipe says."""
    if not loaded.recipe.train.shares_model:
        return
    config, field = deepspeed_config(loaded.recipe, facts, choices), "train.deepspeed"
    if config is None:
        field = "train.fsdp"
    if facts.processes == 1:
        wrong = "shares the model among several processes, and this is one"
        yield loaded.problem(field, wrong, "start them with `fastft launch`, or take the line away")
    if config is not None and "transformers" in facts.installed and "deepspeed" not in facts.installed:
        yield loaded.problem("train.deepspeed", "DeepSpeed is not installed", 'run: pip install "fastft[deepspeed]"')
    if choices.engine.value == "unsloth":
        wrong = "Unsloth holds the whole model in each process: it shares rows alone"
        instead = f'write "transformers" or "auto", or take {field} away'
        yield loaded.problem("model.engine", wrong, instead)
    if choices.optim.value not in ELEMENTWISE:
        wrong = "is not split among processes"
        yield loaded.problem("train.optim", wrong, f"write one of {', '.join(ELEMENTWISE)}")
    if config is None:
        yield from _not_in_fsdp(loaded)
        return
    yield from _impossible_parts(loaded, facts, config)
    yield from _other_numbers(loaded, facts, choices)


def _not_in_fsdp(loaded: LoadedRecipe) -> Iterator[Problem]:
    """What torch's FSDP2 cannot split, or what is not proven with it."""
    if loaded.recipe.model.load_in_4bit is True:
        instead = 'write false, or train.deepspeed = "zero2" instead of train.fsdp'
        yield loaded.problem("model.load_in_4bit", "4-bit weights are not split among processes", instead)
    if loaded.recipe.train.torch_compile:
        wrong = "a split model is not compiled"
        yield loaded.problem("train.torch_compile", wrong, "write false, or take train.fsdp away")
    if loaded.recipe.train.fp16 is True:
        wrong = "the loss scale of float16 is not shared by FSDP2's ranks"
        yield loaded.problem("train.fp16", wrong, "write bf16 = true, or take train.fsdp away")


def _impossible_parts(loaded: LoadedRecipe, facts: Facts, config: Mapping[str, Any]) -> Iterator[Problem]:
    """What cannot be split, and what cannot be moved out of the way."""
    if loaded.recipe.model.load_in_4bit is True and config["zero_optimization"]["stage"] == 3:
        instead = 'write false, or train.deepspeed = "zero2"'
        yield loaded.problem("model.load_in_4bit", "4-bit weights are not split among processes", instead)
    if loaded.recipe.adds_tokens and config["zero_optimization"]["stage"] == 3:
        wrong = "ZeRO-3 splits the embedding among processes, where it cannot grow"
        field = "data.add_tokens" if loaded.recipe.data.add_tokens else "data.add_special_tokens"
        yield loaded.problem(field, wrong, 'write train.deepspeed = "zero2", or remove the line')
    if not facts.device.is_gpu:
        for name in ("offload_optimizer", "offload_param"):
            if _section(config["zero_optimization"], name).get("device", "none") != "none":
                wrong = f"has zero_optimization.{name}, and there is no GPU memory to make room in"
                yield loaded.problem("train.deepspeed", wrong, "take it out")


def _other_numbers(loaded: LoadedRecipe, facts: Facts, choices: Choices) -> Iterator[Problem]:
    """Numbers of a configuration file that are not those of the plan."""
    if loaded.recipe.train.deepspeed in (None, *ZERO_STAGES):
        return
    sections = _sections(loaded.recipe, facts)
    for name, planned in _numbers(loaded.recipe, facts, choices).items():
        written = sections.get(name, "auto")
        if isinstance(planned, dict):
            written, planned = _section(sections, name).get("enabled", "auto"), planned["enabled"]
        if written not in ("auto", planned) and planned is not None:
            wrong = f"says {name} = {json.dumps(written)}, the recipe makes it {json.dumps(planned)}"
            yield loaded.problem("train.deepspeed", wrong, f'write "auto" or {json.dumps(planned)}')
