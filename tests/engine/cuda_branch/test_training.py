"""fastft's trainer over Unsloth's real one: batches, counts, losses, evaluation, resume and adapters as on a GPU."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import unsloth
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from unsloth.kernels.fast_lora import apply_lora_mlp_swiglu, apply_lora_qkv

from fastft.data.encode import NO_LOSS
from fastft.data.order import grouped, shuffled
from fastft.data.render import Prompt
from fastft.engine.counting import CountingTrainer
from fastft.engine.model import save_weights
from fastft.engine.train import train
from fastft.engine.trainer import RunTrainer
from fastft.errors import TrainingError, Where
from fastft.runs.metrics import StepMetrics
from tests.engine.tiny import Parts, events, make_parts, make_rows, run, stop, write_recipe, write_rows

NO_CHECKPOINTS = {"train.save_strategy": "no", "train.save_steps": None, "train.save_total_limit": None}
EXACT = {"model.dtype": "float32", **NO_CHECKPOINTS}
# Sums of some hundred terms in float32, in another order: 5 of 7 digits stay. In bfloat16, of 8 bits, 2 digits do.
FLOAT32, BFLOAT16 = 1e-5, 2e-2
MODES: dict[str, dict[str, Any]] = {
    "in any order": {},
    "grouped by length": {"train.group_by_length": True},
    "packed": {"train.packing": True},
    "packed, row by row": {
        "train.packing": True,
        "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 4,
    },
}
# One example: its ids, and its labels.
Pair = tuple[tuple[int, ...], tuple[int, ...]]


def examples(batch: dict[str, Any]) -> list[Pair]:
    """The examples of a micro-batch, apart again."""
    ids, labels = batch["input_ids"], batch["labels"]
    if "attention_mask" in batch:
        masks = batch["attention_mask"].bool()
        return [
            (tuple(row[mask].tolist()), tuple(label[mask].tolist()))
            for row, label, mask in zip(ids, labels, masks, strict=True)
        ]
    lengths = batch["packed_seq_lengths"].tolist()
    assert ids.shape == (1, sum(lengths)), "padding in a flattened batch"
    assert batch["position_ids"][0].tolist() == [place for length in lengths for place in range(length)]
    parts = zip(ids[0].split(lengths), labels[0].split(lengths), strict=True)
    return [(tuple(row.tolist()), tuple(label.tolist())) for row, label in parts]


def pairs(parts: Parts) -> list[Pair]:
    """What was prepared for training."""
    return [(tuple(row.input_ids), tuple(row.labels)) for row in parts.prepared.train.rows]


def loss_by_hand(model: Any, rows: Iterable[Pair]) -> float:
    """The mean loss over the trained tokens of `rows`, each read alone."""
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    for ids, labels in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        targets = torch.tensor(labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=NO_LOSS, reduction="sum"))
        count += int((targets != NO_LOSS).sum())
    model.train(was_training)
    return total / count


def steps_of(parts: Parts) -> list[StepMetrics]:
    """Train; the line of each step."""
    steps: list[StepMetrics] = []
    model, tokenizer = parts.load()
    train(parts.plan, model, tokenizer, parts.material, parts.folder, replace(parts.hooks, step=steps.append), None)
    return steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    read: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return read


def test_the_trainer_and_the_layers_are_those_of_unsloth_on_a_gpu(model: Path, tmp_path: Path) -> None:
    trainer = make_parts(write_recipe(tmp_path, model)).trainer()
    layer = trainer.model.base_model.model.model.layers[0]
    assert CountingTrainer.__mro__[1].__name__ == "UnslothSFTTrainer"
    assert layer.self_attn.apply_qkv is apply_lora_qkv
    assert layer.mlp.forward.__func__ is apply_lora_mlp_swiglu
    assert trainer.args.bf16


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_are_flattened_as_the_plan_says(model: Path, tmp_path: Path, grouped: bool) -> None:
    parts = make_parts(write_recipe(tmp_path, model, {"train.group_by_length": grouped}))
    trainer = parts.trainer()
    assert parts.plan.batching.active == "padding_free"
    assert trainer.args.padding_free
    assert "attention_mask" not in next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_is_each_prepared_example_once_with_its_labels(model: Path, tmp_path: Path, mode: str) -> None:
    parts = make_parts(write_recipe(tmp_path, model, MODES[mode]))
    seen = [example for batch in parts.trainer().get_train_dataloader() for example in examples(batch)]
    assert Counter(seen) == Counter(pairs(parts))


def test_rows_grouped_by_length_come_in_the_order_that_the_forecast_knows(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(48))
    parts = make_parts(write_recipe(tmp_path, model, {"train.group_by_length": True}))
    seen = [example for batch in parts.trainer().get_train_dataloader() for example in examples(batch)]
    order = grouped(parts.prepared.train.rows.lengths, shuffled(48, 11), 4)
    assert seen == [pairs(parts)[number] for number in order]


@pytest.mark.parametrize("mode", MODES)
def test_every_token_and_example_of_an_epoch_is_counted(model: Path, tmp_path: Path, mode: str) -> None:
    changes = {**MODES[mode], **NO_CHECKPOINTS, "train.num_train_epochs": 1}
    parts = make_parts(write_recipe(tmp_path, model, changes))
    steps = steps_of(parts)
    assert sum(step.tokens for step in steps) == parts.prepared.train.rows.tokens
    assert sum(step.examples for step in steps) == 24


@pytest.mark.usefixtures("t4")
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens(model: Path, tmp_path: Path, mode: str) -> None:
    parts = make_parts(write_recipe(tmp_path, model, {**EXACT, **MODES[mode], "train.num_train_epochs": 1}))
    trainer = parts.trainer()
    batches = list(trainer.get_train_dataloader())[: trainer.args.gradient_accumulation_steps]
    first = [example for batch in batches for example in examples(batch)]
    assert steps_of(parts)[0].loss == pytest.approx(loss_by_hand(trainer.model, first), rel=FLOAT32)


def test_fused_layers_in_bfloat16_give_the_loss_of_float32(model: Path, tmp_path: Path) -> None:
    parts = make_parts(write_recipe(tmp_path, model, {**NO_CHECKPOINTS, "train.num_train_epochs": 1}))
    trainer = parts.trainer()
    first = examples(next(iter(trainer.get_train_dataloader())))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert steps_of(parts)[0].loss == pytest.approx(loss_by_hand(plain, first), rel=BFLOAT16)


@pytest.mark.usefixtures("t4")
def test_held_out_rows_are_evaluated_and_answered_before_and_after_training(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "held_out.jsonl", make_rows(6, seed=9))
    changes = {**EXACT, "data.eval": "held_out.jsonl", "train.per_device_train_batch_size": 6}
    parts = make_parts(write_recipe(tmp_path, model, {**changes, "train.num_train_epochs": 1}))
    assert parts.prepared.eval is not None
    held_out = [(tuple(row.input_ids), tuple(row.labels)) for row in parts.prepared.eval.rows]
    prompts = [Prompt("", list(held_out[row][0][:length]), "", Where("")) for row, length in enumerate((5, 9, 14))]
    material = replace(parts.material, prompts=prompts, stop_ids=(0,), max_new_tokens=6)
    loaded, tokenizer = parts.load()
    before = loss_by_hand(loaded, held_out)
    done = train(parts.plan, loaded, tokenizer, material, parts.folder, parts.hooks, None)
    after = loss_by_hand(loaded, held_out)
    assert done.before.eval_loss == pytest.approx(before, rel=FLOAT32)
    assert done.after.eval_loss == pytest.approx(after, rel=FLOAT32)
    assert after < before
    assert done.before.answers is not None
    assert done.after.answers is not None
    assert done.after.answers.texts == tuple(greedy(loaded, tokenizer, prompt.input_ids, 6) for prompt in prompts)
    assert done.before.answers.texts != done.after.answers.texts


def greedy(model: Any, tokenizer: Any, ids: list[int], count: int) -> str:
    """The likeliest `count` next tokens, one by one without a cache."""
    ids = list(ids)
    begin = len(ids)
    model.eval()
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    text: str = tokenizer.decode(ids[begin:])
    return text


def test_a_trainer_that_would_do_something_else_than_the_plan_says_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One way among many in which Unsloth leaves packing out: a base whose model type it cannot keep apart.
    parts = make_parts(write_recipe(tmp_path, model, {"train.packing": True}))
    monkeypatch.setattr(unsloth.trainer, "PADDING_FREE_BLOCKLIST", {"llama"})
    with pytest.raises(TrainingError, match=r"train.packing: the plan says True, the trainer made False of it"):
        parts.trainer()


@pytest.mark.parametrize("asked", ["unsloth", True, False])
def test_activations_are_kept_as_the_plan_says(model: Path, tmp_path: Path, asked: bool | str) -> None:
    parts = make_parts(write_recipe(tmp_path, model, {"train.gradient_checkpointing": asked}))
    # max_seq_length is 256: from 512 on Unsloth offloads, to memory that only a GPU's driver can pin.
    assert parts.trainer().model._unsloth_gradient_checkpointing is bool(asked)


def test_4_bit_weights_that_are_asked_for_and_not_given_are_refused(model: Path, tmp_path: Path) -> None:
    # bitsandbytes has no library for CUDA here, as on a host where it does not load.
    parts = make_parts(write_recipe(tmp_path, model, {"model.load_in_4bit": True}))
    with pytest.raises(TrainingError, match=r"model.load_in_4bit: the plan says 4-bit weights, the loader gave"):
        parts.load()


def test_a_template_with_tokens_that_the_base_never_saw_is_refused_with_the_way_out(
    model: Path, tmp_path: Path
) -> None:
    # As in Meta's base Llama 3: the embeddings of tokens that the chat template writes are zero.
    base = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        for weight in (base.get_input_embeddings().weight, base.get_output_embeddings().weight):
            weight[tokenizer.convert_tokens_to_ids("<|im_start|>")] = 0
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    parts = make_parts(write_recipe(tmp_path, tmp_path / "base"))
    with pytest.raises(TrainingError, match="never trained on; take the Instruct model, or write lora"):
        parts.trainer()


@pytest.mark.usefixtures("t4")
@pytest.mark.parametrize("batch", [1, 6])
def test_the_loss_of_held_out_rows_does_not_depend_on_the_batch(model: Path, tmp_path: Path, batch: int) -> None:
    write_rows(tmp_path / "held_out.jsonl", make_rows(6, seed=9))
    changes = {**EXACT, "data.eval": "held_out.jsonl", "train.per_device_train_batch_size": batch}
    parts = make_parts(write_recipe(tmp_path, model, changes))
    trainer = parts.trainer()
    assert parts.prepared.eval is not None
    held_out = [(tuple(row.input_ids), tuple(row.labels)) for row in parts.prepared.eval.rows]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss_by_hand(trainer.model, held_out), rel=FLOAT32)


@pytest.mark.usefixtures("t4")
def test_the_best_checkpoint_can_be_that_of_the_best_token_accuracy(model: Path, tmp_path: Path) -> None:
    changes = {"model.dtype": "float32", "data.eval_fraction": 0.2, "train.load_best_model_at_end": True}
    changes |= {"train.metric_for_best_model": "eval_mean_token_accuracy", "train.eval_strategy": "steps"}
    done = run(write_recipe(tmp_path, model, {**changes, "train.eval_steps": 2, "train.save_steps": 2}))
    seen = [event for event in events(done.folder) if event["event"] == "evaluation" and event["step"]]
    best = max(seen, key=lambda event: event["eval_mean_token_accuracy"])
    assert 0 < best["eval_mean_token_accuracy"] <= 1
    assert done.result["best_checkpoint"].endswith(f"step-{best['step']}")


@pytest.mark.parametrize("packing", [False, True])
def test_counting_reads_nothing_from_the_device_between_lines(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    changes = {**NO_CHECKPOINTS, "train.packing": packing, "train.logging_steps": 100, "train.num_train_epochs": 1}
    parts = make_parts(write_recipe(tmp_path, model, changes))
    readers: list[str] = []
    read = torch.Tensor.__int__

    def watched(tensor: torch.Tensor) -> int:
        readers.append(sys._getframe(1).f_code.co_name)
        return int(read(tensor))

    monkeypatch.setattr(torch.Tensor, "__int__", watched)
    steps_of(parts)
    assert "training_step" not in readers


def test_a_stopped_run_ends_like_an_undisturbed_one(model: Path, tmp_path: Path) -> None:
    changes = {"data.eval_fraction": 0.2, "eval.exact_match": True, "eval.max_new_tokens": 4, "train.packing": True}
    changes |= {"train.per_device_train_batch_size": 1, "lora.lora_dropout": 0.1}
    whole = run(write_recipe(tmp_path, model, changes, "whole"))
    recipe = write_recipe(tmp_path, model, changes, "stopped")
    stop(recipe, 5)
    resumed = run(recipe, resume=True)
    assert "continuing from step 5" in resumed.shown
    assert len(whole.steps) > 8
    assert resumed.losses == whole.losses
    assert resumed.result["eval_loss"] == whole.result["eval_loss"]
    one, other = weights(resumed.folder.adapter), weights(whole.folder.adapter)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_memory_that_runs_out_halves_the_batch(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 2}
    wanted = run(write_recipe(tmp_path, model, small, "small"))
    step = RunTrainer.training_step

    def limited(trainer: RunTrainer, loaded: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        if len(examples(inputs)) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(trainer, loaded, inputs, *rest)

    monkeypatch.setattr(RunTrainer, "training_step", limited)
    retried = run(write_recipe(tmp_path, model, {}, "large"))
    assert retried.result["out_of_memory"][0]["rows_now"] == "2 x 2"
    assert retried.losses == wanted.losses


@pytest.mark.usefixtures("t4")
def test_the_saved_adapter_says_the_same_on_a_stock_base(model: Path, tmp_path: Path) -> None:
    parts = make_parts(write_recipe(tmp_path, model, EXACT))
    trained, tokenizer = parts.load()
    train(parts.plan, trained, tokenizer, parts.material, parts.folder, parts.hooks, None)
    folder = save_weights(trained, tokenizer, parts.plan, parts.folder)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(stock, folder).eval()
    ids = torch.tensor([parts.prepared.train.rows[0].input_ids])
    with torch.no_grad():
        torch.testing.assert_close(trained.eval()(ids).logits, reloaded(ids).logits, rtol=FLOAT32, atol=1e-4)


@pytest.mark.usefixtures("t4")
def test_the_adapter_is_the_one_that_the_cpu_backend_trains() -> None:
    """Trained by the process that started this one, with the same recipe."""
    if "CPU_BACKEND_RUN" not in os.environ:
        pytest.skip("only tests/engine/test_cuda_branch.py brings a run of the CPU backend")
    recipe = Path(os.environ["CPU_BACKEND_RUN"])
    here, there = run(recipe.rename(recipe.with_stem("cuda-branch"))), recipe.parent / "runs" / recipe.stem
    metrics = [json.loads(line) for line in (there / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [event["loss"] for event in metrics if event["event"] == "step"]
    assert [step["loss"] for step in here.steps] == pytest.approx(losses, rel=FLOAT32)
    expected = weights(there / "adapter")
    for name, value in weights(here.folder.adapter).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_full_fine_tuning_moves_every_weight_in_bfloat16(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNSLOTH_ENABLE_FULL_FINETUNING", "UNSLOTH_MIXED_PRECISION"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # put back afterwards: Unsloth leaves them set
    changes: dict[str, Any] = {"model.full_finetuning": True, "lora.r": None, "lora.lora_alpha": None}
    changes |= {"export.formats": ["merged_16bit"], "train.num_train_epochs": 1, "train.learning_rate": 1e-2}
    parts = make_parts(write_recipe(tmp_path, model, {**changes, **NO_CHECKPOINTS}))
    loaded, tokenizer = parts.load()
    before = {name: weight.detach().clone() for name, weight in loaded.named_parameters()}
    train(parts.plan, loaded, tokenizer, parts.material, parts.folder, parts.hooks, None)
    assert {weight.dtype for weight in before.values() if weight.ndim == 2} == {torch.bfloat16}
    assert [name for name, weight in loaded.named_parameters() if torch.equal(weight, before[name])] == []
