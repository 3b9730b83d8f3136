"""Files of other tools as recipes: each argument has its place, and nothing that changes the result is lost unsaid."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.cli import main
from fastft.data.template import TEMPLATES
from fastft.errors import UsageError
from fastft.migration.convert import Converted, convert, read_source
from fastft.migration.tables.datasets import _TEMPLATES
from fastft.migration.tools import TOOLS
from fastft.recipe.loader import load
from fastft.recipe.reference import fields

AXOLOTL = """
base_model: org/small-1B
adapter: qlora
sequence_len: 4096
datasets:
  - path: org/chats
    type: chat_template
    split: train[:1%]
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
val_set_size: 0.05
lora_r: 32
lora_alpha: 64
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-5
evals_per_epoch: 4
wandb_project:
output_dir: ./out
"""
LLAMA_FACTORY = """
model_name_or_path: org/small-1B
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: mine,other
template: llama3
cutoff_len: 512
max_samples: 100
output_dir: saves/x
per_device_train_batch_size: 1
learning_rate: 1.0e-4
num_train_epochs: 3.0
trust_remote_code: true
"""
TRL = """
model_name_or_path: org/small-1B
dataset_name: org/rows
dataset_config: all
use_peft: true
lora_r: 8
max_length: 2048
eval_strategy: 'no'
max_steps: -1
"""
BAICHUAN = """
hostfile=""
deepspeed --hostfile=$hostfile fine-tune.py --report_to "none" --data_path "data/chats.json" \\
    --model_name_or_path "baichuan-inc/Baichuan2-7B-Base" --output_dir "output" --model_max_length 512 \\
    --num_train_epochs 4 --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --save_strategy epoch \\
    --learning_rate 2e-5 --lr_scheduler_type constant --adam_beta1 0.9 --adam_beta2 0.98 --adam_epsilon 1e-8 \\
    --max_grad_norm 1.0 --weight_decay 1e-4 --warmup_ratio 0.0 --logging_steps 1 --gradient_checkpointing True \\
    --deepspeed ds_config.json --bf16 True --tf32 True --use_lora True
"""
PROGRAM = """
from unsloth import FastLanguageModel
rank = 4
length = 1024 * 2
model, tokenizer = FastLanguageModel.from_pretrained("org/small-1B", max_seq_length=length, dtype=None)
model = FastLanguageModel.get_peft_model(model, r=rank, lora_alpha=rank * 2, random_state=3407, loftq_config=None)
dataset = load_dataset("org/chats", split="train")
dataset = standardize_sharegpt(dataset)
def format_rows(rows):
    return {"text": [tokenizer.apply_chat_template(row) for row in rows]}
dataset = dataset.map(format_rows, batched=True)
trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=dataset, packing=False,
    args=SFTConfig(per_device_train_batch_size=2, max_steps=60, learning_rate=2e-4, optim="adamw_8bit",
        fp16=not is_bfloat16_supported(), output_dir="outputs"))
trainer = train_on_responses_only(trainer, instruction_part="a", response_part="b")
if False:
    model.save_pretrained_merged("model", tokenizer, save_method="merged_16bit")
model.save_pretrained_gguf("model", tokenizer, quantization_method="q4_k_m")
raise SystemExit("a program is never run")
"""

BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{i + 1}: &b{i + 1} [*b{i}, *b{i}]\n" for i in range(40))


def notebook(code: str) -> str:
    cells = [{"cell_type": "code", "source": ["!pip install unsloth\n", *code.splitlines(keepends=True)]}]
    return json.dumps({"cells": cells, "nbformat": 4})


def made(text: str, name: str = "train.yaml") -> Converted:
    return convert(read_source(name, text), Path())


def recipe(text: str, name: str = "train.yaml") -> dict[str, Any]:
    return tomllib.loads(made(text, name).text)


@pytest.mark.parametrize(
    ("text", "name", "form", "tool"),
    [
        (AXOLOTL, "a.yaml", "YAML", "Axolotl"),
        (LLAMA_FACTORY, "a.yaml", "YAML", "LLaMA-Factory"),
        (TRL, "a.yaml", "YAML", "TRL"),
        ("model: org/small\ndataset: org/rows\ntuner_type: lora\n", "a.yaml", "YAML", "ms-swift"),
        (BAICHUAN, "a.sh", "a command line", "a training script"),
        ("trl sft --model_name_or_path org/m --dataset_name org/d", "-", "a command line", "TRL"),
        ("swift sft --model org/m --dataset org/d#500", "a.sh", "a command line", "ms-swift"),
        ("llamafactory-cli train --stage sft --model_name_or_path org/m", "a.sh", "a command line", "LLaMA-Factory"),
        (PROGRAM, "a.py", "a Python program", "Unsloth"),
        (notebook(PROGRAM), "a.ipynb", "a notebook", "Unsloth"),
    ],
)
def test_what_a_file_is_follows_from_its_content(text: str, name: str, form: str, tool: str) -> None:
    source = read_source(name, text)

    assert (source.form, source.tool) == (form, tool)


@pytest.mark.parametrize("text", [AXOLOTL, LLAMA_FACTORY, TRL, BAICHUAN, PROGRAM, notebook(PROGRAM)])
def test_the_recipe_passes_the_checks_of_a_recipe(text: str, tmp_path: Path) -> None:
    converted = made(text, "a.sh" if text == BAICHUAN else "a")
    path = tmp_path / "recipe.toml"
    path.write_text(converted.text)

    assert load(path).recipe
    assert converted.lost == ()


def test_an_axolotl_file_keeps_what_it_says_and_its_defaults() -> None:
    found = recipe(AXOLOTL)

    assert found["model"] == {"id": "org/small-1B", "max_seq_length": 4096, "load_in_4bit": True}
    assert found["data"] == {"train": "org/chats:train[:1%]", "eval_fraction": 0.05, "format": "sharegpt"}
    assert found["train"]["learning_rate"] == 2e-5  # YAML reads it as text
    assert found["train"]["warmup_ratio"] == 0.03  # Axolotl's own default
    assert found["train"]["optim"] == "adamw_8bit"
    assert found["train"]["eval_strategy"] == "epoch"


def test_a_llama_factory_file_keeps_alpha_at_twice_the_rank_and_the_limit_of_rows() -> None:
    found = recipe(LLAMA_FACTORY)

    assert (found["lora"]["r"], found["lora"]["lora_alpha"]) == (4, 8)
    assert found["data"]["sources"] == [
        {"path": "data/mine.json", "limit": 100},
        {"path": "data/other.json", "limit": 100},
    ]
    assert found["data"]["chat_template"] == "llama-3"


def test_dataset_info_says_what_a_name_of_llama_factory_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    info = {"mine": {"file_name": "chats.jsonl"}, "other": {"hf_hub_url": "org/rows", "split": "test"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))

    converted = convert(read_source("a.yaml", LLAMA_FACTORY), tmp_path)

    paths = [entry["path"] for entry in tomllib.loads(converted.text)["data"]["sources"]]
    assert paths == ["data/chats.jsonl", "org/rows:test"]


def test_a_trl_file_trains_every_token_as_trl_does() -> None:
    found = recipe(TRL)

    assert found["data"] == {"train": "org/rows/all", "train_on": "all"}
    assert found["train"]["learning_rate"] == 2e-5
    assert found["lora"]["target_modules"] == ["q_proj", "v_proj"]


def test_a_tool_that_trains_every_weight_by_default_does_so_here() -> None:
    found = recipe(TRL.replace("use_peft: true", "use_peft: false"))

    assert found["model"]["full_finetuning"] is True
    assert found["export"]["formats"] == ["merged_16bit"]
    assert "lora" not in found


def test_each_of_the_24_arguments_of_baichuan2_is_listed() -> None:
    converted = made(BAICHUAN, "run.sh")
    found = tomllib.loads(converted.text)

    assert len(converted.placed) == 24
    assert [entry.argument.name for entry in converted.placed if not entry.fields] == ["hostfile", "output_dir"]
    assert found["lora"] == {"r": 1, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["W_pack"]}
    assert found["data"]["chat_template"] == "baichuan2"
    assert (found["train"]["adam_beta2"], found["train"]["tf32"]) == (0.98, True)
    assert (found["train"]["report_to"], found["train"]["deepspeed"]) == ("none", "ds_config.json")


@pytest.mark.parametrize(
    ("command", "full", "rank"),
    [
        ("deepspeed train_lora.py --model_name_or_path a/b --data_path r.json --lora_r 8 --lora_alpha 16", None, 8),
        (
            "torchrun train_mem.py --model_name_or_path a --data_path r.json --fsdp_transformer_layer_cls_to_wrap X",
            True,
            None,
        ),
        (
            "deepspeed --force_multi t.py --model_name_or_path a --data_path r --deepspeed --deepspeed_config d.json",
            True,
            None,
        ),
    ],
)
def test_a_command_line_of_deepspeed_loses_nothing(command: str, full: bool | None, rank: int | None) -> None:
    converted = made(command, "run.sh")
    found = tomllib.loads(converted.text)

    assert [entry.argument.name for entry in converted.lost] == []
    assert (found["model"].get("full_finetuning"), found.get("lora", {}).get("r")) == (full, rank)
    assert ("deepspeed" in found.get("train", {})) is ("--deepspeed_config" in command)


@pytest.mark.parametrize(
    ("lines", "said"),
    [("infer_backend: hf\n", "chat or export"), ("export_dir: out\n", "chat or export"), ("model_class: llm\n", "v1")],
)
def test_a_file_of_llama_factory_that_trains_nothing_is_refused(lines: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made("model_name_or_path: a/b\ntemplate: qwen\n" + lines)


def test_several_processes_keep_the_examples_of_a_step() -> None:
    flags = "--model_name_or_path org/m --dataset_name org/d --per_device_train_batch_size 2"
    found = recipe(f"torchrun --nproc_per_node 8 sft.py {flags} --gradient_accumulation_steps 4", "a.sh")

    assert found["train"]["effective_batch_size"] == 64
    assert "gradient_accumulation_steps" not in found["train"]


@pytest.mark.parametrize("text", [PROGRAM, notebook(PROGRAM)])
def test_a_program_is_read_and_never_run(text: str) -> None:
    found = recipe(text, "a")

    assert found["model"] == {"id": "org/small-1B", "max_seq_length": 2048, "load_in_4bit": True}
    assert found["lora"] == {"r": 4, "lora_alpha": 8}
    assert found["data"] == {"train": "org/chats", "train_on": "assistant"}
    assert found["train"]["fp16"] == "auto"
    assert found["export"] == {"formats": ["adapter", "gguf"], "quantization": ["q4_k_m"]}


def test_a_number_without_end_is_not_computed() -> None:
    converted = made(f"x = {'9999999999*' * 50}1\nargs = SFTConfig(max_steps=x)", "a.py")

    assert "config.max_steps" in [entry.argument.name for entry in converted.lost]


def test_rows_that_code_makes_are_lost() -> None:
    converted = made(PROGRAM.replace("apply_chat_template", "render"), "a.py")

    assert [entry.argument.name for entry in converted.lost] == ["map"]


@pytest.mark.parametrize(
    ("line", "name"),
    [("load_in_8bit: true", "load_in_8bit"), ("optimizer: grokadamw", "optimizer"), ("no_such: 1", "no_such")],
)
def test_what_changes_the_result_and_has_no_place_is_lost(line: str, name: str) -> None:
    converted = made(AXOLOTL + line)

    assert [entry.argument.name for entry in converted.lost] == [name]
    assert f"#   {name} = " in converted.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (AXOLOTL + "rl: dpo", "preferences"),
        (AXOLOTL + "processor_type: AutoProcessor", "pictures"),
        (AXOLOTL + "pretraining_dataset: org/web", "pretraining"),
        (AXOLOTL + "reward_model: true", "reward"),
        (LLAMA_FACTORY.replace("stage: sft", "stage: kto"), "kto"),
        (TRL + "beta: 0.1", "preferences"),
        (PROGRAM.replace("SFTTrainer", "DPOTrainer"), "another kind"),
        (PROGRAM.replace("FastLanguageModel", "FastVisionModel"), "another kind"),
        ("distributed_type: MULTI_GPU", "starts processes"),
        ("- a list", "no YAML table"),
        ("a: [1", "no valid YAML"),
        ("colour: red", "no tool"),
        (BOMB, "too many values"),
        ("a: &a [*a]", "too many values"),
        ("a: " + "[" * 3000, "nested"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (f"x = {'9*' * 2000}1\nSFTTrainer(a=x)", "nested too deeply"),
        ("echo --a --b", "no command"),
        ("python a.py --x 1 --y 2\npython a.py --x 1 --y 2", "2 commands"),
        ('{"cells": [{"cell_type": "code", "source": ["def ("]}]}', "no Python"),
        ('{"cells": 1}', "no notebook"),
    ],
)  # fmt: skip
def test_what_is_no_fine_tuning_of_text_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(text, "-" if " --" in text else "a.yaml")

    assert said.replace("no valid", "not valid") in str(caught.value)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)
def test_every_row_of_a_table_names_keys_of_the_recipe(tool: Any) -> None:
    assert {field for row in tool.rows.values() for field in row.fields} <= fields().keys()


def test_every_template_of_the_table_is_one_of_fastft() -> None:
    assert set(_TEMPLATES.values()) <= {"model", *TEMPLATES}


@pytest.fixture
def fastft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the program in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastft", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        return (int(done.value.code or 0), *capsys.readouterr())

    return call


Fastft = Callable[..., tuple[int, str, str]]


def test_convert_writes_a_recipe_and_lists_where_each_argument_went(fastft: Fastft, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(BAICHUAN)

    code, out, err = fastft("convert", tmp_path / "run.sh", "--out", tmp_path / "recipe.toml")

    assert code == 0
    assert len(out.splitlines()) == 25
    assert "24 arguments: 22 have a key here, 2 need none, 0 would be lost" in err
    assert load(tmp_path / "recipe.toml").recipe.lora.r == 1


def test_convert_refuses_what_would_be_lost_unless_partial(fastft: Fastft, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(AXOLOTL + "load_in_8bit: true\n")
    out = tmp_path / "recipe.toml"

    code, said, err = fastft("convert", tmp_path / "a.yml", "--out", out)

    assert (code, said, out.exists()) == (2, "", False)
    assert "a.yml:24: load_in_8bit: has no place in a recipe" in err
    assert fastft("convert", tmp_path / "a.yml", "--out", out, "--partial")[0] == 0
    assert "# Lost" in out.read_text()


def test_convert_reads_standard_input(fastft: Fastft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("trl sft --model_name_or_path org/m --dataset_name org/d"))

    code, out, _ = fastft("convert", "-", "--json")

    assert code == 0
    assert [entry["name"] for entry in json.loads(out)["arguments"]] == ["task", "model_name_or_path", "dataset_name"]


def test_convert_never_writes_over_a_file(fastft: Fastft, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(AXOLOTL)

    code, _, err = fastft("convert", tmp_path / "a.yml", "--out", tmp_path / "a.yml")

    assert code == 2
    assert "exists already" in err


def test_a_recipe_that_is_yaml_is_sent_to_convert(fastft: Fastft, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(AXOLOTL)

    assert f"`fastft convert {tmp_path / 'a.yml'}`" in fastft("check", tmp_path / "a.yml")[2]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (AXOLOTL + "tokens: ['<think>', '</think>']", "add_tokens"),
        (LLAMA_FACTORY + "add_tokens: <think>,</think>\nresize_vocab: true", "add_tokens"),
        (LLAMA_FACTORY + "add_special_tokens: <think>,</think>\nresize_vocab: true", "add_special_tokens"),
        (
            "model: org/small\ndataset: org/rows\ntuner_type: lora\nnew_special_tokens: ['<think>', '</think>']",
            "add_special_tokens",
        ),
    ],
)
def test_tokens_that_are_added_have_a_key(text: str, key: str) -> None:
    converted = made(text)

    assert converted.lost == ()
    assert tomllib.loads(converted.text)["data"][key] == ["<think>", "</think>"]


def test_a_file_of_tokens_is_lost_with_what_to_write() -> None:
    text = "model: org/small\ndataset: org/rows\ntuner_type: lora\nnew_special_tokens: tokens.txt"

    assert [entry.argument.name for entry in made(text).lost] == ["new_special_tokens"]
