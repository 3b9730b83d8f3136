"""The literal keyword arguments of every upstream call, by the versions that are installed.

What upstream renamed is mapped here and nowhere else, by explicit version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastft.planning.batching import Mode
from fastft.planning.choices import Choices
from fastft.planning.trained import full_layers
from fastft.recipe.model import Recipe
from fastft.recipe.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Call:
    """One upstream call: its dotted name, and the keyword arguments that can be written down.

    Objects that only exist while a run goes on (the model, the tokenizer, the rows) are added by the engine.
    """

    name: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Calls:
    """The upstream calls of a run.

    `adapter`: None with full fine-tuning. `tokens`: none where no token is added. `optimizer`: None where the trainer
    makes its own, by `optim`.
    """

    load: Call
    adapter: Call | None
    trainer: Call
    tokens: tuple[Call, ...] = ()
    optimizer: Call | None = None
    shard: Call | None = None
    """Splitting the model among the ranks, once for each layer and once for the rest."""

    @property
    def in_order(self) -> tuple[Call, ...]:
        """Those that are made, in the order in which they are made."""
        calls = (self.load, *self.tokens, self.adapter, self.shard, self.trainer, self.optimizer)
        return tuple(call for call in calls if call is not None)


def load_call(recipe: Recipe, model_path: str, choices: Choices, labels: tuple[str, ...] = ()) -> Call:
    """Loading the base model: Unsloth's loader, or transformers' own; with a head for `labels`."""
    model = recipe.model
    implementation = choices.attn_implementation.value
    attention = {} if implementation == "auto" else {"attn_implementation": implementation}
    revision = {} if model.revision is None else {"revision": model.revision}
    shared = {"dtype": choices.dtype.value, "trust_remote_code": model.trust_remote_code}
    if choices.engine.value == "unsloth":
        return Call(
            "unsloth.FastLanguageModel.from_pretrained",
            {
                "model_name": model_path,
                "max_seq_length": model.max_seq_length,
                **shared,
                "load_in_4bit": choices.load_in_4bit.value,
                "full_finetuning": model.full_finetuning,
                "use_gradient_checkpointing": choices.gradient_checkpointing.value,
                # Unsloth swaps a model name for its own 4-bit upload unless asked to take the name as it is.
                "use_exact_model_name": True,
                **revision,
                **attention,
            },
        )
    quantized = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": choices.dtype.value,
    }
    names = labels or recipe.classification.labels
    head: dict[str, Any] = {}
    if recipe.task == "classification" and names:
        several = recipe.classification.multi_label
        head = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "multi_label_classification" if several else "single_label_classification",
        }
    of = "SequenceClassification" if recipe.task == "classification" else "CausalLM"
    return Call(
        f"transformers.AutoModelFor{of}.from_pretrained",
        {
            "pretrained_model_name_or_path": model_path,
            **shared,
            **head,
            **({"quantization_config": quantized} if choices.load_in_4bit.value else {}),
            **revision,
            **attention,
        },
    )


def token_calls(recipe: Recipe) -> tuple[Call, ...]:
    """Adding tokens to the tokenizer, in the order of their ids; embedding and output layer grow with it."""
    lists = ((recipe.data.add_tokens, False), (recipe.data.add_special_tokens, True))
    return tuple(
        Call("transformers.PreTrainedTokenizerBase.add_tokens", {"new_tokens": list(texts), "special_tokens": special})
        for texts, special in lists
        if texts
    )


def adapter_call(recipe: Recipe, choices: Choices, *, tied: bool = False) -> Call:
    """Attaching the adapter: Unsloth's `get_peft_model`, or PEFT's `LoraConfig` for its own.

    `tied`: whether the output layer is the embedding itself; it stays so where tokens are added.
    """
    lora = recipe.lora
    tie: dict[str, Any] = {"ensure_weight_tying": True} if tied and recipe.adds_tokens else {}
    shared: dict[str, Any] = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": list(choices.target_modules.value),
        "bias": lora.bias,
        "use_rslora": lora.use_rslora,
        **({"use_dora": True} if lora.use_dora else {}),
        "modules_to_save": list(full_layers(recipe).names(tied=tied)) or None,
        **tie,
    }
    if choices.engine.value == "unsloth":
        extra = {
            "use_gradient_checkpointing": choices.gradient_checkpointing.value,
            "random_state": recipe.train.seed,
        }
        return Call("unsloth.FastLanguageModel.get_peft_model", {**shared, **extra})
    if recipe.task == "classification":
        shared["modules_to_save"] = list(dict.fromkeys([*lora.modules_to_save, "score"]))
        return Call("peft.LoraConfig", {**shared, "task_type": "SEQ_CLS"})
    return Call("peft.LoraConfig", {**shared, "task_type": "CAUSAL_LM"})


def shard_call(recipe: Recipe) -> Call | None:
    """Splitting the model with FSDP2; None where it is not."""
    if recipe.train.fsdp is None:
        return None
    return Call("torch.distributed.fsdp.fully_shard", {"reshard_after_forward": True})


def trainer_call(
    recipe: Recipe,
    output_dir: str,
    choices: Choices,
    mode: Mode,
    transformers: tuple[int, ...],
    deepspeed: Mapping[str, Any] | None,
    *,
    ranks_on_cpu: bool = False,
) -> Call:
    """The trainer's configuration, `trl.SFTConfig`, in the words of the installed transformers version."""
    train = recipe.train
    packing = choices.packing.value
    optional: dict[str, Any] = {
        "max_steps": train.max_steps,
        "num_train_epochs": None if train.max_steps is not None else train.num_train_epochs or 1.0,
        "tf32": None if train.tf32 == "auto" else train.tf32,
        "neftune_noise_alpha": train.neftune_noise_alpha,
        "eval_steps": train.eval_steps,
        "save_steps": train.save_steps,
        "deepspeed": deepspeed,
    }
    if train.load_best_model_at_end or train.early_stopping_patience is not None:
        metric = train.metric_for_best_model or "eval_loss"
        upstream = f"eval_{metric.removeprefix('eval_')}"
        optional |= {"metric_for_best_model": upstream, "greater_is_better": metric != "eval_loss"}
    kwargs: dict[str, Any] = {
        "output_dir": output_dir,
        "per_device_train_batch_size": choices.per_device_train_batch_size.value,
        "per_device_eval_batch_size": choices.per_device_train_batch_size.value,
        "gradient_accumulation_steps": choices.gradient_accumulation_steps.value,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        **_warmup(recipe, transformers),
        **_optimizer(recipe, choices),
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "max_grad_norm": train.max_grad_norm,
        "bf16": choices.bf16.value and not _is_bfloat16_throughout(recipe, choices),
        "fp16": choices.fp16.value,
        "torch_compile": train.torch_compile,
        "gradient_checkpointing": choices.recomputes,
        "seed": train.seed,
        # Rows are tokenized, masked and cut by fastft; with packing TRL only joins them (no row is longer than a row).
        "packing": packing,
        **_packing(choices, mode),
        "max_length": recipe.model.max_seq_length if packing else None,
        **_sampling(choices.group_by_length.value, transformers),
        **_placement(ranks_on_cpu),
        "dataloader_num_workers": train.dataloader_num_workers,
        "logging_steps": train.logging_steps,
        "logging_first_step": True,
        # The default hides NaN: a lost run would log a loss of 0.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none" if train.report_to in ("none", ()) else list(train.report_to),
        "eval_strategy": train.eval_strategy,
        "save_strategy": train.save_strategy,
        "save_total_limit": train.save_total_limit,
        "load_best_model_at_end": train.load_best_model_at_end,
        **{key: value for key, value in optional.items() if value is not None},
    }
    if recipe.task != "sft":
        for name in ("packing", "dataset_kwargs", "padding_free", "max_length"):
            kwargs.pop(name, None)
        labels = ["labels"] if recipe.task == "classification" else ["rows"]
        return Call("transformers.TrainingArguments", {**kwargs, "remove_unused_columns": False, "label_names": labels})
    return Call("trl.SFTConfig", kwargs)


def optimizer_call(recipe: Recipe, choices: Choices) -> Call | None:
    """What makes the optimizer where the trainer has no name for it: torch's class, or PEFT's LoRA+.

    LoRA+ calls the class of `optim`; its adapters of embeddings learn as fast as those of other layers.
    """
    train, row = recipe.train, OPTIMIZERS[choices.optim.value]
    own = {**row.fixed, **train.optim_args} if row.upstream is None else {}
    if train.loraplus_lr_ratio is not None:
        rates = {
            "lr": train.learning_rate,
            "loraplus_lr_ratio": train.loraplus_lr_ratio,
            "loraplus_lr_embedding": train.learning_rate,
            "loraplus_weight_decay": train.weight_decay,
        }
        kind = {"optimizer_cls": row.class_name} if row.upstream is None else {}
        return Call("peft.optimizers.create_loraplus_optimizer", {**kind, **rates, **own})
    return None if row.upstream is not None else Call(row.class_name, {"lr": train.learning_rate, **own})


def _optimizer(recipe: Recipe, choices: Choices) -> dict[str, Any]:
    """The optimizer in the trainer's words; nothing where it is made beside the trainer."""
    row, given = OPTIMIZERS[choices.optim.value], recipe.train.optim_args
    if row.upstream is None:
        return {}
    words = ",".join(f"{name}={str(value).lower()}" for name, value in given.items())
    layers = {"optim_target_modules": list(choices.target_modules.value)} if row.whole_layers else {}
    return {"optim": row.upstream, **({"optim_args": words} if given else {}), **layers}


def _packing(choices: Choices, mode: Mode) -> dict[str, Any]:
    if not choices.packing.value:
        # By name, because Unsloth chooses padded batches itself on some cards (unsloth/utils/padding_choice.py).
        return {"dataset_kwargs": {"skip_prepare_dataset": True}, "padding_free": mode == "padding_free"}
    # Unsloth would share the packing among processes by the machine's size, and each share packs by itself: the number
    # of rows, and so of steps, would differ from machine to machine.
    return {"packing_strategy": "bfd", **({"dataset_num_proc": 1} if choices.engine.value == "unsloth" else {})}


def _is_bfloat16_throughout(recipe: Recipe, choices: Choices) -> bool:
    """Whether Unsloth trains all weights in bfloat16 itself: it then switches mixed precision off (models/rl.py)."""
    whole = recipe.model.full_finetuning and choices.engine.value == "unsloth"
    return whole and choices.dtype.value == "bfloat16"


def _warmup(recipe: Recipe, transformers: tuple[int, ...]) -> dict[str, Any]:
    """transformers 5 dropped `warmup_ratio`: a `warmup_steps` below 1 is the share of all steps."""
    ratio, steps = recipe.train.warmup_ratio, recipe.train.warmup_steps
    if ratio is None:
        return {"warmup_steps": steps or 0}
    return {"warmup_steps": ratio} if transformers >= (5,) else {"warmup_ratio": ratio}


def _placement(ranks_on_cpu: bool) -> dict[str, Any]:
    """Without it each process on a processor trains alone (transformers/training_args.py, _setup_devices)."""
    return {"use_cpu": True} if ranks_on_cpu else {}


def _sampling(grouped: bool, transformers: tuple[int, ...]) -> dict[str, Any]:
    """transformers 5 renamed `group_by_length` to a value of `train_sampling_strategy`."""
    if transformers < (5,):
        return {"group_by_length": grouped}
    return {"train_sampling_strategy": "group_by_length" if grouped else "random"}
