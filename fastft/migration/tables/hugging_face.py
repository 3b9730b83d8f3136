"""The arguments of transformers' TrainingArguments, TRL's SFTConfig and PEFT, which most tools share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastft.migration.arguments import LostError, Row, Settings, key, keys, lost, other_task, unneeded
from fastft.migration.values import (
    attention,
    checkpointing,
    flag,
    flag_or_auto,
    is_on,
    names,
    number_type,
    optimizer,
    optimizer_arguments,
    real,
    reporters,
    scheduler,
    strategy,
    table_of,
    targets,
    text,
    whole,
)

FOLDER = "a run has its own folder: runs/<name of the recipe>"
LOGS = "how the run is shown; metrics.jsonl has every figure"
HUB = "`fastft export --push` uploads what was proven"
LOADING = "how rows are prepared; fastft tokenizes them before training"
KERNELS = "a faster kernel with the same result; the engine chooses"
LAUNCH = "how processes start: `fastft launch`"
SAME = "what fastft does anyway"
REMOTE_CODE = "a model that needs its own code is refused until revision and trust_remote_code are set"


def max_steps(value: Any, _: Mapping[str, Any]) -> Settings | str:
    """-1 means by epochs."""
    return {"train.max_steps": whole(value)} if whole(value) > 0 else "asks for nothing"


def epochs(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Where max_steps is set it decides."""
    if real(given.get("max_steps") or -1) > 0:
        return "max_steps decides"
    return {"train.num_train_epochs": real(value)}


def warmup_ratio(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Warm-up steps above 0 decide, and a constant schedule has none."""
    if real(given.get("warmup_steps") or 0) > 0:
        return "warmup_steps decides"
    return _warmup("train.warmup_ratio", real(value), given)


def warmup_steps(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """A number below 1 is a share, as in transformers 5."""
    number = real(value)
    if 0 < number < 1:
        return _warmup("train.warmup_ratio", number, given)
    if number == 0 and given.get("warmup_ratio"):
        return "warmup_ratio decides"
    return _warmup("train.warmup_steps", whole(value), given)


def _optim_args(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return {"train.optim_args": optimizer_arguments(value)} if value else "asks for nothing"


def _warmup(field: str, number: float, given: Mapping[str, Any]) -> Settings | str:
    schedule = given.get("lr_scheduler_type") or given.get("lr_scheduler")
    return "the constant schedule has no warm-up" if schedule == "constant" and number else {field: number}


def every(field: str, value: Any) -> Settings | str:
    """`save_steps` or `eval_steps`: a share of the run has no key, and changes no result."""
    number = real(value)
    return "a share of the run; a recipe counts steps" if 0 < number < 1 else {field: whole(value)}


def save_steps(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Has an effect where the strategy is steps, which is the default."""
    if given.get("save_strategy", "steps") != "steps":
        return f"save_strategy is {given['save_strategy']}"
    found = every("train.save_steps", value)
    return found if isinstance(found, str) else {"train.save_strategy": "steps", **found}


def save_strategy(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Steps need their number, which is 500 in transformers."""
    name = strategy(value)
    number = real(given.get("save_steps") or 500)
    if name != "steps":
        return {"train.save_strategy": name}
    if number < 1:
        return {"train.save_strategy": "epoch"}
    return {"train.save_strategy": "steps", "train.save_steps": whole(number)}


def eval_strategy(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Steps need their number, which is logging_steps where none is given."""
    name = strategy(value)
    if name != "steps":
        return {"train.eval_strategy": name}
    number = real(given.get("eval_steps") or given.get("logging_steps") or 500)
    if number < 1:
        return {"train.eval_strategy": "epoch"}
    return {"train.eval_strategy": "steps", "train.eval_steps": whole(number)}


def eval_steps(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Has an effect only beside the strategy, whose row takes it."""
    wanted = given.get("eval_strategy") or given.get("evaluation_strategy")
    return "eval_strategy is not steps" if wanted != "steps" else every("train.eval_steps", value)


def save_total_limit(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Has no effect where nothing is saved."""
    return (
        "nothing is saved" if given.get("save_strategy") == "no" else {"train.save_total_limit": max(1, whole(value))}
    )


def only_off(why: str, field: str) -> Any:
    """A switch that a recipe can say when it is on."""

    def take(value: Any, _: Mapping[str, Any]) -> Settings | str:
        return {field: True} if is_on(value) else why

    return take


def _deepspeed(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """A configuration, or DeepSpeed's own switch, whose configuration is `deepspeed_config`."""
    return LAUNCH if value is True and "deepspeed_config" in given else {"train.deepspeed": text(value)}


def _revision(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return "the main branch is the default" if value == "main" else {"model.revision": text(value)}


def _labels(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return {"train.neftune_noise_alpha": real(value)} if real(value) > 0 else "asks for nothing"


def _best(value: Any, _: Mapping[str, Any]) -> Settings | str:
    name = text(value)
    name = name if name.startswith("eval_") else f"eval_{name}"
    if name not in ("eval_loss", "eval_mean_token_accuracy"):
        raise LostError("fastft measures eval_loss and eval_mean_token_accuracy")
    return {"train.metric_for_best_model": name}


def _schedule_arguments(value: Any, _: Mapping[str, Any]) -> Settings | str:
    if table_of(value):
        raise LostError("a recipe has no arguments of a schedule")
    return "asks for nothing"


TRAINING: tuple[Row, ...] = (
    key("per_device_train_batch_size", "train.per_device_train_batch_size", whole),
    key("gradient_accumulation_steps", "train.gradient_accumulation_steps", whole),
    key("learning_rate", "train.learning_rate", real),
    key("lr_scheduler_type", "train.lr_scheduler_type", scheduler),
    keys("lr_scheduler_kwargs", (), _schedule_arguments),
    keys("num_train_epochs", ("train.num_train_epochs",), epochs),
    keys("max_steps", ("train.max_steps",), max_steps),
    keys("warmup_ratio", ("train.warmup_ratio",), warmup_ratio),
    keys("warmup_steps", ("train.warmup_steps", "train.warmup_ratio"), warmup_steps),
    key("optim", "train.optim", optimizer),
    keys("optim_args", ("train.optim_args",), _optim_args),
    key("weight_decay", "train.weight_decay", real),
    key("adam_beta1", "train.adam_beta1", real),
    key("adam_beta2", "train.adam_beta2", real),
    key("adam_epsilon", "train.adam_epsilon", real),
    key("max_grad_norm", "train.max_grad_norm", real),
    key("packing", "train.packing", flag),
    key("group_by_length", "train.group_by_length", flag),
    key("gradient_checkpointing", "train.gradient_checkpointing", checkpointing),
    key("bf16", "train.bf16", flag_or_auto),
    key("fp16", "train.fp16", flag_or_auto),
    key("tf32", "train.tf32", flag_or_auto),
    key("torch_compile", "train.torch_compile", flag),
    keys("neftune_noise_alpha", ("train.neftune_noise_alpha",), _labels),
    key("seed", "train.seed", whole),
    key("logging_steps", "train.logging_steps", lambda value: max(1, whole(value))),
    keys("eval_strategy", ("train.eval_strategy", "train.eval_steps"), eval_strategy),
    keys("evaluation_strategy", ("train.eval_strategy", "train.eval_steps"), eval_strategy),
    keys("eval_steps", ("train.eval_steps",), eval_steps),
    keys("save_strategy", ("train.save_strategy", "train.save_steps"), save_strategy),
    keys("save_steps", ("train.save_strategy", "train.save_steps"), save_steps),
    keys("save_total_limit", ("train.save_total_limit",), save_total_limit),
    key("load_best_model_at_end", "train.load_best_model_at_end", flag),
    keys("metric_for_best_model", ("train.metric_for_best_model",), _best),
    key("report_to", "train.report_to", reporters),
    key("dataloader_num_workers", "train.dataloader_num_workers", whole),
    keys("deepspeed", ("train.deepspeed",), _deepspeed),
    key("deepspeed_config", "train.deepspeed", text),
    *unneeded(FOLDER, "output_dir", "overwrite_output_dir", "run_name", "resume_from_checkpoint", "logging_dir"),
    *unneeded(LOGS, "logging_strategy", "logging_first_step", "log_level", "disable_tqdm", "plot_loss"),
    *unneeded(LOGS, "include_num_input_tokens_seen", "include_tokens_per_second", "project"),
    *unneeded(
        HUB,
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
        "hub_always_push",
        "hub_model_revision",
    ),
    *unneeded(
        LOADING,
        "dataset_num_proc",
        "preprocessing_num_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
        "remove_unused_columns",
        "data_seed",
        "overwrite_cache",
        "dataset_batch_size",
    ),
    *unneeded(LAUNCH, "ddp_timeout", "ddp_find_unused_parameters", "local_rank", "fsdp", "fsdp_config", "ddp_backend"),
    *unneeded(LAUNCH, "fsdp_transformer_layer_cls_to_wrap"),
    *unneeded(LAUNCH, "accelerator_config"),
    *unneeded(
        "the result is the same either way", "gradient_checkpointing_kwargs", "save_only_model", "save_safetensors"
    ),
    *unneeded(KERNELS, "use_liger_kernel", "padding_free", "pad_to_multiple_of", "packing_strategy", "use_liger"),
    *unneeded("an evaluation gives the same figures with any batch", "per_device_eval_batch_size", "eval_batch_size"),
    *unneeded("nothing is evaluated unless eval_strategy says so", "do_eval", "do_train", "eval_on_start"),
    *unneeded(
        SAME, "average_tokens_across_devices", "greater_is_better", "dataloader_drop_last", "completion_only_loss_"
    ),
    *unneeded("the evaluation ends at the rows that are held out", "eval_accumulation_steps", "eval_packing"),
    *lost("the loss is another one", "label_smoothing_factor", unless=(0, 0.0, "0", "0.0", False)),
    *lost("low-rank optimizers project the layers that LoRA adapts", "optim_target_modules", unless=("",)),
)

MODEL: tuple[Row, ...] = (
    key("model_name_or_path", "model.id", text),
    keys("model_revision", ("model.revision",), _revision),
    key("torch_dtype", "model.dtype", number_type),
    key("dtype", "model.dtype", number_type),
    key("attn_implementation", "model.attn_implementation", attention),
    key("load_in_4bit", "model.load_in_4bit", flag),
    *lost("fastft has no 8-bit base weights", "load_in_8bit", unless=(False, "False", "false")),
    *unneeded(REMOTE_CODE, "trust_remote_code"),
    *unneeded("QLoRA is NF4 here", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant"),
    *unneeded("QLoRA is NF4 here", "use_bnb_nested_quant", "double_quantization"),
    *unneeded("downloads go to the Hub's own cache, with its own login", "cache_dir", "token", "use_auth_token"),
)

ADAPTER: tuple[Row, ...] = (
    key("lora_r", "lora.r", whole),
    key("lora_alpha", "lora.lora_alpha", whole),
    key("lora_dropout", "lora.lora_dropout", real),
    key("lora_target_modules", "lora.target_modules", targets),
    key("lora_modules_to_save", "lora.modules_to_save", names),
    key("lora_bias", "lora.bias", text),
    key("use_rslora", "lora.use_rslora", flag),
    key("use_dora", "lora.use_dora", flag),
    *unneeded("a causal language model is what fastft trains", "lora_task_type"),
)

EVALUATION = (key("early_stopping_patience", "train.early_stopping_patience", whole),)
PICTURES = other_task(
    "a model of pictures or sound; fastft trains text",
    "image_max_pixels",
    "video_max_pixels",
    "video_fps",
    "video_maxlen",
    "freeze_vision_tower",
    "freeze_multi_modal_projector",
    "freeze_vit",
    "freeze_aligner",
    "processor_type",
    "processor_config",
    unless=(),
)

# What transformers takes where nothing is said (TrainingArguments of 5.17), as far as it changes the result.
TRAINER_DEFAULTS: Settings = {
    "train.per_device_train_batch_size": 8,
    "train.learning_rate": 5e-5,
    "train.num_train_epochs": 3.0,
    "train.optim": "adamw_torch",
}
