"""LLaMA-Factory, TRL, ms-swift, and scripts that take TrainingArguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastft.migration.arguments import (
    LostError,
    OtherTaskError,
    Row,
    Settings,
    Tool,
    key,
    keys,
    lost,
    other_task,
    table,
    unneeded,
)
from fastft.migration.tables.datasets import (
    llama_factory_datasets,
    swift_datasets,
    template,
    trl_dataset,
    trl_mixture,
    trl_test_split,
)
from fastft.migration.tables.hugging_face import (
    ADAPTER,
    EVALUATION,
    FOLDER,
    KERNELS,
    LAUNCH,
    LOADING,
    MODEL,
    PICTURES,
    SAME,
    TRAINER_DEFAULTS,
    TRAINING,
)
from fastft.migration.values import (
    attention,
    is_on,
    real,
    share,
    targets,
    text,
    tokens,
    whole,
)


def _processes(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """The examples of a step, over all processes: `fastft launch` shares them."""
    count = whole(value)
    if count == 1:
        return LAUNCH
    batch, steps = given.get("per_device_train_batch_size", 8), given.get("gradient_accumulation_steps", 1)
    return {"train.effective_batch_size": count * whole(batch) * whole(steps)}


_PROCESSES = ("nproc_per_node", "num_processes", "num_gpus")
_LAUNCHER = (
    *(keys(name, ("train.effective_batch_size",), _processes) for name in _PROCESSES),
    *unneeded(
        LAUNCH,
        *(
            "hostfile",
            "nnodes",
            "node_rank",
            "master_addr",
            "master_port",
        ),
        *("config_file", "num_machines", "machine_rank", "main_process_port", "main_process_ip", "include", "exclude"),
        *(
            "multi_gpu",
            "mixed_precision",
            "standalone",
            "rdzv_backend",
            "rdzv_endpoint",
            "use_deepspeed",
            "force_multi",
            "accelerate_config",
        ),
    ),
)


def only(wanted: tuple[str, ...], what: str) -> Any:
    """Refuses every value but `wanted`: another kind of training."""

    def take(value: Any, _: Mapping[str, Any]) -> Settings | str:
        if str(value) not in wanted:
            raise OtherTaskError(f"{what} {value}; fastft convert reads supervised fine-tuning of text")
        return SAME

    return take


def _tuning(value: Any, _: Mapping[str, Any]) -> Settings | str:
    if value == "full":
        return {"model.full_finetuning": True}
    if value == "lora":
        return "LoRA is the default"
    raise LostError("fastft trains LoRA or every weight")


def _bits(value: Any, given: Mapping[str, Any]) -> Settings | str:
    if whole(value) != 4:
        raise LostError("fastft has 4-bit base weights only")
    if given.get("quantization_method", given.get("quant_method", "bnb")) not in ("bnb", "bitsandbytes"):
        raise LostError("fastft quantizes with bitsandbytes")
    return {"model.load_in_4bit": True}


def _pure(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return {"model.dtype": "bfloat16", "train.bf16": True} if is_on(value) else "asks for nothing"


def _held_out(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return {"data.eval_fraction": share(value)} if real(value) else "nothing is held out"


def _all_if(on: str, off: str) -> Any:
    def take(value: Any, _: Mapping[str, Any]) -> Settings | str:
        return {"data.train_on": on if is_on(value) else off}

    return take


def _eval_sets(value: Any, given: Mapping[str, Any]) -> Settings | str:
    found = llama_factory_datasets(value, given)
    if isinstance(found, dict) and "data.train" in found:
        return {"data.eval": found["data.train"]}
    raise LostError("a recipe has one held-out source")


_LLAMA_FACTORY: tuple[Row, ...] = (
    *TRAINING,
    *MODEL,
    *ADAPTER,
    *PICTURES,
    *_LAUNCHER,
    keys("stage", (), only(("sft",), "stage")),
    keys("finetuning_type", ("model.full_finetuning",), _tuning),
    key("cutoff_len", "model.max_seq_length", whole),
    key("lora_rank", "lora.r", whole),
    key("lora_target", "lora.target_modules", targets),
    key("add_tokens", "data.add_tokens", tokens),
    key("add_special_tokens", "data.add_special_tokens", tokens),
    *unneeded("the vocabulary grows with the added tokens, and its new rows are trained", "resize_vocab"),
    key("additional_target", "lora.modules_to_save", lambda value: text(value).split(",")),
    keys("dataset", ("data.train", "data.sources", "data.format"), llama_factory_datasets),
    keys("eval_dataset", ("data.eval",), _eval_sets),
    keys("template", ("data.chat_template",), lambda value, _: template(value)),
    keys("val_size", ("data.eval_fraction",), _held_out),
    keys("quantization_bit", ("model.load_in_4bit",), _bits),
    keys("pure_bf16", ("model.dtype", "train.bf16"), _pure),
    keys("train_on_prompt", ("data.train_on",), _all_if("all", "assistant")),
    keys("mask_history", ("data.train_on",), _all_if("last", "assistant")),
    key("flash_attn", "model.attn_implementation", attention),
    key("loraplus_lr_ratio", "train.loraplus_lr_ratio", real),
    keys(
        "disable_gradient_checkpointing",
        ("train.gradient_checkpointing",),
        lambda value, _: {"train.gradient_checkpointing": not is_on(value)},
    ),
    *unneeded("goes into each source as limit", "max_samples"),
    *unneeded("the folder of dataset_info.json, which `dataset` reads", "dataset_dir"),
    *unneeded("says how quantization_bit is done", "quantization_method", "quantization_type"),
    *unneeded(
        KERNELS,
        "use_unsloth",
        "enable_liger_kernel",
        "use_v1_kernels",
        "use_unsloth_gc",
        "use_reentrant_gc",
        "shift_attn_",
        "neat_packing",
    ),
    *unneeded(
        LAUNCH,
        "ray_num_workers",
        "ray_run_name",
        "ray_storage_path",
        "resources_per_worker",
        "placement_strategy",
    ),
    *unneeded(FOLDER, "tokenized_path", "export_dir"),
    *unneeded("KTransformers, which computes experts on the CPU", "use_kt", "kt_config", "kt_cpu_activation"),
    *unneeded("reasoning of a row is kept as the template does", "enable_thinking"),
    *unneeded("the picture parts stay as they are", "freeze_language_model"),
    *lost(
        "a method that fastft does not have",
        *(
            "use_galore",
            "use_apollo",
            "use_badam",
            "use_adam_mini",
            "use_muon",
            "use_llama_pro",
            "pissa_init",
            "use_dft_loss",
        ),
        *(
            "use_eaft_loss",
            "use_asft_loss",
            "mixture_of_depths",
            "fp8",
            "fp8_enable_fsdp_float8_all_gather",
            "adapter_name_or_path",
        ),
        *(
            "create_new_adapter",
            "rope_scaling",
            "new_special_tokens_config",
            "freeze_trainable_layers",
            "oft_block_size",
        ),
    ),
    *other_task("learns from preferences", "pref_beta", "pref_loss", "pref_ftx", unless=()),
    *other_task("predicts and trains nothing", "do_predict", "predict_with_generate"),
)


def _llama_factory_defaults(_: Mapping[str, Any], settings: Settings) -> Settings:
    rank = settings.get("lora.r", 8)
    return {**TRAINER_DEFAULTS, "lora.r": rank, "lora.lora_alpha": 2 * rank}


TRL_ROWS: tuple[Row, ...] = (
    *TRAINING,
    *MODEL,
    *ADAPTER,
    *_LAUNCHER,
    *EVALUATION,
    keys("dataset_name", ("data.train",), trl_dataset),
    keys("dataset_test_split", ("data.eval",), trl_test_split),
    keys("dataset_mixture", ("data.train", "data.sources", "data.eval_fraction"), trl_mixture),
    *unneeded(
        "part of data.train: org/name/configuration:split", "dataset_config", "dataset_train_split", "dataset_streaming"
    ),
    key("max_length", "model.max_seq_length", whole),
    key("max_seq_length", "model.max_seq_length", whole),
    keys(
        "use_peft",
        ("model.full_finetuning",),
        lambda value, _: "LoRA is the default" if is_on(value) else {"model.full_finetuning": True},
    ),
    keys("assistant_only_loss", ("data.train_on",), _all_if("assistant", "all")),
    keys("completion_only_loss", ("data.train_on",), _all_if("assistant", "all")),
    keys("chat_template", ("data.chat_template",), lambda value, _: template(value)),
    keys("chat_template_path", ("data.chat_template",), lambda value, _: template(value)),
    keys(
        "dataset_text_field",
        ("data.columns",),
        lambda value, _: (
            "the column of plain text by its usual name"
            if value in ("text", "", None)
            else {"data.columns": {"text": text(value)}}
        ),
    ),
    *unneeded("the template's own end token ends an answer and carries loss", "eos_token"),
    *unneeded(LOADING, "dataset_kwargs", "use_bfd_packing"),
    *unneeded(KERNELS, "activation_offloading"),
    *unneeded("fastft's own loss is the mean over trained tokens", "loss_type"),
    *other_task(
        "learns from preferences or rewards",
        "beta",
        "max_prompt_length",
        "num_generations",
        "reward_funcs",
        "dataset_mixer",
        unless=(),
    ),
    keys("task", (), only(("sft",), "trl")),
)


def _trl_defaults(given: Mapping[str, Any], _: Settings) -> Settings:
    found = {**TRAINER_DEFAULTS, "train.learning_rate": 2e-5, "model.max_seq_length": 1024, "data.train_on": "all"}
    if is_on(given.get("use_peft")):
        return {**found, "lora.lora_alpha": 32, "lora.lora_dropout": 0.05, "lora.target_modules": ["q_proj", "v_proj"]}
    return {**found, "model.full_finetuning": True}


def _loss_scale(value: Any, _: Mapping[str, Any]) -> Settings | str:
    known = {"default": "assistant", "last_round": "last", "all": "all"}
    if text(value) not in known:
        raise LostError("ms-swift weighs parts of the answers")
    return {"data.train_on": known[text(value)]}


_SWIFT: tuple[Row, ...] = (
    *TRAINING,
    *MODEL,
    *ADAPTER,
    *PICTURES,
    *_LAUNCHER,
    keys("task", (), only(("sft",), "swift")),
    keys("task_type", (), only(("causal_lm",), "task_type")),
    key("model", "model.id", text),
    keys("dataset", ("data.train", "data.sources"), swift_datasets),
    keys("val_dataset", ("data.eval",), lambda value, _: {"data.eval": text(value)}),
    keys("split_dataset_ratio", ("data.eval_fraction",), _held_out),
    keys("tuner_type", ("model.full_finetuning",), _tuning),
    keys("train_type", ("model.full_finetuning",), _tuning),
    key("lora_rank", "lora.r", whole),
    key("target_modules", "lora.target_modules", targets),
    key("modules_to_save", "lora.modules_to_save", lambda value: [value] if isinstance(value, str) else list(value)),
    key("attn_impl", "model.attn_implementation", attention),
    keys("template", ("data.chat_template",), lambda value, _: template(value)),
    keys("quant_bits", ("model.load_in_4bit",), _bits),
    keys("loss_scale", ("data.train_on",), _loss_scale),
    key("max_length", "model.max_seq_length", whole),
    key("early_stop_interval", "train.early_stopping_patience", whole),
    *unneeded("says how quant_bits is done", "quant_method"),
    *unneeded(
        LOADING,
        "load_from_cache_file",
        "lazy_tokenize",
        "streaming",
        "use_logits_to_keep",
        "dataset_shuffle",
        "split_by_",
    ),
    *unneeded(KERNELS, "sequence_parallel_size", "experts_impl", "tuner_backend"),
    *unneeded("rows of self-cognition alone use it", "model_author", "model_name"),
    *lost("the rows have no system text of their own; write it into them", "system", unless=("",)),
    *lost(
        "a method that fastft does not have",
        "use_galore",
        "lisa_activated_layers",
        "llamapro_num_new_blocks",
        "init_weights",
        "adapters",
        "loss_type",
        "enable_dft_loss",
        "router_aux_loss_coef",
        "agent_template",
        "optimizer",
        "rope_scaling",
    ),
    key("new_special_tokens", "data.add_special_tokens", tokens),
    *other_task("another kind of training", "num_labels", "problem_type", "rlhf_type", unless=()),
)


def _swift_defaults(_: Mapping[str, Any], settings: Settings) -> Settings:
    full = settings.get("model.full_finetuning")
    found: Settings = {
        **TRAINER_DEFAULTS,
        "train.per_device_train_batch_size": 1,
        "train.learning_rate": 1e-5 if full else 1e-4,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_ratio": 0.05,
        "train.weight_decay": 0.1,
        "train.adam_beta2": 0.95,
    }
    return found if full else {**found, "lora.r": 8, "lora.lora_alpha": 32, "lora.lora_dropout": 0.05}


def _baichuan_lora(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Baichuan2's fine-tune.py holds these values in its code."""
    if not is_on(value):
        return {"model.full_finetuning": True}
    if "lora_r" in given:
        return SAME
    if "baichuan" not in str(given.get("model_name_or_path", "")).lower():
        raise LostError("the script's own code says which adapter; write [lora] by hand")
    return {"lora.r": 1, "lora.lora_alpha": 32, "lora.lora_dropout": 0.1, "lora.target_modules": ["W_pack"]}


_SCRIPT: tuple[Row, ...] = (
    *TRL_ROWS,
    key("data_path", "data.train", text),
    key("train_file", "data.train", text),
    key("eval_data_path", "data.eval", text),
    key("validation_file", "data.eval", text),
    key("model_max_length", "model.max_seq_length", whole),
    keys(
        "use_lora",
        ("model.full_finetuning", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules"),
        _baichuan_lora,
    ),
    keys(
        "q_lora",
        ("model.load_in_4bit",),
        lambda value, _: {"model.load_in_4bit": True} if is_on(value) else "asks for nothing",
    ),
    keys(
        "flash_attn",
        ("model.attn_implementation",),
        lambda value, _: {"model.attn_implementation": "flash_attention_2"} if is_on(value) else "asks for nothing",
    ),
    *unneeded(LOADING, "lazy_preprocess"),
)


def _script_defaults(given: Mapping[str, Any], _: Settings) -> Settings:
    # FastChat's train_lora.py has no switch: it takes the rank alone.
    full = "lora_r" not in given and not any(is_on(given.get(name)) for name in ("use_lora", "use_peft"))
    found = {**TRAINER_DEFAULTS, **({"model.full_finetuning": True} if full else {})}
    if "baichuan2" in str(given.get("model_name_or_path", "")).lower():  # its base has none; the script writes it
        found["data.chat_template"] = "baichuan2"
    return found


LLAMA_FACTORY = Tool("LLaMA-Factory", table(*_LLAMA_FACTORY), _llama_factory_defaults)
TRL = Tool("TRL", table(*TRL_ROWS), _trl_defaults)
SWIFT = Tool("ms-swift", table(*_SWIFT), _swift_defaults)
SCRIPT = Tool("a training script", table(*_SCRIPT), _script_defaults)
