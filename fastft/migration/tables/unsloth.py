"""Unsloth's notebooks: the arguments of each call, as `call.argument`."""

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
from fastft.migration.tables.datasets import template
from fastft.migration.tables.hugging_face import KERNELS, LAUNCH, MODEL, SAME, TRAINER_DEFAULTS, TRAINING
from fastft.migration.tables.others import TRL_ROWS, only
from fastft.migration.values import checkpointing, flag, is_on, number_type, real, targets, text, whole


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
    return {
        "export.formats": ["adapter", "gguf"],
        "export.quantization": [known.get(name, name).lower() for name in chosen],
    }


def _merged(value: Any, _: Mapping[str, Any]) -> Settings | str:
    kind = str(value).removesuffix("_forced")
    if kind not in ("merged_16bit", "merged_4bit", "lora"):
        raise LostError("fastft writes merged_16bit and merged_4bit")
    return SAME if kind == "lora" else {"export.formats": ["adapter", kind]}


_CONFIG = (
    *TRAINING,
    *(
        row
        for row in TRL_ROWS
        if row.name
        in (
            "max_length",
            "max_seq_length",
            "dataset_text_field",
            "assistant_only_loss",
            "completion_only_loss",
            "dataset_kwargs",
            "loss_type",
        )
    ),
)
_UNSLOTH: tuple[Row, ...] = (
    *_named(
        "from_pretrained",
        (
            *MODEL,
            key("model_name", "model.id", text),
            key("max_seq_length", "model.max_seq_length", whole),
            key("dtype", "model.dtype", number_type),
            key("full_finetuning", "model.full_finetuning", flag),
            key("use_gradient_checkpointing", "train.gradient_checkpointing", checkpointing),
            *unneeded(
                "what is loaded is not generated from", "fast_inference", "max_lora_rank", "gpu_memory_utilization"
            ),
            *unneeded(LAUNCH, "device_map"),
            *unneeded(KERNELS, "unsloth_force_compile", "offload_embedding", "unsloth_tiled_mlp", "load_in_16bit"),
            *lost("fastft has no such base weights", "load_in_fp8", "qat_scheme", unless=(False,)),
            *other_task("another class of model", "auto_model", "num_labels", unless=()),
        ),
    ),
    *_named(
        "get_peft_model",
        (
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
            *unneeded(
                "all of text is trained by default",
                "finetune_language_layers",
                "finetune_attention_modules",
                "finetune_mlp_modules",
            ),
            keys("finetune_vision_layers", (), _vision),
            keys("finetune_audio_layers", (), _vision),
            keys("task_type", (), only(("CAUSAL_LM", "None"), "task_type")),
            *lost(
                "the adapter starts in another way", "loftq_config", "qat_scheme", "target_parameters", unless=({}, [])
            ),
        ),
    ),
    *_named("config", (*_CONFIG, *lost("one rate for all weights", "embedding_learning_rate"))),
    *_named(
        "trainer",
        (
            *_CONFIG,
            *unneeded("what the notebook has loaded", "model", "tokenizer", "processing_class", "args", "callbacks"),
            *unneeded("fastft pads and masks itself", "data_collator"),
            *lost("code makes the text of the rows; fastft reads their columns", "formatting_func", unless=()),
            keys("eval_dataset", (), lambda _, __: "nothing is evaluated"),
        ),
    ),
    keys("load_dataset.train", ("data.train",), lambda value, _: {"data.train": text(value)}),
    keys("load_dataset.eval", ("data.eval",), lambda value, _: {"data.eval": text(value)}),
    *unneeded(
        "fastft reads the columns of these rows itself",
        "standardize_sharegpt",
        "standardize_data_formats",
        "apply_chat_template",
        "to_sharegpt",
    ),
    *unneeded("training shuffles the rows by its seed", "shuffle"),
    *lost(
        "code makes or chooses the rows; fastft reads their columns",
        "map",
        "filter",
        "select",
        "train_test_split",
        "rows",
        unless=(),
    ),
    keys("get_chat_template.chat_template", ("data.chat_template",), lambda value, _: template(value)),
    *unneeded(
        "fastft knows the usual names of roles and end tokens",
        "get_chat_template.mapping",
        "get_chat_template.map_eos_token",
    ),
    keys("train_on_responses_only", ("data.train_on",), lambda _, __: {"data.train_on": "assistant"}),
    keys("save_pretrained_gguf.quantization_method", ("export.formats", "export.quantization"), _quantized),
    keys("save_pretrained_merged.save_method", ("export.formats",), _merged),
)


def _unsloth_defaults(given: Mapping[str, Any], _: Settings) -> Settings:
    found: Settings = {**TRAINER_DEFAULTS, "data.train_on": "all", "model.load_in_4bit": True}
    if is_on(given.get("from_pretrained.full_finetuning")):
        found["model.load_in_4bit"] = False
    return found


UNSLOTH = Tool("Unsloth", table(*_UNSLOTH), _unsloth_defaults)
