"""Axolotl's YAML: https://docs.axolotl.ai/docs/config-reference.html."""

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
from fastft.migration.tables.datasets import axolotl_datasets, axolotl_eval, axolotl_template
from fastft.migration.tables.hugging_face import (
    ADAPTER,
    EVALUATION,
    FOLDER,
    KERNELS,
    LAUNCH,
    LOADING,
    LOGS,
    MODEL,
    PICTURES,
    SAME,
    TRAINING,
    epochs,
    only_off,
)
from fastft.migration.values import attention, flag, is_on, optimizer, real, scheduler, text, tokens, whole

_KNOWN_PLUGINS = ("cut_cross_entropy", "liger", "kernels", "expert_parallel", "swanlab")


def _adapter(value: Any, _: Mapping[str, Any]) -> Settings | str:
    if value == "qlora":
        return {"model.load_in_4bit": True}
    if value == "lora":
        return "LoRA is the default"
    raise LostError("fastft trains LoRA, QLoRA or every weight")


def _inputs(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return {"data.train_on": "all" if flag(value) else "assistant"}


def _held_out(value: Any, _: Mapping[str, Any]) -> Settings | str:
    number = real(value)
    if number >= 1:
        raise LostError("is a count of rows; write data.eval_fraction, a share of them")
    return {"data.eval_fraction": number} if number else "nothing is held out"


def _evaluations(value: Any, given: Mapping[str, Any]) -> Settings | str:
    if not is_on(value) or not (given.get("val_set_size") or given.get("test_datasets")):
        return "nothing is held out"
    return {"train.eval_strategy": "epoch"}


def _special_tokens(value: Any, _: Mapping[str, Any]) -> Settings | str:
    others = sorted(set(value) - {"pad_token"}) if isinstance(value, dict) else []
    if any(value[name] for name in others):
        raise LostError(f"the recipe cannot change {others[0]}; the tokenizer of the model decides")
    return "padding carries no loss, whatever its token"


def _plugins(value: Any, _: Mapping[str, Any]) -> Settings | str:
    entries = value if isinstance(value, list) else [value]
    other = [str(entry) for entry in entries if not any(known in str(entry) for known in _KNOWN_PLUGINS)]
    if other:
        raise LostError(f"{other[0]} changes training in a way that fastft does not know")
    return KERNELS


def _rl(value: Any, _: Mapping[str, Any]) -> Settings | str:
    raise OtherTaskError(
        f"{text(value)} learns from preferences or rewards; fastft convert reads supervised fine-tuning"
    )


def _linear(value: Any, _: Mapping[str, Any]) -> Settings | str:
    return "all seven projections are the default" if flag(value) else "lora_target_modules decides"


def _cosine_floor(value: Any, _: Mapping[str, Any]) -> Settings | str:
    if real(value):
        raise LostError("a recipe has no arguments of a schedule")
    return "asks for nothing"


_ROWS: tuple[Row, ...] = (
    *TRAINING,
    *MODEL,
    *ADAPTER,
    *EVALUATION,
    *PICTURES,
    key("base_model", "model.id", text),
    key("revision_of_model", "model.revision", text),
    key("sequence_len", "model.max_seq_length", whole),
    keys("adapter", ("model.load_in_4bit",), _adapter),
    keys("lora_target_linear", (), _linear),
    key("peft_use_rslora", "lora.use_rslora", flag),
    key("peft_use_dora", "lora.use_dora", flag),
    key("micro_batch_size", "train.per_device_train_batch_size", whole),
    keys("num_epochs", ("train.num_train_epochs",), epochs),
    key("optimizer", "train.optim", optimizer),
    key("loraplus_lr_ratio", "train.loraplus_lr_ratio", real),
    key("lr_scheduler", "train.lr_scheduler_type", scheduler),
    key("sample_packing", "train.packing", flag),
    keys(
        "flash_attention",
        ("model.attn_implementation",),
        lambda value, _: {"model.attn_implementation": "flash_attention_2"} if is_on(value) else "asks for nothing",
    ),
    keys(
        "sdp_attention",
        ("model.attn_implementation",),
        lambda value, _: {"model.attn_implementation": "sdpa"} if is_on(value) else "asks for nothing",
    ),
    keys(
        "flex_attention",
        ("model.attn_implementation",),
        lambda value, _: {"model.attn_implementation": "flex_attention"} if is_on(value) else "asks for nothing",
    ),
    keys(
        "xformers_attention",
        ("model.attn_implementation",),
        lambda _, __: "the engine chooses",
    ),
    key("attn_implementation", "model.attn_implementation", attention),
    keys(
        "datasets",
        (
            "data.train",
            "data.sources",
            "data.format",
            "data.columns",
            "data.train_on",
            "data.chat_template",
            "model.max_seq_length",
        ),
        axolotl_datasets,
    ),
    keys("test_datasets", ("data.eval",), axolotl_eval),
    keys("chat_template", ("data.chat_template",), axolotl_template),
    keys("train_on_inputs", ("data.train_on",), _inputs),
    keys("val_set_size", ("data.eval_fraction",), _held_out),
    keys("evals_per_epoch", ("train.eval_strategy",), _evaluations),
    keys(
        "saves_per_epoch",
        ("train.save_strategy",),
        lambda value, _: {"train.save_strategy": "epoch"} if is_on(value) else {"train.save_strategy": "no"},
    ),
    keys(
        "dataset_exact_deduplication",
        ("data.deduplicate",),
        lambda value, _: {"data.deduplicate": "exact"} if is_on(value) else "asks for nothing",
    ),
    keys("special_tokens", (), _special_tokens),
    keys("plugins", (), _plugins),
    keys("rl", (), _rl),
    keys("cosine_min_lr_ratio", (), _cosine_floor),
    key("adam_eps", "train.adam_epsilon", real),
    key("bfloat16", "train.bf16", flag),
    key("float16", "train.fp16", flag),
    keys(
        "use_tensorboard",
        ("train.report_to",),
        lambda value, _: {"train.report_to": ["tensorboard"]} if is_on(value) else "asks for nothing",
    ),
    keys("full_finetune", ("model.full_finetuning",), only_off("asks for nothing", "model.full_finetuning")),
    *unneeded(
        'add "wandb" or another name to train.report_to',
        *(
            "wandb_project",
            "wandb_entity",
            "wandb_watch",
            "wandb_name",
            "wandb_run_id",
            "wandb_log_model",
            "wandb_mode",
        ),
        *("use_wandb", "use_mlflow", "mlflow_tracking_uri", "mlflow_experiment_name", "use_comet"),
        *("use_swanlab", "swanlab_project", "swanlab_experiment_name", "swanlab_description", "swanlab_mode"),
        *("trackio_project_name", "trackio_run_name", "trackio_space_id", "use_trackio", "swanlab_workspace"),
    ),
    *unneeded(FOLDER, "dataset_prepared_path", "auto_resume_from_checkpoints", "push_dataset_to_hub"),
    *unneeded(LOGS, "debug", "use_otel_metrics", "otel_metrics_host", "otel_metrics_port", "eval_table_size"),
    *unneeded(LOGS, "eval_max_new_tokens", "include_tkps"),
    *unneeded(
        "fastft chooses the class by the model's config.json", "model_type", "tokenizer_type", "is_llama_derived_model"
    ),
    *unneeded(
        "fastft chooses the class by the model's config.json",
        "tokenizer_use_fast",
        "tokenizer_legacy",
        "cls_model_config",
    ),
    *unneeded("unknown keys are errors in a recipe", "strict"),
    *unneeded(
        LOADING,
        "dataset_processes",
        "pad_to_sequence_len",
        "eval_sample_packing",
        "shuffle_merged_datasets",
        "sample_packing_eff_est",
    ),
    *unneeded(
        LOADING,
        "total_num_tokens",
        "excess_length_strategy_",
        "sample_packing_group_size",
        "sample_packing_bin_size",
        "low_cpu_mem_usage",
    ),
    *unneeded(
        KERNELS,
        *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "fused_attn_kernel"),
        *("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm", "liger_rms_norm_gated"),
        *("liger_fused_linear_cross_entropy", "cut_cross_entropy", "flash_attn_cross_entropy", "flash_attn_rms_norm"),
        *("flash_attn_fuse_qkv", "flash_attn_fuse_mlp", "use_kernels", "use_scattermoe", "use_sonicmoe", "tiled_mlp"),
        *("experts_implementation", "flex_attn_compile_kwargs", "flash_optimum", "s2_attention_", "torch_compile_mode"),
        *("gemma4_hybrid_attn_impl", "torch_compile_backend", "unsloth_lora_mlp", "experimental_skip_move_to_device"),
    ),
    *unneeded("activations in main memory give the same result", "activation_offloading"),
    *unneeded(
        "fastft watches every run: train.stop_on_divergence", "loss_watchdog_threshold", "loss_watchdog_patience"
    ),
    *unneeded(
        LAUNCH,
        *("fsdp_version", "dp_shard_size", "dp_replicate_size", "context_parallel_size", "tensor_parallel_size", "ddp"),
        *("expert_parallel_size", "use_ray", "ray_num_workers", "device_map", "gpu_memory_limit", "world_size"),
    ),
    *unneeded("QLoRA is NF4 here", "bnb_config_kwargs"),
    *unneeded("a merged file is one of the exports", "merge_lora", "lora_on_cpu"),
    *unneeded("the tokenizer of the model is used", "tokenizer_use_mistral_common"),
    *lost("the adapter would go on from another one", "lora_model_dir", "adapter_path", unless=("", False)),
    *lost("the recipe cannot train experts as one tensor", "lora_target_parameters", unless=([],)),
    *lost("the recipe cannot choose single weights to train", "unfrozen_parameters", unless=([],)),
    key("tokens", "data.add_tokens", tokens),
    *lost(
        "the recipe cannot change the model or its tokenizer",
        "model_config",
        "overrides_of_model_config",
        "overrides_of_model_kwargs",
        "added_tokens_overrides",
        "resize_token_embeddings_to_32x",
        "reinit_weights",
        "tokenizer_config",
        "lora_fan_in_fan_out",
        unless=(False, [], {}),
    ),
    *lost(
        "fastft quantizes base weights to 4 bits in its own way",
        "model_quantization_config",
        "model_quantization_config_kwargs",
        "quantize_moe_experts",
        "gptq",
        "gptq_disable_exllama",
        "fp8",
        "qat",
        "llama4_linearized_experts",
    ),
    *lost("the adapter starts in another way", "peft", "loftq_config", "peft_init_lora_weights", unless=(True, {})),
    *lost(
        "a schedule or method of Axolotl's own",
        "lr_quadratic_warmup",
        "relora",
        "relora_steps",
        "relora_prune_ratio",
        "jagged_restart_steps",
        "jagged_restart_warmup_steps",
        "lisa_n_layers",
        "lisa_step_interval",
        "curriculum_sampling",
        "use_eaft",
        "eta_min",
        "embedding_lr",
        "cosine_constant_lr_ratio",
        "noisy_embedding_alpha_",
        "diffusion",
        "use_onebitllms",
        "llmcompressor",
        unless=(False, 0),
    ),
    *lost("other rows would be left out", "min_sample_len", unless=(0, 2)),
    *unneeded("answers end with the template's own token, which carries loss", "eot_tokens"),
    *unneeded(SAME, "skip_prepare_dataset", "hf_use_auth_token", "datasets_"),
    *other_task("pretraining on a stream of plain text", "pretraining_dataset", "streaming", unless=(False, [])),
    *other_task(
        "a reward model or a classifier", "reward_model", "process_reward_model", "num_labels", unless=(False,)
    ),
)


def _defaults(given: Mapping[str, Any], _: Settings) -> Settings:
    found: Settings = {
        "train.optim": "adamw_torch_fused",
        "train.lr_scheduler_type": "cosine",
        "train.per_device_train_batch_size": 1,
    }
    if not (given.get("adapter") or given.get("lora_r")):
        found["model.full_finetuning"] = True
    if not (given.get("warmup_steps") is not None or given.get("warmup_ratio") is not None):
        found["train.warmup_ratio"] = 0.03
    return found


AXOLOTL = Tool("Axolotl", table(*_ROWS), _defaults)
