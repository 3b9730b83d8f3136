"""Settings that are allowed but probably not meant: each caution gives the finding, why it matters, and its source."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastft.data.parts import DROPPED
from fastft.data.template import TEMPLATES, known_families
from fastft.planning.choices import Choices, written_batch
from fastft.planning.facts import Facts
from fastft.planning.schedule import Schedule, UnknownSchedule
from fastft.recipe.loader import LoadedRecipe

WITHOUT_REGRET = "Schulman et al. 2025, LoRA Without Regret; TRL's guide of that name"
# The rates below are the best measured ones of tinker-cookbook's hyperparam_utils.get_lr: LoRA 3e-4 for Llama-3.1-8B to
# 1e-3 for 1B models, full fine-tuning a tenth of that. A factor of five is left on either side.
LORA_RATES = (6e-5, 5e-3)
FULL_RATES = (1e-6, 1e-4)
BEST_RATES = "tinker-cookbook, hyperparam_utils.get_lr: measured on tulu3"
# The examples of a step beyond which LoRA loses against full fine-tuning, at any rank.
LORA_EXAMPLES = 32
FEW_EXAMPLES = 4
MANY_EPOCHS = 4
SMALL_DATA = 10_000
SHOWN_TOKENS = 5
BATCH_KEYS = ("train.effective_batch_size", "train.gradient_accumulation_steps", "train.per_device_train_batch_size")
# The same without their section, with what they are where a recipe says nothing.
OPEN_BATCH = {
    "effective_batch_size": None,
    "gradient_accumulation_steps": None,
    "per_device_train_batch_size": "auto",
}


@dataclass(frozen=True)
class Caution:
    """One setting that is probably not meant: `field` of the recipe, the finding, why it matters, its source."""

    field: str
    says: str
    reason: str
    source: str

    def __str__(self) -> str:
        return self.says


@dataclass(frozen=True)
class Sight:
    """What the rules read."""

    loaded: LoadedRecipe
    facts: Facts
    schedule: Schedule | UnknownSchedule
    choices: Choices


def find_cautions(sight: Sight) -> tuple[Caution, ...]:
    """Every caution, in the order of the rules."""
    return tuple(caution for rule in _RULES for caution in rule(sight))


def _checkpoints(sight: Sight) -> Iterator[Caution]:
    if sight.loaded.implies_save_strategy:
        says = f'save_steps = {sight.loaded.recipe.train.save_steps} alone means save_strategy = "steps"'
        yield Caution("train.save_strategy", says, "by epochs it would have no effect", "the recipe")


def _learning_rate(sight: Sight) -> Iterator[Caution]:
    rate, whole = sight.loaded.recipe.train.learning_rate, sight.loaded.recipe.model.full_finetuning
    low, high = FULL_RATES if whole else LORA_RATES
    kind = "full fine-tuning" if whole else "LoRA"
    if low <= rate <= high:
        return
    if rate < low:
        best = "" if whole else "; the best measured LoRA rate for Llama-3.1-8B is 3e-4"
        other = "" if whole else ", a rate for full fine-tuning: LoRA wants about ten times more"
        says = f"learning_rate = {rate:g} is low for {kind}{other}{best}"
        yield Caution("train.learning_rate", says, "the loss hardly falls within the run", BEST_RATES)
    else:
        other = ", a LoRA rate: full fine-tuning wants about a tenth" if whole else ""
        says = f"learning_rate = {rate:g} is high for {kind}{other}"
        yield Caution("train.learning_rate", says, "the loss jumps and the model forgets", BEST_RATES)


def _examples_per_step(sight: Sight) -> Iterator[Caution]:
    train, schedule = sight.loaded.recipe.train, sight.schedule
    asked, got = train.effective_batch_size, schedule.examples_per_optimizer_step
    if got is None:
        return
    batch, accumulation = schedule.per_device_train_batch_size, schedule.gradient_accumulation_steps
    held = f"{batch} x {accumulation} accumulated x {schedule.devices} devices"
    # Whole packed rows come near a number of examples, rarely to it; a tenth off changes no result.
    if asked is not None and abs(got - asked) > asked / 10:
        says = f"an optimizer step holds {got:g} examples ({held}), not effective_batch_size = {asked}"
        yield Caution("train.effective_batch_size", says, "whole micro-batches cannot come nearer", "the schedule")
    written = (accumulation or 1) * batch * schedule.devices
    if asked is None and sight.choices.packing.value and got > 1.5 * written:
        says = f"packing makes each optimizer step {got:g} examples, not {written}; effective_batch_size would keep it"
        reason = "fewer, larger steps at the same learning rate learn less in an epoch"
        yield Caution("train.packing", says, reason, WITHOUT_REGRET)
    if not sight.loaded.recipe.model.full_finetuning and got > LORA_EXAMPLES * 1.1:
        says = f"{got:g} examples per optimizer step; LoRA learns best with {LORA_EXAMPLES} and fewer"
        reason = "LoRA tolerates large batches worse than full fine-tuning, at any rank"
        yield Caution(_batch_field(sight), says, reason, WITHOUT_REGRET)
    if got < FEW_EXAMPLES and train.adam_beta2 <= 0.999:
        half = 1 - (1 - train.adam_beta2) * got / LORA_EXAMPLES
        held = f"{got:g} example{'s' * (got != 1)}"
        says = f"each step follows {held}: mostly noise; adam_beta2 = {half:.5f} averages longer"
        reason = "small batches train as well when Adam's memory keeps its length in tokens"
        yield Caution(_batch_field(sight), says, reason, "Marek et al. 2025, arXiv 2507.07101")


def _batch_field(sight: Sight) -> str:
    """The key that the recipe sets the examples of a step with."""
    return next((key for key in BATCH_KEYS if key in sight.loaded.given), BATCH_KEYS[-1])


def _changed_batch(sight: Sight) -> Iterator[Caution]:
    """An override that changes the examples of a step and leaves what was tuned for them."""
    loaded, train = sight.loaded, sight.loaded.recipe.train
    if not loaded.overrides.keys() & set(BATCH_KEYS):
        return
    written = tomllib.loads(loaded.text).get("train", {})
    before, now = (
        each.examples_per_step or written_batch(each) * (each.gradient_accumulation_steps or 1)
        for each in (
            train.model_copy(update={key: written.get(key, open_) for key, open_ in OPEN_BATCH.items()}),
            train,
        )
    )
    factor = now / before
    if train.max_steps is not None and not 0.5 < factor < 2:
        times = f"{factor:g} times longer" if factor > 1 else f"{1 / factor:g} times shorter"
        says = f"batch {before} -> {now} makes this run {times} in data: max_steps = {train.max_steps} stays"
        yield Caution("train.max_steps", says, "max_steps counts steps of any size", "the schedule")
    if "train.learning_rate" not in loaded.overrides and not 0.5 < factor < 2:
        rate = train.learning_rate
        says = (
            f"batch {before} -> {now} at the same learning rate; the square-root rule says "
            f"{rate * math.sqrt(factor):.1e}, the linear rule {rate * factor:.1e}"
        )
        reason = "Adam's best rate grows with the square root of the batch, SGD's with the batch"
        yield Caution("train.learning_rate", says, reason, "Malladi et al. 2022, arXiv 2205.10287; Goyal et al. 2017")


def _steps(sight: Sight) -> Iterator[Caution]:
    train, schedule = sight.loaded.recipe.train, sight.schedule
    steps, warmup = schedule.optimizer_steps, schedule.warmup_steps
    if steps is None or warmup is None:
        return
    if steps > 1 and warmup >= steps:
        says = f"the warm-up of {warmup} steps is as long as the run of {steps} steps"
        yield Caution("train.warmup_steps", says, "the learning rate is never reached", "transformers get_scheduler")
    for name, every in (("eval_steps", train.eval_steps), ("save_steps", train.save_steps)):
        if every is not None and every > steps:
            says = f"train.{name} = {every} is never reached: the run has {steps} steps"
            yield Caution(f"train.{name}", says, "only the end remains", "transformers DefaultFlowCallback")


def _epochs(sight: Sight) -> Iterator[Caution]:
    train, schedule = sight.loaded.recipe.train, sight.schedule
    if isinstance(schedule, UnknownSchedule):
        return
    epochs, examples = schedule.num_train_epochs, schedule.train_examples
    if train.load_best_model_at_end and schedule.evaluations < 2:
        says = f"load_best_model_at_end has {schedule.evaluations} evaluation to choose from: the last step is the best"
        yield Caution("train.load_best_model_at_end", says, "one checkpoint is no choice", "the schedule")
    if train.max_steps is not None:
        says = f"max_steps = {train.max_steps} is {epochs:.3g} epochs of this data"
        yield Caution("train.max_steps", says, "steps do not follow when the data or batch change", "the schedule")
    if epochs > MANY_EPOCHS and examples < SMALL_DATA:
        says = f"{epochs:.3g} epochs of {examples:,} examples: watch the held-out loss, it may turn after 1 to 3"
        field = "train.max_steps" if train.max_steps is not None else "train.num_train_epochs"
        yield Caution(field, says, "small data is memorised", "Unsloth, LoRA hyperparameters guide: 1 to 3 epochs")


def _data(sight: Sight) -> Iterator[Caution]:
    rows, recipe = sight.facts.rows, sight.loaded.recipe
    if rows is None:
        return
    read = len(rows.lengths) + rows.lost_rows
    if rows.lost_tokens:
        about = "about " if rows.estimate else ""
        limit = f"max_seq_length = {recipe.model.max_seq_length}"
        says = (
            f"{limit} loses {about}{rows.lost_tokens:,} tokens ({rows.overlong}): "
            f"{rows.lost_rows:,} of {read:,} rows are left out, the longest has {rows.longest:,} tokens"
        )
        yield Caution("model.max_seq_length", says, "what is cut is not learnt", "the rows themselves")
    for note in rows.notes:
        yield Caution("data.ignore", note, "what has no effect is not learnt", "the rows themselves")
    if rows.unused_tokens:
        shown = ", ".join(rows.unused_tokens[:SHOWN_TOKENS])
        says = f"no training row holds {len(rows.unused_tokens)} of the added tokens: {shown}"
        field = (
            "data.add_tokens" if set(rows.unused_tokens) & set(recipe.data.add_tokens) else "data.add_special_tokens"
        )
        yield Caution(field, says, "its embedding stays the mean that it began with", "the rows themselves")
    if rows.split_rows:
        says = f"{rows.split_rows:,} conversations become a row an answer, with {rows.extra_tokens:,} tokens more"
        reason = 'the template writes earlier turns unlike it asks; data.train_on = "last" trains last answers alone'
        yield Caution("data.turns", says, reason, "trl issue 5213; verl issue 6854")
    for kind, count in rows.dropped.items():
        says = f"{count:,} training rows {'are' if count > 1 else 'is'} {DROPPED[kind]}"
        yield Caution("data.chat_template", says, "what is not in the text is not learnt", "the rows themselves")
    if rows.written_date:
        says = f"the chat template writes a date, in every row the same: {rows.written_date}"
        reason = "tools that write today's date train other rows tomorrow, and ask with another date than they trained"
        yield Caution("data.template_date", says, reason, "the chat template")
    if rows.pads_with_end and sight.loaded.recipe.task == "sft":
        says = "the padding token is one that ends an answer; fastft masks by length, so answers still learn to end"
        reason = "a tool that masks by token would never train the end: endless answers"
        yield Caution("model.id", says, reason, "unsloth issue 416")


def _template(sight: Sight) -> Iterator[Caution]:
    name, recipe = sight.loaded.recipe.data.chat_template, sight.loaded.recipe
    known = TEMPLATES.get(name)
    text = f"{recipe.model.id} {sight.facts.base_model.config.get('model_type', '')}".lower()
    found = [family for family in known_families() if re.search(family, text)]
    if known and found and not set(found) & set(known):
        says = f'chat_template = "{name}" was made for {known[0]}, the base model is {found[0]}'
        reason = "its turns are strange to the model, and its end token may not stop it"
        yield Caution("data.chat_template", says, reason, "unsloth issue 3899; ollama issue 6823")


def _devices(sight: Sight) -> Iterator[Caution]:
    device, processes = sight.facts.device, sight.facts.processes
    if device.is_gpu and device.count > processes:
        idle = device.count - processes
        says = f"{idle} of {device.count} GPUs stay idle: this run is {processes} process{'es' * (processes > 1)}"
        if processes == 1 and sight.choices.engine.value == "transformers":
            says += " and sees the first GPU alone"
        reason = "each GPU needs a process of its own"
        yield Caution("train.per_device_train_batch_size", says, reason, "unsloth issues 36 and 2435")


def _compiling(sight: Sight) -> Iterator[Caution]:
    if sight.loaded.recipe.train.torch_compile:
        says = "the first steps compile two graphs, for seconds to minutes, which the time does not count"
        reason = "each process compiles anew, so short runs lose more than faster steps win; the run says what it took"
        yield Caution("train.torch_compile", says, reason, "torch.compile; transformers Trainer")


_RULES: tuple[Callable[[Sight], Iterator[Caution]], ...] = (
    _checkpoints,
    _learning_rate,
    _examples_per_step,
    _changed_batch,
    _steps,
    _epochs,
    _data,
    _template,
    _devices,
    _compiling,
)
