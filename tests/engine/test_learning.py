"""What training must do to the weights with any version of the libraries: learn, and move only what is trained."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fastft.data.encode import NO_LOSS
from fastft.engine.model import save_weights
from fastft.engine.train import train
from tests.engine.tiny import make_parts, make_rows, run, write_recipe, write_rows

NO_CHECKPOINTS = {"train.save_strategy": "no", "train.save_steps": None, "train.save_total_limit": None}


def hashes(model: Any) -> dict[str, str]:
    """SHA-256 of each weight."""
    return {
        name: hashlib.sha256(weight.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, weight in model.state_dict().items()
    }


def test_memorised_rows_reach_a_loss_near_zero(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(4))
    changes = {**NO_CHECKPOINTS, "train.max_steps": 40, "train.num_train_epochs": None}
    changes |= {"lora.r": 16, "lora.lora_alpha": 32}
    losses = [step["loss"] for step in run(write_recipe(tmp_path, model, changes)).steps]
    # ln(259) = 5.6 is what guessing costs. Memorised rows measured 0.01 here; 0.1 leaves room for another CPU's sums.
    assert losses[0] > 4
    assert losses[-1] < 0.1


def test_a_run_that_made_the_model_worse_says_so_first_in_its_page(model: Path, tmp_path: Path) -> None:
    answers = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "zzzzzzzz"}]
    write_rows(tmp_path / "train.jsonl", [{"messages": answers}] * 8)
    write_rows(tmp_path / "eval.jsonl", make_rows(24, seed=5))
    changes = {**NO_CHECKPOINTS, "train.max_steps": 60, "train.num_train_epochs": None, "data.eval": "eval.jsonl"}
    changes |= {"lora.r": 16, "lora.lora_alpha": 32, "train.learning_rate": 0.02, "train.stop_on_divergence": "never"}

    page = run(write_recipe(tmp_path, model, changes)).folder.path / "report.html"

    first = re.search("<h1.*</h1>", page.read_text(encoding="utf-8"))
    assert first is not None
    assert re.search(r">Worse: the held-out loss rose from .* \(95 % interval of the change \+", first[0])


def test_only_adapter_weights_move_and_all_of_them_do(model: Path, tmp_path: Path) -> None:
    parts = make_parts(write_recipe(tmp_path, model, NO_CHECKPOINTS))
    trained, tokenizer = parts.load()
    before = hashes(trained)
    train(parts.plan, trained, tokenizer, parts.material, parts.folder, parts.hooks, None)
    after = hashes(trained)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name in before if "lora_A" in name or "lora_B" in name}
    assert len(moved) == 2 * 7 * 2, "two matrices for each of seven projections in two layers"


def test_the_saved_adapter_is_the_one_in_memory(model: Path, tmp_path: Path) -> None:
    parts = make_parts(write_recipe(tmp_path, model, NO_CHECKPOINTS))
    trained, tokenizer = parts.load()
    train(parts.plan, trained, tokenizer, parts.material, parts.folder, parts.hooks, None)
    folder = save_weights(trained, tokenizer, parts.plan, parts.folder)
    expected, written = get_peft_model_state_dict(trained), load_file(folder / "adapter_model.safetensors")
    assert expected.keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in expected.items())
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder).eval()
    ids = torch.tensor([parts.prepared.train.rows[0].input_ids])
    with torch.no_grad():
        # The same sums on the same weights: nothing but the order within one kernel may differ.
        torch.testing.assert_close(trained.eval()(ids).logits, reloaded(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_the_labels_that_reach_the_model_are_those_that_were_prepared(
    model: Path, tmp_path: Path, train_on: str
) -> None:
    changes = {**NO_CHECKPOINTS, "train.num_train_epochs": 1, "data.train_on": train_on}
    parts = make_parts(write_recipe(tmp_path, model, changes))
    trained, tokenizer = parts.load()
    seen: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()

    def watch(_module: object, _args: object, values: dict[str, Any]) -> None:
        for ids, labels, mask in zip(values["input_ids"], values["labels"], values["attention_mask"], strict=True):
            assert set(labels[mask == 0].tolist()) <= {NO_LOSS}, "padding carries loss"
            seen[tuple(ids[mask == 1].tolist()), tuple(labels[mask == 1].tolist())] += 1

    trained.register_forward_pre_hook(watch, with_kwargs=True)
    train(parts.plan, trained, tokenizer, parts.material, parts.folder, parts.hooks, None)
    prepared = Counter((tuple(row.input_ids), tuple(row.labels)) for row in parts.prepared.train.rows)
    assert seen == prepared


def test_the_tokens_with_loss_are_the_answers_and_their_ends(model: Path, tmp_path: Path) -> None:
    rows = make_rows(6)
    write_rows(tmp_path / "train.jsonl", rows)
    parts = make_parts(write_recipe(tmp_path, model))
    _, tokenizer = parts.load()
    for row, encoded in zip(rows, parts.prepared.train.rows, strict=True):
        trained = tokenizer.decode([label for label in encoded.labels if label != NO_LOSS])
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_a_batch_of_8_equals_smaller_ones_whose_gradients_are_added_up(
    model: Path, tmp_path: Path, batch: int, accumulation: int, grouped: bool
) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(27))  # the last step of an epoch has 3 rows
    # SGD, because AdamW divides by the gradient's size: where that is near zero, rounding alone decides the sign.
    shared = {**NO_CHECKPOINTS, "train.group_by_length": grouped, "train.optim": "sgd", "train.learning_rate": 0.5}
    whole = {**shared, "train.per_device_train_batch_size": 8}
    split = {
        **shared,
        "train.per_device_train_batch_size": batch,
        "train.gradient_accumulation_steps": accumulation,
    }
    one = run(write_recipe(tmp_path, model, whole, "whole"))
    many = run(write_recipe(tmp_path, model, split, "split"))
    assert len(one.steps) == len(many.steps) == 8
    # Float32 has 7 digits; sums of some hundred terms in another order keep 5 of them.
    assert [step["loss"] for step in many.steps] == pytest.approx([step["loss"] for step in one.steps], rel=1e-5)
    first, second = (load_file(done.folder.adapter / "adapter_model.safetensors") for done in (one, many))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def test_full_finetuning_writes_a_whole_model_in_which_every_weight_moved(model: Path, tmp_path: Path) -> None:
    changes = {"model.full_finetuning": True, "lora.r": None, "lora.lora_alpha": None, "train.learning_rate": 1e-3}
    changes |= {"export.formats": ["merged_16bit"], **NO_CHECKPOINTS}
    done = run(write_recipe(tmp_path, model, changes))
    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(done.folder.exports / "merged_16bit").state_dict()
    assert base.keys() == tuned.keys()
    assert [name for name in base if torch.equal(base[name], tuned[name])] == []
