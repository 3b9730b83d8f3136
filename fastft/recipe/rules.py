"""Rules between keys of a recipe: contradictions, and keys that would have no effect.

A rule gets a recipe whose single values are valid, and `given`, the keys that the user wrote. It yields violations and
changes nothing. fastft.planning.check checks what needs the data or the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fastft.errors import nearest
from fastft.recipe.classification_rules import classification
from fastft.recipe.conditions import parse_condition
from fastft.recipe.model import Recipe, TrainSection
from fastft.recipe.needs import needs
from fastft.recipe.optimizer_rules import optimizer
from fastft.recipe.optimizers import OPTIMIZERS
from fastft.recipe.preference_rules import preference
from fastft.recipe.quantizations import QUANTIZATIONS
from fastft.recipe.reporters import REPORTERS
from fastft.recipe.token_rules import added_tokens
from fastft.recipe.violation import Given, Violation


def violations(recipe: Recipe, given: Given) -> Iterator[Violation]:
    """Every rule that `recipe` breaks, in the order of the rules."""
    for rule in _RULES:
        for broken in rule(recipe, given):
            section, _, key = broken.field.rpartition(".")
            value = getattr(getattr(recipe, section) if section else recipe, key)
            yield broken if broken.got or value is None else replace(broken, got=json.dumps(value))


def _model(recipe: Recipe, _: Given) -> Iterator[Violation]:
    model = recipe.model
    forms = "write a Hub id, a local folder, or package:NAME/FILE.gguf for a file inside an installed package"
    if model.id.startswith("package:") and not re.fullmatch(r"package:[\w.-]+/[\w./-]+\.gguf", model.id):
        yield Violation("model.id", "is not package:NAME/FILE.gguf", forms)
    elif ".." in model.id.removeprefix("package:").split("/") and model.id.startswith("package:"):
        yield Violation("model.id", "leaves the package's folder", forms)
    if model.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", model.revision or ""):
        wrong = "would run code that can change at any time"
        instead = 'pin it: set model.revision = "the 40-digit commit that you have read"'
        yield Violation("model.trust_remote_code", wrong, instead, ("model.revision",))
    if model.full_finetuning and model.load_in_4bit is True:
        wrong = "4-bit weights cannot be trained themselves, but model.full_finetuning = true asks for it"
        yield Violation("model.load_in_4bit", wrong, "set one of the two to false", ("model.full_finetuning",))


def _data(recipe: Recipe, _: Given) -> Iterator[Violation]:
    train, sources = recipe.data.train, recipe.data.sources
    if train is None and not sources:
        yield Violation("data.train", "is missing", 'add train = "rows.jsonl" under [data]', ("data.sources",))
    if train is not None and sources:
        instead = "keep one of them: write several sources as several [[data.sources]] tables"
        yield Violation("data.train", "is set together with [[data.sources]]", instead)


def _precision(recipe: Recipe, given: Given) -> Iterator[Violation]:
    train, dtype = recipe.train, recipe.model.dtype
    if train.fp16 is True and train.bf16 is True:
        yield Violation("train.fp16", "bf16 and fp16 cannot both be true", "keep one of them", ("train.bf16",))
    if train.fp16 is True and dtype == "bfloat16":
        yield Violation("train.fp16", "contradicts model.dtype = bfloat16", "keep one of them", ("model.dtype",))
    if train.bf16 is True and dtype == "float16":
        yield Violation("train.bf16", "contradicts model.dtype = float16", "keep one of them", ("model.dtype",))
    field = "train.gradient_checkpointing"
    if recipe.model.engine == "transformers" and train.gradient_checkpointing == "unsloth" and field in given:
        wrong = 'plain transformers has no "unsloth" checkpointing'
        yield Violation(field, wrong, "write true or false", ("model.engine",))


def _sharing(recipe: Recipe, _: Given) -> Iterator[Violation]:
    if recipe.train.deepspeed is not None and recipe.train.fsdp is not None:
        wrong = "shares the model in another way than train.deepspeed"
        yield Violation("train.fsdp", wrong, "keep one of them", ("train.deepspeed",))
    for key in ("deepspeed", "fsdp") if recipe.task != "sft" else ():
        if getattr(recipe.train, key) is not None:
            wrong = f"{recipe.task} is trained with the whole model in each process"
            yield Violation(f"train.{key}", wrong, "remove the line: processes share the rows", ("task",))


def _batch(recipe: Recipe, _: Given) -> Iterator[Violation]:
    train = recipe.train
    size, batch = train.effective_batch_size, train.per_device_train_batch_size
    if size is None:
        return
    if train.gradient_accumulation_steps is not None:
        wrong = f"is set together with gradient_accumulation_steps = {train.gradient_accumulation_steps}"
        instead = "keep one of them: fastft derives the other"
        yield Violation("train.effective_batch_size", wrong, instead, ("train.gradient_accumulation_steps",))
    elif batch != "auto" and size % batch and train.packing is not True:
        below, above = size - size % batch, size + batch - size % batch
        wrong = f"is not a multiple of per_device_train_batch_size = {batch}"
        near = f"{below} or {above}" if below else str(above)
        instead = f"write {near}, or change the batch"
        reads = ("train.per_device_train_batch_size", "train.packing")
        yield Violation("train.effective_batch_size", wrong, instead, reads)


def _schedule(recipe: Recipe, _: Given) -> Iterator[Violation]:
    train = recipe.train
    if train.warmup_ratio is not None and train.warmup_steps is not None:
        wrong = f"is set together with warmup_ratio = {train.warmup_ratio:g}"
        yield Violation("train.warmup_steps", wrong, "keep one of them", ("train.warmup_ratio",))
    warms_up = OPTIMIZERS[train.optim].warms_up and not train.warmup_ratio
    if train.lr_scheduler_type == "constant" and (train.warmup_ratio or train.warmup_steps) and not warms_up:
        field = "train.warmup_ratio" if train.warmup_ratio else "train.warmup_steps"
        wrong = 'has no effect: lr_scheduler_type = "constant" starts at the full learning rate'
        instead = 'write lr_scheduler_type = "constant_with_warmup", or remove the line'
        yield Violation(field, wrong, instead, ("train.lr_scheduler_type",))
    if train.max_steps is not None and train.warmup_steps is not None and train.warmup_steps >= train.max_steps:
        wrong = f"the warm-up is as long as the run of max_steps = {train.max_steps}"
        instead = "write fewer; 3 to 10 % of the steps are usual"
        yield Violation("train.warmup_steps", wrong, instead, ("train.max_steps",))


def steps_and_epochs(train: TrainSection) -> Violation | None:
    """max_steps would silently override num_train_epochs."""
    if train.max_steps is None or train.num_train_epochs is None:
        return None
    wrong = f"is given together with num_train_epochs = {train.num_train_epochs:g}"
    instead = "keep one of them: max_steps would override num_train_epochs without a word"
    return Violation("train.max_steps", wrong, instead, ("train.num_train_epochs",), str(train.max_steps))


def _evaluation(recipe: Recipe, _: Given) -> Iterator[Violation]:
    data, train = recipe.data, recipe.train
    if data.eval is not None and data.eval_fraction is not None:
        wrong = f"is set together with eval = {json.dumps(data.eval)}"
        yield Violation("data.eval_fraction", wrong, "keep one of them", ("data.eval",))
    if data.eval is not None and data.eval in (data.train, *(source.path for source in data.sources)):
        wrong = "is the training data: the evaluation would measure memory, not learning"
        instead = "name other rows, or set data.eval_fraction"
        yield Violation("data.eval", wrong, instead, ("data.train", "data.sources"))
    if data.eval is None and data.eval_fraction is None:
        wants = {"train.eval_strategy": train.eval_strategy != "no", "eval.exact_match": recipe.eval.exact_match}
        for field in (name for name, wanted in wants.items() if wanted):
            instead = "set data.eval or data.eval_fraction, or remove the line"
            yield Violation(field, "needs held-out rows", instead, ("data.eval", "data.eval_fraction"))
    if recipe.eval.exact_match and data.format == "text":
        wrong = 'plain text (data.format = "text") has no answers to compare'
        yield Violation("eval.exact_match", wrong, "remove the line, or use a format with messages", ("data.format",))
    if recipe.eval.exact_match and recipe.eval.max_new_tokens >= recipe.model.max_seq_length:
        wrong = f"leaves no room for a prompt in max_seq_length = {recipe.model.max_seq_length}"
        reads = ("model.max_seq_length", "eval.exact_match")
        yield Violation("eval.max_new_tokens", wrong, "write fewer tokens than max_seq_length", reads)


def _answers(recipe: Recipe, _: Given) -> Iterator[Violation]:
    section = recipe.eval
    if section.answer_format is not None and section.answer_pattern is not None:
        wrong = f'is set together with answer_format = "{section.answer_format}"'
        yield Violation("eval.answer_pattern", wrong, "keep one of them", ("eval.answer_format",))
    if section.answer_schema is not None and section.answer_pattern is not None:
        yield Violation("eval.answer_pattern", "is set together with answer_schema", "keep one of them")
    if section.answer_pattern is not None:
        try:
            re.compile(section.answer_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield Violation("eval.answer_pattern", f"is no regular expression of Python: {error}", "correct it")
    for text in section.fail_if:
        condition = parse_condition(text)
        missing = condition if isinstance(condition, tuple) else _missing_for(condition.measure, recipe)
        if missing is not None:
            yield Violation("eval.fail_if", missing[0], missing[1], got=json.dumps(text))


def _missing_for(measure: str, recipe: Recipe) -> tuple[str, str] | None:
    """(what is missing for a measure, what to write instead); None where the run will have it."""
    section, data = recipe.eval, recipe.data
    if measure in ("eval_loss", "perplexity"):
        held_out = data.eval is not None or data.eval_fraction is not None
        return None if held_out else ("needs held-out rows", "set data.eval or data.eval_fraction, or remove it")
    if not section.exact_match:
        return "needs generated answers", "set eval.exact_match = true, or remove it"
    if measure == "regression" and not section.regression_set:
        return "needs the general questions", "remove regression_set = false, or remove it"
    if measure == "format_valid" and not (section.answer_format or section.answer_pattern or section.answer_schema):
        return "needs a format of answers", 'set eval.answer_format = "json", or remove it'
    return None


def _checkpoints(recipe: Recipe, _: Given) -> Iterator[Violation]:
    train = recipe.train
    if train.eval_strategy == "steps" and train.eval_steps is None:
        yield Violation("train.eval_strategy", '"steps" needs eval_steps', "add eval_steps = N", ("train.eval_steps",))
    if train.save_strategy == "steps" and train.save_steps is None:
        yield Violation("train.save_strategy", '"steps" needs save_steps', "add save_steps = N", ("train.save_steps",))
    if not train.load_best_model_at_end:
        return
    field, wrong = "train.load_best_model_at_end", "needs an evaluation at each checkpoint, but"
    reads = ("train.eval_strategy", "train.save_strategy", "train.eval_steps", "train.save_steps")
    if train.eval_strategy == "no" or train.eval_strategy != train.save_strategy:
        wrong += f' eval_strategy = "{train.eval_strategy}" and save_strategy = "{train.save_strategy}"'
        yield Violation(field, wrong, "set both to the same value", reads)
    elif train.save_steps and train.eval_steps and train.save_steps % train.eval_steps:
        wrong += f" save_steps = {train.save_steps} is not a multiple of eval_steps = {train.eval_steps}"
        instead = f"write save_steps = {train.eval_steps * max(1, round(train.save_steps / train.eval_steps))}"
        yield Violation(field, wrong, instead, reads)


def _names(recipe: Recipe, _: Given) -> Iterator[Violation]:
    lora, export = recipe.lora, recipe.export
    reporters = () if recipe.train.report_to == "none" else recipe.train.report_to
    checks: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
        ("train.report_to", reporters, tuple(REPORTERS), 'report_to = "none" reports nowhere'),
        ("export.quantization", export.quantization, tuple(QUANTIZATIONS), "q8_0 and q4_k_m are usual"),
    )
    for field, values, known, hint in checks:
        for value in (value for value in values if value not in known):
            close = nearest(value, known)
            instead = f'did you mean "{close}"?' if close else f"known are {', '.join(known)}; {hint}"
            yield Violation(field, "is not a known name", instead, got=json.dumps(value))
    if not lora.target_modules:
        yield Violation("lora.target_modules", "names no layer", "remove the line for all seven projections")
    odd = [name for name in lora.target_modules if not re.fullmatch(r"[\w.]{1,200}", name)]
    if odd:
        wrong, instead = "names no layer: PEFT would take it for a pattern", "write names as in q_proj"
        yield Violation("lora.target_modules", wrong, instead, got=json.dumps(odd[0])[:80])
    twice: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("lora.target_modules", lora.target_modules),
        ("export.formats", export.formats),
        ("export.quantization", export.quantization),
    )
    for field, entries in twice:
        repeated = next((entry for entry in entries if entries.count(entry) > 1), None)
        if repeated is not None:
            yield Violation(field, "names one entry twice", "name it once", got=json.dumps(repeated))


def _export(recipe: Recipe, _: Given) -> Iterator[Violation]:
    if recipe.model.full_finetuning and "adapter" in recipe.export.formats:
        wrong = "full fine-tuning has no adapter to export"
        yield Violation("export.formats", wrong, 'write formats = ["merged_16bit"]', ("model.full_finetuning",))


_RULES: tuple[Callable[[Recipe, Given], Iterator[Violation]], ...] = (
    _model,
    _data,
    _precision,
    _batch,
    _sharing,
    _schedule,
    optimizer,
    _evaluation,
    _answers,
    _checkpoints,
    _names,
    _export,
    classification,
    preference,
    added_tokens,
    needs,
)
