"""What stops this machine from running a sound recipe, each with what is missing and what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastft.errors import Problem, Where
from fastft.planning.choices import Choices, choose_optimizer
from fastft.planning.disk import Disk
from fastft.planning.facts import Facts
from fastft.planning.memory import NF4_BLOCK
from fastft.planning.sharding import sharding_obstacles
from fastft.probe.architecture import architecture_of
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.layers import missing_targets
from fastft.probe.software import CEILINGS, INSTALL, NEEDED, TESTED, below_floor, release
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.optimizers import OPTIMIZERS, Optimizer
from fastft.recipe.reporters import EXTRAS, missing_for

# <|eot_id|>, and all tokens of Llama 3, 3.1, 3.2 and 3.3 (their config.json).
LLAMA_3_END_OF_TURN, LLAMA_3_VOCABULARY = 128_009, 128_256


def find_obstacles(loaded: LoadedRecipe, facts: Facts, disk: Disk, choices: Choices) -> tuple[Problem, ...]:
    """Every obstacle, most basic first."""
    engine = choices.engine.value
    return (
        *_software(loaded, facts.installed, engine),
        *missing_packages(loaded, facts.installed, facts.device),
        *(_gpu(loaded, facts.device, engine) if facts.device.is_gpu else _processor(loaded, facts.base_model)),
        *_compilers(loaded, facts, OPTIMIZERS[choices.optim.value]),
        *_ranks(loaded, facts, engine),
        *sharding_obstacles(loaded, facts, choices),
        *_targets(loaded, facts.base_model, choices.target_modules.value),
        *_untrained(loaded, facts.device, facts.base_model, engine),
        *_memory(loaded, facts.device, facts.base_model),
        *_disk(loaded, disk, facts.read_only),
    )


def _software(loaded: LoadedRecipe, installed: Mapping[str, str], engine: str) -> Iterator[Problem]:
    wanted = (*NEEDED, *(["unsloth"] if engine == "unsloth" else []))
    missing = [name for name in wanted if name not in installed]
    if missing:
        yield loaded.problem("model.engine", f"{', '.join(missing)} not installed", f"run: {INSTALL}")
    for wrong, fix in below_floor(installed):
        yield loaded.problem("model.engine", wrong, f"run: {fix}")
    for name, ceiling in CEILINGS.items() if engine == "unsloth" else ():
        if name in installed and release(installed[name]) >= ceiling:
            wrong = f"{name} {installed[name]} is newer than Unsloth {TESTED['unsloth']} works with"
            instead = f'run: pip install {name}=={TESTED[name]}, or write engine = "transformers"'
            yield loaded.problem("model.engine", wrong, instead)


def missing_packages(
    loaded: LoadedRecipe, installed: Mapping[str, str], device: Device | None = None
) -> Iterator[Problem]:
    """What needs a package that is not installed: what the recipe names, and what `device` takes by default.

    Nothing where the training libraries are not installed at all: the command that installs them is said already.
    """
    if "transformers" not in installed:
        return
    optimizer = OPTIMIZERS[loaded.recipe.train.optim]
    if device is not None:
        optimizer = OPTIMIZERS[choose_optimizer(loaded.recipe, device).value]
    absent = [name for name in optimizer.packages if name not in installed]
    if absent and (device or "train.optim" in loaded.given):
        wrong = f"{optimizer.name} needs {', '.join(absent)}, not installed"
        instead = f'run: pip install {" ".join(absent)}, or write "adamw_torch"'
        yield loaded.problem("train.optim", wrong, instead)
    if loaded.recipe.model.load_in_4bit is True and "bitsandbytes" not in installed:
        instead = "run: pip install bitsandbytes, or write false"
        yield loaded.problem("model.load_in_4bit", "4-bit weights need bitsandbytes, not installed", instead)
    reporters = loaded.recipe.train.report_to
    for name in () if reporters == "none" else reporters:
        if missing := missing_for(name, installed):
            wrong = f"{name} needs {', '.join(missing)}, not installed"
            packages = f'"fastft[{name}]"' if name in EXTRAS else " ".join(missing)
            yield loaded.problem("train.report_to", wrong, f'run: pip install {packages}, or write "none"')


def _gpu(loaded: LoadedRecipe, device: Device, engine: str) -> Iterator[Problem]:
    recipe = loaded.recipe
    if recipe.train.bf16 is True and not device.computes_bfloat16:
        yield loaded.problem("train.bf16", f"{device} does not compute in bfloat16", "write fp16 = true instead")
    mixed = recipe.train.bf16 is True or recipe.train.fp16 is True
    if engine == "unsloth" and device.computes_bfloat16 and not mixed:
        instead = 'take the line away, or write engine = "transformers"'
        wrong = "on this GPU Unsloth computes in bfloat16 all the same, without its fused layers"
        if recipe.model.dtype == "float32":
            yield loaded.problem("model.dtype", wrong, instead)
        elif recipe.train.bf16 is False:
            yield loaded.problem("train.bf16", wrong, instead)
    if engine == "unsloth" and recipe.model.attn_implementation != "auto":
        wrong = "has no effect: on a GPU, Unsloth picks the attention itself"
        instead = 'take the line away, or write engine = "transformers"'
        yield loaded.problem("model.attn_implementation", wrong, instead)


def _processor(loaded: LoadedRecipe, model: BaseModel) -> Iterator[Problem]:
    recipe = loaded.recipe
    shape = architecture_of(recipe.model.id, model.config)
    if recipe.model.load_in_4bit is True and shape is not None:
        odd = {name: inputs for name, (inputs, _) in shape.projections.items() if inputs % NF4_BLOCK}
        if odd:
            name, inputs = next(iter(odd.items()))
            wrong = f"bitsandbytes misreads 4-bit rows of {inputs} weights ({name}) on a processor"
            instead = f"write false: only rows of a multiple of {NF4_BLOCK} are read right without a GPU"
            yield loaded.problem("model.load_in_4bit", wrong, instead)


def _compilers(loaded: LoadedRecipe, facts: Facts, optimizer: Optimizer) -> Iterator[Problem]:
    """What compiles, where nothing can."""
    needed, package = ("cc", "gcc libc6-dev") if facts.device.is_gpu else ("c++", "g++")
    if needed in facts.compilers:
        return
    wrong = f"needs a {'C' if facts.device.is_gpu else 'C++'} compiler, and none is found"
    if loaded.recipe.train.torch_compile:
        yield loaded.problem("train.torch_compile", wrong, f"run: apt-get install {package}, or write false")
    if optimizer.compiles:
        instead = f'run: apt-get install {package}, or write "adamw_torch"'
        yield loaded.problem("train.optim", f"{optimizer.name} compiles its step: it {wrong}", instead)


def _ranks(loaded: LoadedRecipe, facts: Facts, engine: str) -> Iterator[Problem]:
    """What several processes cannot do."""
    if facts.processes == 1:
        return
    if engine == "unsloth" and not facts.device.is_gpu:
        wrong = f"{facts.processes} processes on processors: Unsloth shares work among GPUs alone"
        yield loaded.problem("model.engine", wrong, 'write "transformers" or "auto"')


def _targets(loaded: LoadedRecipe, model: BaseModel, targets: tuple[str, ...]) -> Iterator[Problem]:
    """Layers that should get an adapter and that the model does not have; of the default ones, some may lack."""
    missing, there = missing_targets(model, targets)
    if missing and ("lora.target_modules" in loaded.given or len(missing) == len(targets)):
        wrong = f"this model has no layer {', '.join(missing)}"
        yield loaded.problem("lora.target_modules", wrong, f"its layers are {', '.join(there)}")


def _untrained(loaded: LoadedRecipe, device: Device, model: BaseModel, engine: str) -> Iterator[Problem]:
    """Meta's Llama 3 bases never saw the tokens of the chat template; their Instruct forms end an answer with one."""
    recipe = loaded.recipe
    ends = model.config.get("eos_token_id", LLAMA_3_END_OF_TURN)
    if not device.is_gpu or engine != "unsloth" or not recipe.data.chat_template.startswith("llama-3"):
        return
    if LLAMA_3_END_OF_TURN in (ends if isinstance(ends, list) else [ends]) or recipe.model.full_finetuning:
        return
    if model.config.get("vocab_size") == LLAMA_3_VOCABULARY and not recipe.lora.modules_to_save:
        wrong = "this base model was never trained on the tokens of this template"
        instead = 'take the Instruct model, or write lora.modules_to_save = ["embed_tokens", "lm_head"]'
        yield loaded.problem("data.chat_template", wrong, instead)


def _memory(loaded: LoadedRecipe, device: Device, model: BaseModel) -> Iterator[Problem]:
    """Weights alone that exceed the memory; the peak of a run is the forecast's work."""
    if model.weight_bytes is None:
        return
    stored = model.weight_bytes
    if loaded.recipe.model.load_in_4bit is True:
        stored //= 3
    elif not device.is_gpu and model.config.get("dtype", model.config.get("torch_dtype")) in ("bfloat16", "float16"):
        stored *= 2
    if stored > device.memory_bytes:
        wrong = f"the weights take {stored / GIB:.1f} GiB, {device} has less"
        yield loaded.problem("model.id", wrong, "take a smaller model, or a device with more memory")


def _disk(loaded: LoadedRecipe, disk: Disk, read_only: str | None) -> Iterator[Problem]:
    if not disk.download_fits:
        sizes = f"{(disk.download_bytes or 0) / GIB:.2f} GiB, {(disk.free_cache_bytes or 0) / GIB:.2f} GiB are free"
        yield loaded.problem("model.id", f"its download takes {sizes}", "free some space, or set HF_HOME elsewhere")
    if read_only is not None:  # such a disk may say that nothing is free
        instead = "make it writable, or name another folder"
        yield Problem(Where("--runs-dir"), "", "this folder is read-only", instead, read_only)
        return
    if disk.needed_bytes <= disk.free_bytes:
        return
    wrong = f"the run writes up to {disk.needed_bytes / GIB:.2f} GiB, {disk.free_bytes / GIB:.2f} GiB are free"
    instead = "free some space, name another --runs-dir, keep fewer checkpoints or export less"
    yield loaded.problem("train.save_total_limit", wrong, instead)
