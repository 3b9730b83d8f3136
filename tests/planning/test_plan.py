from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.planning.facts import Facts
from fastft.planning.plan import Plan, make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.reference import fields
from tests.golden import A100, CPU, T4, row_facts

Make = Callable[..., LoadedRecipe]

# The sizes of Llama-3.1-8B.
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
}


def plan(loaded: LoadedRecipe, device: Device = A100, **changes: Any) -> Plan:
    facts = Facts(device, TESTED, BaseModel("org/model", "hub", None), 480, None, 100 * GIB)
    return make_plan(loaded, dataclasses.replace(facts, **changes), "runs/x")


@pytest.fixture
def llama(tmp_path: Path) -> BaseModel:
    """A folder with the sizes of Llama-3.1-8B and 16 GiB of weights, none of them on the disk."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(16 * GIB)
    return BaseModel("org/model", "folder", tmp_path)


def test_the_same_recipe_and_facts_make_the_same_plan(recipe: Make) -> None:
    assert plan(recipe()) == plan(recipe())


def test_a_plan_is_plain_json(recipe: Make) -> None:
    made = plan(recipe("", 'train.deepspeed="zero2"'), CPU)

    assert json.loads(json.dumps(made.as_json()))["obstacles"] == [str(problem) for problem in made.obstacles]


def test_each_engine_has_its_own_calls(recipe: Make) -> None:
    unsloth, plain = plan(recipe()), plan(recipe("", "model.engine=transformers"))

    assert [call.name for call in unsloth.calls.in_order] == [
        "unsloth.FastLanguageModel.from_pretrained",
        "unsloth.FastLanguageModel.get_peft_model",
        "trl.SFTConfig",
    ]
    assert [call.name for call in plain.calls.in_order] == [
        "transformers.AutoModelForCausalLM.from_pretrained",
        "peft.LoraConfig",
        "trl.SFTConfig",
    ]


def test_full_fine_tuning_attaches_no_adapter(recipe: Make) -> None:
    made = plan(recipe("", "model.full_finetuning=true", 'export.formats=["merged_16bit"]'))

    assert [call.name.rsplit(".", 1)[1] for call in made.calls.in_order] == ["from_pretrained", "SFTConfig"]
    assert made.calls.adapter is None


@pytest.mark.parametrize(
    ("transformers", "expected"),
    [
        ("4.57.0", {"warmup_ratio": 0.1, "group_by_length": True}),
        ("5.17.0", {"warmup_steps": 0.1, "train_sampling_strategy": "group_by_length"}),
    ],
)
def test_a_renamed_argument_has_the_name_of_the_installed_version(
    recipe: Make, transformers: str, expected: dict[str, object]
) -> None:
    loaded = recipe("", "train.warmup_ratio=0.1", "train.group_by_length=true")

    kwargs = plan(loaded, CPU, installed={**TESTED, "transformers": transformers}).calls.trainer.kwargs

    renamed = ("warmup_ratio", "group_by_length", "warmup_steps", "train_sampling_strategy")
    assert {key: kwargs[key] for key in renamed if key in kwargs} == expected


def test_what_was_chosen_is_what_is_called(recipe: Make) -> None:
    made = plan(recipe("", "train.packing=true", "train.effective_batch_size=8"), CPU)

    kwargs, chosen = made.calls.trainer.kwargs, made.choices.by_key()

    for key in ("optim", "bf16", "fp16", "packing", "gradient_accumulation_steps"):
        assert kwargs[key] == chosen[f"train.{key}"].value
    assert (kwargs["optim"], kwargs["packing"], kwargs["gradient_accumulation_steps"]) == (
        "adamw_torch_fused",
        False,
        4,
    )
    assert made.calls.load.kwargs["dtype"] == made.choices.dtype.value


def test_every_choice_is_known_by_the_recipe_key_that_it_decides(recipe: Make) -> None:
    assert [key for key in plan(recipe()).choices.by_key() if key not in fields()] == []


@pytest.mark.parametrize(
    ("device", "overrides", "expected"),
    [
        (A100, [], True),
        (A100, ["model.engine=transformers"], False),
        (CPU, [], False),
        (A100, ["train.packing=true"], None),
    ],
)
def test_padding_free_batches_are_asked_for_where_the_forecast_counts_on_them(
    recipe: Make, device: Device, overrides: list[str], expected: bool | None
) -> None:
    made = plan(recipe("", *overrides), device)

    assert made.calls.trainer.kwargs.get("padding_free") is expected
    assert (made.batching.active == "padding_free") is (expected is True)


@pytest.mark.parametrize(
    "found",
    [
        {"model_type": "gemma2"},
        {"model_type": "qwen3_next", "linear_conv_kernel_dim": 4},
        {"text_config": {**LLAMA, "layer_types": ["linear_attention", "full_attention"]}},
        "google/gemma-2-9b-it",
    ],
)
def test_models_that_unsloth_does_not_flatten_are_padded_and_not_packed(
    recipe: Make, tmp_path: Path, found: dict[str, Any] | str
) -> None:
    here = isinstance(found, dict)
    if isinstance(found, dict):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **found}))
    model = BaseModel("org/model" if here else str(found), "folder", tmp_path if here else None)

    made = plan(recipe("", "train.packing=true", "train.group_by_length=true"), base_model=model)

    assert (made.batching.active, made.calls.trainer.kwargs["padding_free"]) == ("group_by_length", False)
    assert made.calls.trainer.kwargs["packing"] is False
    assert "cannot keep packed examples of this model apart" in made.choices.packing.reason
    assert "packing" not in made.batching.available


def test_full_fine_tuning_in_bfloat16_needs_no_mixed_precision(recipe: Make) -> None:
    overrides = ("model.full_finetuning=true", 'export.formats=["merged_16bit"]')

    assert not plan(recipe("", *overrides)).calls.trainer.kwargs["bf16"]
    assert plan(recipe("", *overrides, "model.engine=transformers")).calls.trainer.kwargs["bf16"]


def test_epochs_and_steps_never_both_reach_the_trainer(recipe: Make) -> None:
    by_steps = plan(recipe("", "train.max_steps=5")).calls.trainer.kwargs
    by_epochs = plan(recipe()).calls.trainer.kwargs

    assert (by_steps.get("max_steps"), by_steps.get("num_train_epochs")) == (5, None)
    assert (by_epochs.get("max_steps"), by_epochs.get("num_train_epochs")) == (None, 1.0)


@pytest.mark.parametrize(
    ("device", "overrides", "field", "expected"),
    [
        (T4, ["train.bf16=true"], "train.bf16", "Tesla T4, 15.0 GiB does not compute in bfloat16"),
        (A100, ["model.dtype=float32"], "model.dtype", "on this GPU Unsloth computes in bfloat16 all the same"),
        (A100, ["train.bf16=false"], "train.bf16", "on this GPU Unsloth computes in bfloat16 all the same"),
    ],
)
def test_what_the_device_cannot_do_is_an_obstacle(
    recipe: Make, device: Device, overrides: list[str], field: str, expected: str
) -> None:
    (obstacle,) = plan(recipe("", *overrides), device).obstacles

    assert obstacle.field == field
    assert expected in str(obstacle)


@pytest.mark.parametrize(
    ("device", "overrides"),
    [
        (A100, ["model.dtype=float32", "train.bf16=true"]),
        (A100, ["train.bf16=false", "train.fp16=true"]),
        (A100, ["model.dtype=float32", "model.engine=transformers"]),
        (T4, ["model.dtype=float32"]),
    ],
)
def test_float32_is_no_obstacle_where_it_is_what_runs(recipe: Make, device: Device, overrides: list[str]) -> None:
    assert plan(recipe("", *overrides), device).obstacles == ()


def test_a_base_that_never_saw_the_tokens_of_the_template_is_an_obstacle(recipe: Make, tmp_path: Path) -> None:
    def obstacles(ends: int | list[int], *overrides: str, device: Device = A100) -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": ends}))
        loaded = recipe("", 'data.chat_template="llama-3.1"', *overrides)
        base = BaseModel("org/model", "folder", tmp_path)
        return [problem.field for problem in plan(loaded, device, base_model=base).obstacles]

    assert obstacles(128_001) == ["data.chat_template"]
    assert obstacles([128_001, 128_008, 128_009]) == []
    assert obstacles(128_001, 'lora.modules_to_save=["embed_tokens", "lm_head"]') == []
    assert obstacles(128_001, "model.engine=transformers") == []


def test_a_sound_recipe_on_a_fitting_machine_has_no_obstacle(recipe: Make) -> None:
    assert plan(recipe("", "model.load_in_4bit=true")).obstacles == ()
    assert plan(recipe(), CPU).obstacles == ()


def test_missing_packages_are_one_obstacle_with_the_command(recipe: Make) -> None:
    (obstacle,) = plan(recipe(), installed={}).obstacles

    assert "torch, transformers, trl, peft, accelerate, datasets, unsloth not installed" in str(obstacle)
    assert str(obstacle).endswith('run: pip install "fastft[train]"')


@pytest.mark.parametrize(
    ("overrides", "device", "field"),
    [
        (["train.optim=lion_8bit"], CPU, "train.optim"),
        (["train.optim=paged_adamw_8bit"], A100, "train.optim"),
        ([], A100, "train.optim"),  # the default is an 8-bit AdamW there
        ([], CPU, None),
        (["model.load_in_4bit=true"], CPU, "model.load_in_4bit"),
    ],
)
def test_what_bitsandbytes_does_is_an_obstacle_without_it(
    recipe: Make, overrides: list[str], device: Device, field: str | None
) -> None:
    without = {name: version for name, version in TESTED.items() if name != "bitsandbytes"}

    obstacles = plan(recipe("", *overrides), device, installed=without).obstacles

    assert [problem.field for problem in obstacles] == ([field] if field else [])
    assert all("run: pip install bitsandbytes" in problem.instead for problem in obstacles)
    assert plan(recipe("", *overrides), device).obstacles == ()


@pytest.mark.parametrize(
    ("reporters", "packages", "missing"),
    [
        ('["tensorboard"]', {}, 'pip install "fastft[tensorboard]", or'),
        ('["tensorboard"]', {"tensorboardX": "2.6"}, None),
        ('["dagshub"]', {"dagshub": "0.6"}, "pip install mlflow, or"),
        ('["wandb", "trackio"]', {"wandb": "0.26"}, 'pip install "fastft[trackio]", or'),
        ("none", {}, None),
    ],
)
def test_a_reporter_without_its_package_is_an_obstacle_with_the_command(
    recipe: Make, reporters: str, packages: dict[str, str], missing: str | None
) -> None:
    obstacles = plan(recipe("", f"train.report_to={reporters}"), installed={**TESTED, **packages}).obstacles

    assert [missing in str(obstacle) for obstacle in obstacles] == ([True] if missing else [])


@pytest.mark.parametrize(("written", "passed"), [("none", "none"), ("[]", "none"), ('["wandb"]', ["wandb"])])
def test_the_trainer_reports_where_the_recipe_says(recipe: Make, written: str, passed: object) -> None:
    assert plan(recipe("", f"train.report_to={written}")).calls.trainer.kwargs["report_to"] == passed


def test_a_version_that_unsloth_does_not_know_is_an_obstacle_for_unsloth_alone(recipe: Make) -> None:
    newer = {**TESTED, "trl": "1.16.0"}

    (obstacle,) = plan(recipe(), installed=newer).obstacles

    assert 'trl 1.16.0 is newer than Unsloth 2026.10.9 works with (got "auto"); run: pip install trl==1.15.0' in str(
        obstacle
    )
    assert plan(recipe("", 'model.engine="transformers"'), installed=newer).obstacles == ()


def test_a_version_with_published_holes_is_an_obstacle(recipe: Make) -> None:
    (obstacle,) = plan(recipe(), installed={**TESTED, "torch": "2.9.1"}).obstacles

    assert str(obstacle).endswith("run: pip install 'torch>=2.10'")


def test_weights_that_exceed_the_memory_are_an_obstacle(recipe: Make, llama: BaseModel) -> None:
    whole = plan(recipe(), T4, base_model=llama)
    quantized = plan(recipe("", "model.load_in_4bit=true"), T4, base_model=llama)

    assert ["the weights take 16.0 GiB, Tesla T4, 15.0 GiB has less" in str(o) for o in whole.obstacles] == [True]
    assert quantized.obstacles == ()


def test_too_little_disk_is_an_obstacle_with_both_numbers(recipe: Make, llama: BaseModel) -> None:
    loaded = recipe("", 'export.formats=["merged_16bit"]')

    (obstacle,) = plan(loaded, base_model=llama, free_disk_bytes=10 * GIB).obstacles

    # 14.96 GiB merged, 1.41 GiB of checkpoints, 0.16 GiB adapter, 32 MiB of small files.
    assert "the run writes up to 16.55 GiB" in str(obstacle)
    assert "10.00 GiB are free" in str(obstacle)


@pytest.mark.parametrize(("rank", "weights"), [(16, 41_943_040), (1, 2_621_440)])
def test_an_adapter_has_rank_times_the_sides_of_its_layers(
    recipe: Make, llama: BaseModel, rank: int, weights: int
) -> None:
    # 41,943,040 is what PEFT prints for rank 16 on all seven projections of Llama-3.1-8B.
    assert plan(recipe("", f"lora.r={rank}"), base_model=llama).disk.adapter_weights == weights


def test_checkpoints_count_one_more_than_is_kept(recipe: Make, llama: BaseModel) -> None:
    kept = plan(recipe("", "train.save_total_limit=3"), base_model=llama).disk
    none = plan(recipe("", "train.save_strategy=no"), base_model=llama).disk

    # Weight and two moments in float32, four times.
    assert (kept.checkpoints_bytes, kept.adapter_bytes) == (41_943_040 * 12 * 4, 41_943_040 * 4)
    assert none.checkpoints_bytes == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.warmup_steps=500"], "the warm-up of 500 steps is as long as the run of 240 steps"),
        (["train.save_strategy=steps", "train.save_steps=500"], "train.save_steps = 500 is never reached"),
        (["train.max_steps=2400"], "max_steps = 2400 is 10 epochs of this data"),
        (["train.effective_batch_size=32", "train.packing=true"], "an optimizer step holds 48 examples"),
    ],
)
def test_what_is_allowed_but_probably_not_meant_is_a_warning(recipe: Make, overrides: list[str], expected: str) -> None:
    made = plan(recipe("", "train.per_device_train_batch_size=2", *overrides), rows=row_facts([85] * 480))

    assert any(expected in str(warning) for warning in made.warnings)


def test_deepspeed_gets_the_numbers_of_the_plan(recipe: Make) -> None:
    loaded = recipe(
        "", 'train.deepspeed="zero3"', "train.effective_batch_size=16", "train.per_device_train_batch_size=2"
    )
    made = plan(loaded, processes=4, installed={**TESTED, "deepspeed": "0.19.8"})
    config = made.calls.trainer.kwargs["deepspeed"]

    assert made.obstacles == ()
    assert (made.engine, made.choices.optim.value) == ("transformers", "adamw_torch")
    assert [config[name] for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")] == [2, 2]
    assert (config["train_batch_size"], config["zero_optimization"]["stage"]) == (16, 3)
    assert "auto" not in json.dumps(config)


def test_another_number_in_a_deepspeed_file_is_an_obstacle(recipe: Make) -> None:
    text = json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": 7, "gradient_clipping": "auto"})
    made = plan(recipe("", "train.deepspeed=zero.json"), processes=2, deepspeed=text)

    assert any("says train_batch_size = 7" in str(problem) for problem in made.obstacles)


def test_one_process_has_nothing_to_share(recipe: Make) -> None:
    made = plan(recipe("", 'train.deepspeed="zero2"'), installed={**TESTED, "deepspeed": "0.19.8"})

    assert [problem.field for problem in made.obstacles] == ["train.deepspeed"]
