"""The recipe model: the one source for validation, defaults, JSON schema, `explain` and the starter recipe.

The string below a field documents it: first what it does, then lines that start with a label. `Unit`, `Too small`,
`Too large`, `On`, `Off` say what the value means; `Upstream` names the argument that it becomes. `fastft explain`,
`docs/reference/recipe.md` and the JSON schema use these strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, field_validator
from pydantic_core import core_schema

from fastft.recipe.data_formats import ALL_FORMATS, TEMPLATE_DATE
from fastft.recipe.export_formats import export_formats
from fastft.recipe.optimizers import OPTIMIZERS, offered
from fastft.recipe.quantizations import QUANTIZATIONS
from fastft.recipe.reporters import REPORTERS

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
# Examples of an optimizer step where a recipe says nothing: LoRA learns best with 32 and fewer.
EXAMPLES_PER_STEP = 16
# TOML arrays arrive as lists; frozen sections have tuples.
Names = Annotated[tuple[str, ...], Field(strict=False)]

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
Strategy = Literal["no", "steps", "epoch"]


@dataclass(frozen=True)
class OneOf:
    """A name out of those that `known` returns when a recipe is read: the table that it reads is the one source."""

    known: Callable[[], Iterable[str]]
    offered: Callable[[], Iterable[str]] | None = None
    """Those that the schema lists, where a rule refuses others with its reason; None: all of them."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": list((self.offered or self.known)())}

    def _check(self, name: str) -> str:
        if name not in self.known():
            raise ValueError("is no known name")
        return name


def names_of(known: Callable[[], Iterable[str]]) -> Any:
    """A list of names out of those of `known`; fastft.recipe.rules says which one is unknown."""

    def list_them(schema: dict[str, Any]) -> None:
        schema["items"] = {"enum": list(known()), "type": "string"}

    return Field(strict=False, json_schema_extra=list_them)


class Section(BaseModel):
    """A frozen table of the recipe: unknown keys are errors, and values are not converted to another type."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _is_a_toml_number(cls, value: Any) -> Any:
        """Refuse integers above 64 bits, which are not TOML: the arithmetic of the plan would overflow."""
        if isinstance(value, int) and value >= 2**63:
            raise ValueError("more than 64 bits")
        return value


class ModelSection(Section):
    """The base model that is fine-tuned, and how it is loaded."""

    id: str = Field(min_length=1)
    """The base model: a Hub id (`meta-llama/Llama-3.1-8B-Instruct`), a local folder, or `package:NAME/FILE.gguf` for a
    GGUF file inside an installed Python package.
    Upstream: FastLanguageModel.from_pretrained(model_name=)"""

    revision: str | None = Field(default=None, min_length=1)
    """The Hub branch, tag or commit to load. A commit makes the run repeatable: a branch can move.
    Upstream: FastLanguageModel.from_pretrained(revision=)"""

    engine: Literal["auto", "unsloth", "transformers"] = "auto"
    """What loads and trains the model: Unsloth, or plain transformers with PEFT. "auto" takes Unsloth where it is
    installed. Plain transformers is the slower reference, for models that Unsloth does not know.
    Upstream: none (fastft's own choice)"""

    max_seq_length: int = Field(default=2048, ge=8, le=2**24)
    """The longest example that is trained. `data.overlong` says what happens to longer ones; each is listed.
    Unit: tokens
    Too small: the model does not see long examples.
    Too large: memory grows with the longest example of a batch; nothing is gained beyond the longest row.
    Upstream: FastLanguageModel.from_pretrained(max_seq_length=), SFTConfig(max_length=)"""

    load_in_4bit: Auto | bool = False
    """Load the frozen base weights as 4-bit NF4 (QLoRA). "auto" leaves it open: fastft takes the faster one that fits
    into 90 % of the memory, which is 4-bit only where 16-bit weights do not fit.
    On: about a third of the weight memory (an 8B model: 5.7 GB instead of 16 GB); each step takes time to unpack them.
    Off: faster where 16-bit weights fit; needs 2 bytes a parameter.
    Upstream: FastLanguageModel.from_pretrained(load_in_4bit=)"""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The number format of the weights that are not quantized. "auto" takes bfloat16 on GPUs that compute in it,
    float16 on older ones; on a processor bfloat16 for frozen weights where it multiplies that in hardware and it was
    measured to be faster, else float32. The adapter is in float32 on a processor.
    Upstream: FastLanguageModel.from_pretrained(dtype=)"""

    full_finetuning: bool = False
    """Train every weight instead of a LoRA adapter.
    On: the most capacity; needs about 16 bytes a parameter, and a learning rate about ten times lower than LoRA.
    Off: only the adapter of `[lora]` is trained.
    Upstream: FastLanguageModel.from_pretrained(full_finetuning=)"""

    trust_remote_code: bool = False
    """Run Python code from the model repository.
    On: the repository's author can run anything on this machine; set `revision` to a commit that you have read.
    Off: a model that needs its own code is refused.
    Upstream: FastLanguageModel.from_pretrained(trust_remote_code=)"""

    use_safetensors: bool = True
    """Read weights of safetensors files alone.
    On: a model whose weights are pickles (`.bin`) is refused, because loading a pickle can run code.
    Off: `.bin` files are read as tensors alone, by torch's weights_only reader, and kept as safetensors in the cache.
    Upstream: AutoModelForCausalLM.from_pretrained(use_safetensors=)"""

    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """The attention kernel. "auto" leaves the choice to the engine.
    Upstream: AutoModelForCausalLM.from_pretrained(attn_implementation=)"""


class LoraSection(Section):
    """The adapter: the small trained matrices beside the frozen base model."""

    r: int = Field(default=16, ge=1)
    """The rank of each adapter matrix pair, its capacity. For an 8B model each rank adds 2.6 million weights.
    Unit: rank
    Too small: the adapter has too little capacity for large or varied data sets.
    Too large: more memory and time for little gain; small data sets are memorised.
    Upstream: FastLanguageModel.get_peft_model(r=)"""

    lora_alpha: int = Field(default=16, ge=1)
    """The adapter's output is scaled by lora_alpha / r (or lora_alpha / sqrt(r) with `use_rslora`).
    Unit: scale numerator
    Too small: the adapter barely changes the model at a usual learning rate.
    Too large: training becomes unstable, like too high a learning rate.
    Upstream: FastLanguageModel.get_peft_model(lora_alpha=)"""

    lora_dropout: Fraction = 0.0
    """The share of adapter inputs that training sets to zero at random. Unsloth's fast kernels need 0.
    Unit: share, 0 to 1
    Too small: 0 is the usual value; a small data set trained for many epochs may overfit.
    Too large: learning slows down, and Unsloth falls back to slower kernels.
    Upstream: FastLanguageModel.get_peft_model(lora_dropout=)"""

    target_modules: Names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """The linear layers that get an adapter. Adapters on all seven projections learn best; attention alone is clearly
    worse at the same number of weights (Schulman et al. 2025, "LoRA Without Regret").
    Upstream: FastLanguageModel.get_peft_model(target_modules=)"""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias vectors are also trained. "none" is usual, and the only choice that Unsloth's fast kernels support.
    Upstream: FastLanguageModel.get_peft_model(bias=)"""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r (Kalajdzievski 2023).
    On: large ranks (64 and more) keep learning at the same learning rate.
    Off: the original LoRA scale.
    Upstream: FastLanguageModel.get_peft_model(use_rslora=)"""

    use_dora: bool = False
    """Train a magnitude for each output as well as the direction (DoRA, Liu et al. 2024).
    On: sometimes better at low ranks; noticeably slower.
    Off: plain LoRA.
    Upstream: FastLanguageModel.get_peft_model(use_dora=)"""

    modules_to_save: Names = ()
    """Layers that are trained in full and saved with the adapter, for example ["embed_tokens", "lm_head"] when the
    tokenizer has new tokens. They need much memory.
    Upstream: FastLanguageModel.get_peft_model(modules_to_save=)"""


class DataSource(Section):
    """One of several sources of training rows, with its weight."""

    path: str = Field(min_length=1)
    """The rows: a file, glob or Hub dataset id as in `data.train`.
    Upstream: SFTTrainer(train_dataset=), tokenized by fastft"""

    name: str | None = Field(default=None, min_length=1)
    """The name of this source in reports. Default: its path.
    Upstream: none"""

    weight: float = Field(default=1.0, gt=0, le=100)
    """How often each row of this source is used in one epoch: 2 uses every row twice, 0.25 uses a quarter of the rows,
    chosen by `train.seed`.
    Unit: passes over the source in one epoch
    Too small: little is learnt from the source.
    Too large: its rows are memorised.
    Upstream: none (fastft repeats and draws rows before training)"""

    limit: int | None = Field(default=None, ge=1)
    """Read only this many rows, the first ones.
    Unit: rows
    Too small: the model does not see the later rows.
    Too large: no effect beyond the rows that are there.
    Upstream: none"""


class DataSection(Section):
    """The rows that the model is trained and evaluated on."""

    train: str | None = Field(default=None, min_length=1)
    """The training rows: a `.jsonl`, `.json`, `.csv` or `.parquet` file (also `.gz`, `.zst`), a glob of them, relative
    to the recipe, or a Hub dataset id (`org/name`, `org/name:split`). Write this or `[[data.sources]]`.
    Upstream: SFTTrainer(train_dataset=), tokenized by fastft"""

    sources: Annotated[tuple[DataSource, ...], Field(strict=False)] = ()
    """Several sources of training rows instead of `train`, each a `[[data.sources]]` table with `path`, `weight`,
    `limit` and `name`.
    Upstream: SFTTrainer(train_dataset=), tokenized by fastft"""

    eval: str | None = Field(default=None, min_length=1)
    """The held-out rows, never trained: a file, glob or Hub dataset id as in `train`. Without it and without
    `eval_fraction` nothing is evaluated.
    Upstream: SFTTrainer(eval_dataset=), tokenized by fastft"""

    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Hold out this share of the training rows, chosen by `train.seed`, instead of a separate file.
    Unit: share, 0 to 1
    Too small: the evaluation is mostly noise.
    Too large: less is left to learn from.
    Upstream: none (fastft splits before tokenizing)"""

    format: Annotated[str, OneOf(lambda: ("auto", *ALL_FORMATS))] = "auto"
    """What a row looks like: `messages` (OpenAI), `sharegpt` (`conversations` with `from` and `value`, as Baichuan has
    them too), `alpaca` (`instruction`, `input`, `output`), `prompt_completion`, `belle` (`Human:` and `Assistant:`
    inside `instruction`), `classification` (`text`, `label`: the label is the answer), or `text`. "auto" detects it
    from the first row, and reports what it found. For task = "classification" a row has `text` (or `messages`), often
    `text_pair`, and `label`; without `label`, the last answer of its messages is the label. For task = "preference" it
    is `preference` (`chosen`, `rejected`, often `prompt`), or `kto` (`prompt`, `completion` or `messages`, and `label`:
    true or false), by `preference.loss`.
    Upstream: none (fastft reads the rows)"""

    columns: dict[str, str] = {}
    """Other names for the columns of the format: `columns = { prompt = "question", completion = "answer" }` reads the
    file's `question` as `prompt`.
    Upstream: none (fastft reads the rows)"""

    ignore: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns and keys of turns that have no effect on purpose: `ignore = ["chosen", "rejected"]`. Without it, one that
    would change what is learnt (preferences, pictures, weights, a system text under another name) makes its row broken,
    and every other is counted.
    Upstream: none (fastft reads the rows)"""

    allow_assistant_first: bool = False
    """Accept conversations that the assistant begins, such as a greeting. That first turn is kept as context and
    carries no loss, because it answers nothing.
    On: chats of bots that greet are trained as they are, where the chat template accepts them.
    Off: such rows are broken.
    Upstream: none (fastft reads the rows)"""

    chat_template: str = "model"
    """How messages become text: "model" for the base model's own template, a known name ("llama-3.1", "llama-3",
    "chatml", ...), or a `.jinja` file relative to the recipe.
    Upstream: tokenizer.chat_template, saved with the weights"""

    template_date: str = TEMPLATE_DATE
    """The date that a chat template writes which asks for today's, such as Llama 3.2's: a fixed one, so that the rows
    are the same tomorrow. It is written into the template that is saved with the weights: every program then asks with
    the date that was trained.
    Unit: YYYY-MM-DD
    Upstream: strftime_now in the chat template"""

    chat_template_kwargs: dict[str, bool | int | float | str] = {}
    """Values for variables that the chat template reads: `chat_template_kwargs = { enable_thinking = false }` (Qwen3,
    SmolLM3). They are written into the template that is saved with the weights, so that every program asks as was
    trained, whatever value it passes itself.
    Upstream: tokenizer.apply_chat_template(chat_template_kwargs)"""

    add_tokens: Names = ()
    """New tokens of the vocabulary, such as `add_tokens = ["<think>", "</think>"]`: each becomes one id wherever its
    text stands. Its row of the embedding and of the output layer begins as the mean of the pieces that its text was
    before. Both layers are then trained in full and saved with the adapter: they take memory and disk, as `fastft plan`
    shows. In answers such a token is text like any other. One that the tokenizer has already is refused.
    Upstream: tokenizer.add_tokens(), model.resize_token_embeddings(), lora.modules_to_save"""

    add_special_tokens: Names = ()
    """The same for control tokens: programs that show answers without control tokens leave them out, and a GGUF file
    marks them as such. Messages may contain those of this list, and still none of the tokenizer's own.
    Upstream: tokenizer.add_tokens(special_tokens=True)"""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens carry loss. "assistant": the assistant's answers and the token that ends each of them, in every
    turn. "last": only the last answer, and the row ends there. "all": every token, prompts too.
    Upstream: labels in SFTTrainer(train_dataset=), -100 where there is no loss"""

    turns: Literal["auto", "whole", "split"] = "auto"
    """How many rows a conversation of several answers becomes. "whole": one; it is refused where the chat template
    writes earlier turns in another way than it asks with (Qwen3.5, Mistral Nemo with a system text), or leaves out
    their reasoning (Qwen3). "split": one row for each trained answer, which ends there, rendered as it will be asked.
    "auto": whole where that is exact, else split. Rows that are split are counted, with the tokens that they add.
    Upstream: none (fastft renders the rows)"""

    @field_validator("template_date")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        try:
            date.fromisoformat(value)
        except ValueError as error:
            raise ValueError("not a date; write YYYY-MM-DD") from error
        return value

    may_drop: Annotated[tuple[Literal["history_reasoning", "reasoning", "tools"], ...], Field(strict=False)] = ()
    """What the chat template may leave out of a row: counted instead of refused. "history_reasoning": the reasoning of
    trained answers that are not the last (Qwen3; without it, `turns = "auto"` splits such rows); "reasoning": the
    `reasoning_content` of any answer; "tools": the `tools` of the row. Anything else that a template leaves out or
    moves is refused with its line.
    Upstream: none (fastft compares each row with its text)"""

    overlong: Literal["drop", "truncate", "split", "error"] = "drop"
    """What happens to a row that is longer than `model.max_seq_length`. "drop" leaves it out; "truncate" ends it after
    the last answer that fits whole (plain text: at the limit); "split" makes several rows of whole questions and
    answers (plain text: pieces of at most the limit); "error" refuses to start. Each such row is counted and listed,
    and no answer is ever cut in two. For task = "classification" the default is "truncate" (see
    `classification.truncation`), and there is no "split".
    Upstream: none (fastft measures before training)"""

    max_row_bytes: int = Field(default=8 * 2**20, ge=1024)
    """A row with more bytes than this is broken, and is never parsed: one damaged line cannot take all memory.
    Unit: bytes
    Too small: long documents are left out.
    Too large: a compressed file of a few kilobytes can fill the memory.
    Upstream: none (fastft reads the rows)"""

    max_reject_fraction: Fraction = 0.01
    """Refuse to start when more than this share of the rows is broken. Broken rows are never trained; they are listed
    in rejects.jsonl with file, line and reason.
    Unit: share of the rows that were read, 0 to 1
    Too small: with 0, one broken row stops the run.
    Too large: one wrong column can cost most of the data.
    Upstream: none"""

    deduplicate: Literal["no", "exact", "near"] = "no"
    """Leave out repeated training rows, each listed in rejects.jsonl with the row that it repeats. "exact" keeps the
    first of rows whose rendered tokens are the same. "near" keeps the first of rows that share at least 0.8 of their
    runs of three words outside system turns, as MinHash estimates it with fixed permutations: rows that differ only in
    a number or a label are near repeats. Run `fastft data` first: it finds them in the same way. "near" needs
    `pip install "fastft[hygiene]"` and some 5 KiB of memory a row.
    Upstream: none (fastft compares before training)"""


class TrainSection(Section):
    """How the weights are trained: batches, schedule, optimizer, evaluation and checkpoints."""

    per_device_train_batch_size: Auto | BatchSize = "auto"
    """Examples (packed rows when packing is active) that go through the model at once on each device. "auto" takes the
    fastest that fits into 90 % of the memory with the longest rows, and keeps the examples of an optimizer step; with
    gradient_accumulation_steps written it is 2, so that a step is the same on every device.
    Unit: examples
    Too small: the device idles between small pieces of work; reading 4-bit weights dominates.
    Too large: out of memory. gradient_accumulation_steps gives the same examples per optimizer step with less memory.
    Upstream: SFTConfig(per_device_train_batch_size=)"""

    gradient_accumulation_steps: int | None = Field(default=None, ge=1, le=2**20)
    """Micro-batches whose gradients are added up before the optimizer takes one step. With a batch of 2 and 8
    micro-batches on one device, each optimizer step learns from 16 examples, with the memory of 2. Default 1.
    Unit: micro-batches
    Too small: each step uses few examples, so it is noisy, and the learning rate must be lower.
    Too large: few optimizer steps in an epoch, so little is learnt; LoRA tolerates large batches badly (above 32).
    Upstream: SFTConfig(gradient_accumulation_steps=)"""

    effective_batch_size: int | None = Field(default=None, ge=1, le=2**20)
    """Examples per optimizer step, over all devices. fastft derives gradient_accumulation_steps from it; set only one
    of the two. Default 16, where neither gradient_accumulation_steps nor per_device_train_batch_size is written.
    Unit: examples
    Too small: noisy steps.
    Too large: few steps in an epoch; LoRA learns best at 32 and fewer.
    Upstream: SFTConfig(gradient_accumulation_steps=), derived"""

    num_train_epochs: float | None = Field(default=None, gt=0, le=10_000)
    """How often training goes through all rows. Default 1 when max_steps is not set either.
    Unit: epochs
    Too small: the model has not seen enough.
    Too large: the rows are memorised: training loss falls while evaluation loss rises.
    Upstream: SFTConfig(num_train_epochs=)"""

    max_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Stop after this many optimizer steps, even in the middle of an epoch. Set this or num_train_epochs.
    Unit: optimizer steps
    Too small: the model does not see part of the data.
    Too large: unintended epochs: 1000 steps of 100 examples are 10 epochs of 10,000 rows.
    Upstream: SFTConfig(max_steps=)"""

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """How far each optimizer step moves the weights, at the peak of the schedule. LoRA needs about ten times the rate
    of full fine-tuning: 2e-4 to 1e-3 instead of 1e-5 to 5e-5.
    Unit: weight change per normalised gradient
    Too small: the loss barely falls.
    Too large: the loss jumps or becomes NaN, and the model forgets.
    Upstream: SFTConfig(learning_rate=)"""

    lr_scheduler_type: Scheduler = "linear"
    """How the learning rate changes after warm-up.
    Upstream: SFTConfig(lr_scheduler_type=)"""

    warmup_ratio: Fraction | None = None
    """The share of all optimizer steps over which the learning rate rises from 0. Set this or warmup_steps.
    Unit: share of the optimizer steps, 0 to 1
    Too small: the first steps, with poor optimizer statistics, can make training unstable.
    Too large: the learning rate is low for much of the run.
    Upstream: SFTConfig(warmup_ratio=) before transformers 5, then SFTConfig(warmup_steps=) below 1"""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps over which the learning rate rises from 0. Default 0.
    Unit: optimizer steps
    Too small: the first steps, with poor optimizer statistics, can make training unstable.
    Too large: a warm-up longer than the run never reaches the learning rate.
    Upstream: SFTConfig(warmup_steps=)"""

    optim: Annotated[str, OneOf(lambda: OPTIMIZERS, offered)] = "adamw_8bit"
    """The optimizer. The 8-bit ones keep their state in a quarter of the memory, and are slow on a processor: there the
    default is the same AdamW in float32. "paged" ones move it to main memory when the GPU is full. docs/optimizers.md
    says more, and docs/reference/tables.md lists the package that each needs.
    Upstream: SFTConfig(optim=); torch.optim.Muon"""

    optim_args: dict[str, bool | int | float | str] = {}
    """Settings that one optimizer alone has: `optim_args = { momentum = 0.9, nesterov = true }` for "sgd" and "muon".
    docs/reference/tables.md lists them by optimizer.
    Upstream: SFTConfig(optim_args=); torch.optim.Muon"""

    loraplus_lr_ratio: float | None = Field(default=None, ge=1, le=1000)
    """Train the adapter's B matrices at this many times the learning rate of its A matrices (LoRA+, Hayou et al. 2024).
    A smaller learning_rate goes with it, such as half.
    Unit: factor; 16 is the paper's choice
    Too small: 1 is plain LoRA.
    Too large: the loss jumps.
    Upstream: peft.optimizers.create_loraplus_optimizer(loraplus_lr_ratio=)"""

    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """How strongly trained weights are pulled to zero at each step.
    Unit: share per step, times the learning rate
    Too small: 0 is the usual value for LoRA.
    Too large: the decay undoes what was learnt.
    Upstream: SFTConfig(weight_decay=)"""

    adam_beta1: Fraction = 0.9
    """How much of the running gradient mean AdamW keeps at each step; in Lion, the mean's share in the update.
    Unit: share, 0 to 1
    Too small: noisy directions.
    Too large: slow to change direction.
    Upstream: SFTConfig(adam_beta1=)"""

    adam_beta2: Fraction = 0.999
    """How much of the running squared gradient AdamW keeps at each step; in Lion, of the running gradient mean. Very
    small batches need it nearer to 1.
    Unit: share, 0 to 1
    Too small: single batches change the step size abruptly.
    Too large: the first few hundred steps are poorly scaled.
    Upstream: SFTConfig(adam_beta2=)"""

    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's divisor to avoid division by zero.
    Unit: gradient size
    Too small: rare gradients make huge steps.
    Too large: AdamW behaves like plain SGD.
    Upstream: SFTConfig(adam_epsilon=)"""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients with a larger norm are scaled down to this norm before each step; 0 switches clipping off.
    Unit: gradient norm
    Too small: every step is clipped, and the learning rate loses its meaning.
    Too large: one bad batch can damage the model.
    Upstream: SFTConfig(max_grad_norm=)"""

    packing: Auto | bool = "auto"
    """Put several short examples into one row of max_seq_length, so that little is padding. Active only where the
    device keeps the examples apart (attention that knows their borders); the plan says whether it is. "auto" packs
    where that is faster and an optimizer step keeps its examples.
    On: almost no padding; a row has several examples, so examples per optimizer step rise unless accumulation falls.
    Off: each example is its own row.
    Upstream: SFTConfig(packing=, packing_strategy=)"""

    group_by_length: Auto | bool = "auto"
    """Batch examples of similar length, so that little is padding. Together with packing it is the fallback for devices
    where packing cannot be active; the plan says which one is active. "auto" is off.
    On: less padding; the loss curve gets a saw-tooth, since one step has examples of similar length.
    Off: examples come in random order; those of one optimizer step are sorted into its micro-batches, which changes no
    gradient and saves padding where a step has several.
    Upstream: SFTConfig(group_by_length=) before transformers 5, then SFTConfig(train_sampling_strategy=)"""

    gradient_checkpointing: Literal["auto", "unsloth"] | bool = "auto"
    """Recompute activations in the backward pass instead of keeping them. "unsloth" also moves them to main memory;
    true is the plain form; false keeps them. "auto" keeps them where that is faster among what fits into 90 % of the
    memory, else it is "unsloth", or true with plain transformers.
    On: far less memory for about a third more work.
    Off: fastest where the activations fit.
    Upstream: FastLanguageModel.get_peft_model(use_gradient_checkpointing=), SFTConfig(gradient_checkpointing=)"""

    bf16: Auto | bool = "auto"
    """Compute in bfloat16. "auto" switches it on where a GPU supports it.
    On: about twice as fast and half the activation memory.
    Off: float32 (or float16 with fp16 = true).
    Upstream: SFTConfig(bf16=)"""

    fp16: Auto | bool = "auto"
    """Compute in float16 with loss scaling, for GPUs without bfloat16 (T4, V100). "auto" switches it on there. A
    processor computes in float32 instead, and the plan says so.
    On: fast on old GPUs; small gradients can vanish.
    Off: bfloat16 or float32.
    Upstream: SFTConfig(fp16=)"""

    tf32: Auto | bool = "auto"
    """Let Ampere and newer GPUs round float32 products to TensorFloat-32. "auto" keeps PyTorch's own setting.
    On: float32 work several times faster, with 10 bits of mantissa.
    Off: full float32.
    Upstream: SFTConfig(tf32=)"""

    torch_compile: bool = False
    """Compile the model for training: one graph for the first rows, and one for all other lengths. The run says how
    many graphs were made and how long that took; evaluations and answers are left uncompiled. Needs a C++ compiler on a
    processor, a C compiler on a GPU.
    On: faster steps after seconds or minutes of compiling.
    Off: starts at once. Unsloth's own kernels are compiled either way.
    Upstream: SFTConfig(torch_compile=)"""

    neftune_noise_alpha: float | None = Field(default=None, gt=0)
    """Add uniform noise to the embeddings in training (NEFTune, Jain et al. 2023), a regulariser for small chat data.
    Unit: noise scale
    Too small: no effect.
    Too large: the model learns from noise; 5 to 15 are usual.
    Upstream: SFTConfig(neftune_noise_alpha=)"""

    seed: int = Field(default=3407, ge=0, lt=2**32)
    """The seed of adapter weights, data order, held-out split and dropout. The same seed and versions repeat a run.
    Upstream: SFTConfig(seed=), FastLanguageModel.get_peft_model(random_state=)"""

    logging_steps: int = Field(default=1, ge=1)
    """Log loss, learning rate and speed every this many optimizer steps.
    Unit: optimizer steps
    Too small: 1 is fine; a line costs nothing.
    Too large: a spike shows late or not at all.
    Upstream: SFTConfig(logging_steps=)"""

    eval_strategy: Strategy = "no"
    """When to measure the evaluation loss during training: never, every eval_steps, or after each epoch.
    Upstream: SFTConfig(eval_strategy=)"""

    eval_steps: int | None = Field(default=None, ge=1)
    """With eval_strategy = "steps": evaluate every this many optimizer steps.
    Unit: optimizer steps
    Too small: evaluation takes much of the time.
    Too large: never reached, or overfitting shows late.
    Upstream: SFTConfig(eval_steps=)"""

    save_strategy: Strategy = "epoch"
    """When to write a checkpoint, for `fastft run --resume`: never, every save_steps, or after each epoch. Without it,
    save_steps means "steps".
    Upstream: SFTConfig(save_strategy=)"""

    save_steps: int | None = Field(default=None, ge=1)
    """With save_strategy = "steps": write a checkpoint every this many optimizer steps.
    Unit: optimizer steps
    Too small: writing checkpoints takes much of the time.
    Too large: a killed run loses much work.
    Upstream: SFTConfig(save_steps=)"""

    save_total_limit: int = Field(default=2, ge=1)
    """Keep only this many of the newest checkpoints (and the best one, with load_best_model_at_end).
    Unit: checkpoints
    Too small: with 1, there is no older one when the newest is damaged.
    Too large: the disk fills.
    Upstream: SFTConfig(save_total_limit=)"""

    load_best_model_at_end: bool = False
    """End with the checkpoint of the best evaluation instead of the last step.
    On: needs evaluation and checkpoints at the same points.
    Off: the last weights are kept.
    Upstream: SFTConfig(load_best_model_at_end=)"""

    metric_for_best_model: Literal["eval_loss", "eval_mean_token_accuracy", "f1", "accuracy"] | None = None
    """What "best" means for load_best_model_at_end and early_stopping_patience. Default: eval_loss. "f1" (macro F1) and
    "accuracy" are those of task = "classification".
    Upstream: SFTConfig(metric_for_best_model=)"""

    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better metric_for_best_model.
    Unit: evaluations
    Too small: noise ends the run early.
    Too large: the run wastes time after the best point.
    Upstream: EarlyStoppingCallback(early_stopping_patience=)"""

    stop_on_divergence: Literal["blow-up", "always", "never"] = "blow-up"
    """When a run that gets worse is stopped: "blow-up", once the loss is far above where it began; "always", already
    when it rises and stays; "never", it is only said. Loss, gradient norm and held-out loss are watched.
    Upstream: none (fastft watches the run)"""

    report_to: Literal["none"] | Annotated[tuple[str, ...], names_of(lambda: REPORTERS)] = ()
    """Where metrics go besides metrics.jsonl: "tensorboard", "wandb", "mlflow", "trackio" and others that transformers
    supports; "none", like an empty list, is nowhere else. The package of each must be installed.
    Upstream: SFTConfig(report_to=)"""

    dataloader_num_workers: int = Field(default=0, ge=0)
    """Processes that prepare batches. fastft tokenizes the rows before training, so 0 is enough for text.
    Unit: processes
    Too small: only matters when the GPU waits for data.
    Too large: more start-up time and memory for no gain.
    Upstream: SFTConfig(dataloader_num_workers=)"""

    deepspeed: str | None = None
    """What the processes of a run share with DeepSpeed: "zero1" the optimizer's state, "zero2" gradients too, "zero3"
    weights too; or a configuration of your own (`.json`, relative to the recipe), with "auto" for what the recipe says.
    Upstream: SFTConfig(deepspeed=)"""

    fsdp: Literal["full_shard"] | None = None
    """"full_shard": the processes of a run share weights, gradients and the optimizer's state with PyTorch's FSDP2, as
    "zero3" of train.deepspeed does; any number of processes continues the run.
    Upstream: torch.distributed.fsdp.fully_shard; SFTConfig(fsdp=) names the older FSDP too"""

    @property
    def shares_model(self) -> bool:
        """Whether processes share more than rows."""
        return self.deepspeed is not None or self.fsdp is not None

    @property
    def examples_per_step(self) -> int | None:
        """Examples of an optimizer step that batch and accumulation keep; None where they are written instead."""
        if self.effective_batch_size is None and self.per_device_train_batch_size == "auto":
            return EXAMPLES_PER_STEP if self.gradient_accumulation_steps is None else None
        return self.effective_batch_size


class EvalSection(Section):
    """Real generations on the held-out rows, counted before and after training."""

    exact_match: bool = False
    """Let the model answer each held-out prompt, before and after training, and count the answers that equal the
    reference exactly (except for surrounding white space). Greedy decoding makes the count repeatable.
    On: the run shows whether the model answers as the data does; costs two generations a row.
    Off: only the evaluation loss is measured.
    Upstream: none (model.generate(do_sample=False))"""

    max_examples: int = Field(default=100, ge=1)
    """The most held-out rows to generate answers for; the first ones when there are more.
    Unit: examples
    Too small: the count is coarse: 20 rows move in steps of 5 %.
    Too large: generation takes long.
    Upstream: none"""

    max_new_tokens: int = Field(default=256, ge=1)
    """The longest answer to generate. An answer that is cut off here counts as wrong.
    Unit: tokens
    Too small: right answers are cut off and count as wrong.
    Too large: a model that does not stop costs time.
    Upstream: model.generate(max_new_tokens=)"""

    regression_set: bool = True
    """Ask 100 short general questions (arithmetic, facts, formats, refusals) before and after training too, where
    answers are generated: what the model forgets shows in them. An answer has 8 tokens at most.
    On: costs two generations of 100 short answers.
    Off: forgetting shows only where the held-out rows ask for it.
    Upstream: none"""

    answer_format: Literal["json", "yaml"] | None = None
    """The format that every answer should have, counted as the measure format_valid. "yaml" means a mapping or a list:
    any text is a YAML string.
    Upstream: none (Python's json, PyYAML's safe loader)"""

    answer_pattern: str | None = Field(default=None, min_length=1, max_length=1000)
    """A regular expression of Python that every answer should match as a whole, counted as format_valid. Matching ends
    after 2 s: an answer that takes longer does not match.
    Upstream: none (re.fullmatch)"""

    answer_schema: str | None = Field(default=None, min_length=1)
    """A JSON schema in a file, beside the recipe or with a path, that the data of every answer should fit, counted as
    format_valid; answers are JSON, or YAML with answer_format = "yaml". References to other files are not followed.
    Upstream: none (jsonschema)"""

    fail_if: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Conditions that end the command with exit code 6 when the run has finished: ["exact_match < 0.8",
    "regression_drop > 0.05"]. A measure is that after training, with _drop or _rise its change. docs/evaluation.md
    lists the measures.
    Upstream: none"""


class ExportSection(Section):
    """The weights to write when training has finished."""

    formats: Annotated[tuple[Annotated[str, OneOf(export_formats)], ...], Field(strict=False, min_length=1)] = (
        "adapter",
    )
    """The weights to write: "adapter" (LoRA alone, always kept), "merged_16bit" (a whole model, for transformers and
    vLLM), "merged_4bit" (the same in bitsandbytes' NF4), "gguf" (one file for llama.cpp and Ollama).
    Upstream: model.save_pretrained for the adapter; fastft itself writes merged and GGUF weights"""

    quantization: Annotated[tuple[str, ...], names_of(lambda: QUANTIZATIONS)] = ()
    """The GGUF quantizations to write, for example ["q4_k_m", "q8_0"]. Only with "gguf" in formats; default: q8_0.
    Upstream: none (llama.cpp's names)"""


class ClassificationSection(Section):
    """The labels of task = "classification", its head and its loss."""

    labels: Names = ()
    """The names of the labels; their order gives the numbers, from 0. A row may name a label or give its number.
    Default: the labels of the training rows, numbers in their order and names by the alphabet.
    Upstream: AutoModelForSequenceClassification.from_pretrained(num_labels=, id2label=, label2id=)"""

    multi_label: bool = False
    """Whether a text may have any number of labels: `label` is then a list (in a CSV file: names between semicolons).
    On: a yes or no for each label, by a sigmoid; at most 31 labels.
    Off: exactly one label a text, by a softmax.
    Upstream: AutoModelForSequenceClassification.from_pretrained(problem_type=)"""

    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """How much a row of each label counts in the loss: "balanced" weighs rare labels up (rows / (labels x rows of the
    label)); a table gives the weights by name, 1 for those that it leaves out.
    Upstream: none (the loss of fastft)"""

    label_smoothing: Fraction = 0.0
    """The share of each target that is spread over all labels (Szegedy et al. 2016).
    Unit: share, 0 to 1
    Too small: 0 is the usual value; wrong labels in the data are learnt with full confidence.
    Too large: probabilities stay flat.
    Upstream: none (the loss of fastft)"""

    truncation: Literal["end", "middle", "start"] = "end"
    """Which part of a text longer than model.max_seq_length is left out, where data.overlong = "truncate" (the default
    of this task). Each such text is counted.
    Upstream: none (fastft cuts token ids)"""


class PreferenceSection(Section):
    """The loss of task = "preference"."""

    loss: Literal["dpo", "orpo", "kto"] = "dpo"
    """What is learnt from a preference. "dpo" (Rafailov et al. 2023): the chosen answer rises above the rejected one,
    as seen from the model before training. "orpo" (Hong et al. 2024): the chosen answer is learnt as in SFT, and its
    odds rise above those of the rejected one; for a base that was not fine-tuned before. "kto" (Ethayarajh et al.
    2024): each row is one answer with a verdict, good or bad.
    Upstream: trl.DPOTrainer, trl.experimental.orpo.ORPOTrainer, trl.KTOTrainer; the loss is fastft's own"""

    beta: float = Field(default=0.1, gt=0, le=10)
    """With "dpo" and "kto": how strongly the model is held near the one before training. With "orpo": the weight of the
    odds beside the loss of the chosen answer.
    Unit: reward per nat of log-probability; with "orpo" a factor
    Too small: with "dpo" the model moves far from its base, and its answers may fall apart.
    Too large: little is learnt of the preference.
    Upstream: DPOConfig(beta=), ORPOConfig(beta=), KTOConfig(beta=)"""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """With "dpo": the share of pairs that is taken to be the wrong way round (cDPO, Mitchell 2023).
    Unit: share, 0 to 0.5
    Too small: 0 is the usual value; wrong pairs are learnt with full confidence.
    Too large: little is learnt.
    Upstream: DPOConfig(label_smoothing=)"""

    desirable_weight: float = Field(default=1.0, gt=0, le=100)
    """With "kto": how much a good answer counts. Where one verdict is rarer, its weight times its rows should be 1 to
    4/3 of the other's (Ethayarajh et al. 2024, equation 9).
    Unit: factor
    Too small: the model only learns what to avoid.
    Too large: bad answers are not unlearnt.
    Upstream: KTOConfig(desirable_weight=)"""

    undesirable_weight: float = Field(default=1.0, gt=0, le=100)
    """With "kto": how much a bad answer counts.
    Unit: factor
    Too small: bad answers are not unlearnt.
    Too large: the model only learns what to avoid.
    Upstream: KTOConfig(undesirable_weight=)"""

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the model before training."""
        return self.loss != "orpo"

    @property
    def in_pairs(self) -> bool:
        """Whether a row is a chosen and a rejected answer; else one answer with a verdict."""
        return self.loss != "kto"


class Recipe(Section):
    """One file, one run."""

    task: Literal["sft", "classification", "preference"] = "sft"
    """What is learnt, at the top of the recipe, before any section: "sft" to answer as the rows do, "classification"
    to give each text its label, "preference" to prefer the chosen answers to the rejected ones.
    Upstream: trl.SFTTrainer, or transformers.Trainer"""

    model: ModelSection
    lora: LoraSection = LoraSection()
    classification: ClassificationSection = ClassificationSection()
    preference: PreferenceSection = PreferenceSection()
    data: DataSection
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    export: ExportSection = ExportSection()

    @property
    def adds_tokens(self) -> bool:
        """Whether the vocabulary grows."""
        return bool(self.data.add_tokens or self.data.add_special_tokens)

    @property
    def labelled(self) -> ClassificationSection | None:
        """What is said of the labels, None where the rows have none."""
        return self.classification if self.task == "classification" else None

    @property
    def preferred(self) -> PreferenceSection | None:
        """What is said of preferences, None where none are learnt."""
        return self.preference if self.task == "preference" else None

    @property
    def texts_per_row(self) -> int:
        """How many texts of up to model.max_seq_length tokens a row holds."""
        return 2 if self.preferred is not None and self.preference.in_pairs else 1

    @property
    def row_tokens(self) -> int:
        """The most tokens of a row."""
        return self.texts_per_row * self.model.max_seq_length
