"""LLaMA-Factory, TRL, ms-swift, Unsloth's notebooks, and scripts that take TrainingArguments."""

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
    LOGS,
    MODEL,
    PICTURES,
    SAME,
    TRAINER_DEFAULTS,
    TRAINING,
)
from fastft.migration.values import attention, checkpointing, flag, is_on, number_type, real, share, targets, text, whole

_LAUNCHER = unneeded(
    LAUNCH,
    *("hostfile", "nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "num_processes", "num_gpus"),
    *("config_file", "num_machines", "machine_rank", "main_process_port", "main_process_ip", "include", "exclude"),
    *("multi_gpu", "mixed_precision", "standalone", "rdzv_backend", "rdzv_endpoint", "use_deepspeed", "accelerate_config"),
)


def _only(wanted: tuple[str, ...], what: str) -> Any:
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
    *TRAINING, *MODEL, *ADAPTER, *PICTURES, *_LAUNCHER,
    keys("stage", (), _only(("sft",), "stage")),
    keys("finetuning_type", ("model.full_finetuning",), _tuning),
    key("cutoff_len", "model.max_seq_length", whole),
    key("lora_rank", "lora.r", whole),
    key("lora_target", "lora.target_modules", targets),
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
    keys("disable_gradient_checkpointing", ("train.gradient_checkpointing",), lambda value, _: {"train.gradient_checkpointing": not is_on(value)}),
    *unneeded("goes into each source as limit", "max_samples"),
    *unneeded("the folder of dataset_info.json, which `dataset` reads", "dataset_dir"),
    *unneeded("says how quantization_bit is done", "quantization_method", "quantization_type"),
    *unneeded(KERNELS, "use_unsloth", "enable_liger_kernel", "use_v1_kernels", "use_unsloth_gc", "use_reentrant_gc", "shift_attn_", "neat_packing"),
    *unneeded(LAUNCH, "ray_num_workers", "ray_run_name", "ray_storage_path", "resources_per_worker", "placement_strategy", "fsdp_transformer_layer_cls_to_wrap"),
    *unneeded(FOLDER, "tokenized_path", "export_dir"),
    *unneeded("reasoning of a row is kept as the template does", "enable_thinking"),
    *unneeded("the picture parts stay as they are", "freeze_language_model"),
    *lost(
        "a method that fastft does not have",
        *("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_llama_pro", "pissa_init", "use_dft_loss"),
        *("use_eaft_loss", "use_asft_loss", "mixture_of_depths", "loraplus_lr_ratio", "fp8", "adapter_name_or_path"),
        *("create_new_adapter", "rope_scaling", "resize_vocab", "new_special_tokens_config", "freeze_trainable_layers", "oft_block_size"),
    ),
    *other_task("learns from preferences", "pref_beta", "pref_loss", "pref_ftx", unless=()),
    *other_task("predicts and trains nothing", "do_predict", "predict_with_generate"),
)


def _llama_factory_defaults(given: Mapping[str, Any], settings: Settings) -> Settings:
    rank = settings.get("lora.r", 8)
    return {**TRAINER_DEFAULTS, "lora.r": rank, "lora.lora_alpha": 2 * rank}


_TRL: tuple[Row, ...] = (
    *TRAINING, *MODEL, *ADAPTER, *_LAUNCHER, *EVALUATION,
    keys("dataset_name", ("data.train",), trl_dataset),
    keys("dataset_test_split", ("data.eval",), trl_test_split),
    keys("dataset_mixture", ("data.train", "data.sources", "data.eval_fraction"), trl_mixture),
    *unneeded("part of data.train: org/name/configuration:split", "dataset_config", "dataset_train_split", "dataset_streaming"),
    key("max_length", "model.max_seq_length", whole),
    key("max_seq_length", "model.max_seq_length", whole),
    keys("use_peft", ("model.full_finetuning",), lambda value, _: "LoRA is the default" if is_on(value) else {"model.full_finetuning": True}),
    keys("assistant_only_loss", ("data.train_on",), _all_if("assistant", "all")),
    keys("completion_only_loss", ("data.train_on",), _all_if("assistant", "all")),
    keys("chat_template", ("data.chat_template",), lambda value, _: template(value)),
    keys("chat_template_path", ("data.chat_template",), lambda value, _: template(value)),
    keys("dataset_text_field", ("data.columns",), lambda value, _: "the column of plain text by its usual name" if value in ("text", "", None) else {"data.columns": {"text": text(value)}}),
    *unneeded("the template's own end token ends an answer and carries loss", "eos_token"),
    *unneeded(LOADING, "dataset_kwargs", "use_bfd_packing"),
    *unneeded(KERNELS, "activation_offloading"),
    *unneeded("fastft's own loss is the mean over trained tokens", "loss_type"),
    *other_task("learns from preferences or rewards", "beta", "max_prompt_length", "num_generations", "reward_funcs", "dataset_mixer", unless=()),
    keys("task", (), _only(("sft",), "trl")),
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
    *TRAINING, *MODEL, *ADAPTER, *PICTURES, *_LAUNCHER,
    keys("task", (), _only(("sft",), "swift")),
    keys("task_type", (), _only(("causal_lm",), "task_type")),
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
    *unneeded("says how quant_bits is done", "quant_method"),
    *unneeded(LOADING, "load_from_cache_file", "lazy_tokenize", "streaming_", "use_logits_to_keep", "dataset_shuffle", "split_by_"),
    *unneeded(KERNELS, "sequence_parallel_size", "experts_impl", "tuner_backend"),
    *unneeded("rows of self-cognition alone use it", "model_author", "model_name"),
    *lost("the rows have no system text of their own; write it into them", "system", unless=("",)),
    *lost("a method that fastft does not have", "use_galore", "lisa_activated_layers", "llamapro_num_new_blocks", "init_weights", "adapters", "loss_type", "enable_dft_loss", "router_aux_loss_coef", "agent_template", "optimizer", "rope_scaling", "new_special_tokens"),
    *other_task("another kind of training", "num_labels", "problem_type", "rlhf_type", unless=()),
)


def _swift_defaults(given: Mapping[str, Any], settings: Settings) -> Settings:
    full = settings.get("model.full_finetuning")
    found: Settings = {
        **TRAINER_DEFAULTS,
        **{"train.per_device_train_batch_size": 1, "train.learning_rate": 1e-5 if full else 1e-4},
        **{"train.lr_scheduler_type": "cosine", "train.warmup_ratio": 0.05, "train.weight_decay": 0.1, "train.adam_beta2": 0.95},
    }
    return found if full else {**found, "lora.r": 8, "lora.lora_alpha": 32, "lora.lora_dropout": 0.05}


def _baichuan_lora(value: Any, given: Mapping[str, Any]) -> Settings | str:
    """Baichuan2's fine-tune.py holds these values in its code."""
    if not is_on(value):
        return {"model.full_finetuning": True}
    if "baichuan" not in str(given.get("model_name_or_path", "")).lower():
        raise LostError("the script's own code says which adapter; write [lora] by hand")
    return {"lora.r": 1, "lora.lora_alpha": 32, "lora.lora_dropout": 0.1, "lora.target_modules": ["W_pack"]}


_SCRIPT: tuple[Row, ...] = (
    *_TRL,
    key("data_path", "data.train", text),
    key("train_file", "data.train", text),
    key("eval_data_path", "data.eval", text),
    key("validation_file", "data.eval", text),
    key("model_max_length", "model.max_seq_length", whole),
    keys("use_lora", ("model.full_finetuning", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules"), _baichuan_lora),
    keys("q_lora", ("model.load_in_4bit",), lambda value, _: {"model.load_in_4bit": True} if is_on(value) else "asks for nothing"),
    *unneeded(LOADING, "lazy_preprocess"),
)


def _script_defaults(given: Mapping[str, Any], _: Settings) -> Settings:
    full = not is_on(given.get("use_lora")) and not is_on(given.get("use_peft"))
    return {**TRAINER_DEFAULTS, **({"model.full_finetuning": True} if full else {})}


def _named(call: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of one call in a program: `call.argument`."""
    return tuple(Row(f"{call}.{row.name}", row.fields, row.take, row.note) for row in rows)


def _vision(value: Any, _: Mapping[str, Any]) -> Settings | str:
    if is_on(value):
        raise OtherTaskError("layers for pictures or sound; fastft trains text")
    return "text alone is trained"


def _quantized(value: Any, _: Mapping[str, Any]) -> Settings | str:
    known = {"f16": "f16", "quantized": "q4_k_m", "fast_quantized": "q8_0", "not_quantized": "f16"}
    chosen = [value] if isinstance(value, str) else list(value)
    return {"export.formats": ["adapter", "gguf"], "export.quantization": [known.get(name, name).lower() for name in chosen]}


def _merged(value: Any, _: Mapping[str, Any]) -> Settings | str:
    kind = str(value).removesuffix("_forced")
    if kind not in ("merged_16bit", "merged_4bit", "lora"):
        raise LostError("fastft writes merged_16bit and merged_4bit")
    return SAME if kind == "lora" else {"export.formats": ["adapter", kind]}


_CONFIG = (*TRAINING, *(row for row in _TRL if row.name in ("max_length", "max_seq_length", "dataset_text_field", "assistant_only_loss", "completion_only_loss", "dataset_kwargs", "loss_type")))
_UNSLOTH: tuple[Row, ...] = (
    *_named("from_pretrained", (
        *MODEL,
        key("model_name", "model.id", text),
        key("max_seq_length", "model.max_seq_length", whole),
        key("dtype", "model.dtype", number_type),
        key("full_finetuning", "model.full_finetuning", flag),
        key("use_gradient_checkpointing", "train.gradient_checkpointing", checkpointing),
        *unneeded("what is loaded is not generated from", "fast_inference", "max_lora_rank", "gpu_memory_utilization"),
        *unneeded(LAUNCH, "device_map"),
        *unneeded(KERNELS, "unsloth_force_compile", "offload_embedding", "unsloth_tiled_mlp", "load_in_16bit"),
        *lost("fastft has no such base weights", "load_in_fp8", "qat_scheme", unless=(False,)),
        *other_task("another class of model", "auto_model", "num_labels", unless=()),
    )),
    *_named("get_peft_model", (
        key("r", "lora.r", whole),
        key("lora_alpha", "lora.lora_alpha", whole),
        key("lora_dropout", "lora.lora_dropout", real),
        key("target_modules", "lora.target_modules", targets),
        key("bias", "lora.bias", text),
        key("use_rslora", "lora.use_rslora", flag),
        key("use_dora", "lora.use_dora", flag),
        key("modules_to_save", "lora.modules_to_save", list),
        key("random_state", "train.seed", whole),
        key("use_gradient_checkpointing", "train.gradient_checkpointing", checkpointing),
        *unneeded("the length is that of the model", "max_seq_length"),
        *unneeded("all of text is trained by default", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules"),
        keys("finetune_vision_layers", (), _vision),
        keys("finetune_audio_layers", (), _vision),
        keys("task_type", (), _only(("CAUSAL_LM", "None"), "task_type")),
        *lost("the adapter starts in another way", "loftq_config", "qat_scheme", "target_parameters", unless=({}, [])),
    )),
    *_named("config", (*_CONFIG, *lost("one rate for all weights", "embedding_learning_rate"))),
    *_named("trainer", (
        *_CONFIG,
        *unneeded("what the notebook has loaded", "model", "tokenizer", "processing_class", "args", "callbacks"),
        *unneeded("fastft pads and masks itself", "data_collator"),
        *lost("code makes the text of the rows; fastft reads their columns", "formatting_func", unless=()),
        keys("eval_dataset", (), lambda value, _: "nothing is evaluated"),
    )),
    keys("load_dataset.train", ("data.train",), lambda value, _: {"data.train": text(value)}),
    keys("load_dataset.eval", ("data.eval",), lambda value, _: {"data.eval": text(value)}),
    *unneeded("fastft reads the columns of these rows itself", "standardize_sharegpt", "standardize_data_formats", "apply_chat_template", "to_sharegpt"),
    *unneeded("training shuffles the rows by its seed", "shuffle"),
    *lost("code makes or chooses the rows; fastft reads their columns", "map", "filter", "select", "train_test_split", "rows", unless=()),
    keys("get_chat_template.chat_template", ("data.chat_template",), lambda value, _: template(value)),
    *unneeded("fastft knows the usual names of roles and end tokens", "get_chat_template.mapping", "get_chat_template.map_eos_token"),
    keys("train_on_responses_only", ("data.train_on",), lambda value, _: {"data.train_on": "assistant"}),
    keys("save_pretrained_gguf.quantization_method", ("export.formats", "export.quantization"), _quantized),
    keys("save_pretrained_merged.save_method", ("export.formats",), _merged),
)


def _unsloth_defaults(given: Mapping[str, Any], _: Settings) -> Settings:
    found: Settings = {**TRAINER_DEFAULTS, "data.train_on": "all", "model.load_in_4bit": True}
    if is_on(given.get("from_pretrained.full_finetuning")):
        found["model.load_in_4bit"] = False
    return found


LLAMA_FACTORY = Tool("LLaMA-Factory", table(*_LLAMA_FACTORY), _llama_factory_defaults)
TRL = Tool("TRL", table(*_TRL), _trl_defaults)
SWIFT = Tool("ms-swift", table(*_SWIFT), _swift_defaults)
SCRIPT = Tool("a training script", table(*_SCRIPT), _script_defaults)
UNSLOTH = Tool("Unsloth", table(*_UNSLOTH), _unsloth_defaults)
