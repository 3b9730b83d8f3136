"""Texts with labels, end to end on tiny random models: train, stop, resume, save, merge, predict."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BloomConfig, BloomForCausalLM

from fastft.commands.predict import predict_in_terminal
from fastft.engine.model import load_model
from fastft.engine.tasks.classification import classify, load_classifier, loss_sums
from fastft.errors import FastftError
from fastft.runs.classification import Classifier
from tests.engine.tiny import COLOURS, Ran, make_model, make_parts, run, stop, write_recipe, write_rows

WARM = ("red", "pink", "brown")


def colour_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of a few colours, whose label is whether the first is a warm one."""
    chance = random.Random(seed)  # noqa: S311 -- not for secrets
    rows = []
    for number in range(count):
        words = chance.choices(COLOURS, k=chance.choice((1, 2, 3, 8)))
        rows.append({"text": f"{' '.join(words)} {seed}.{number}", "label": "warm" if words[0] in WARM else "cold"})
    return rows


def labelled(folder: Path, model: Path, **changes: Any) -> Path:
    """A recipe for `model` in `folder`, on 24 texts and 12 held-out ones."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "train.jsonl", colour_rows(24))
    write_rows(folder / "eval.jsonl", colour_rows(12, seed=1))
    values = {"data.eval": "eval.jsonl", "model.engine": "transformers", **changes}
    recipe = write_recipe(folder, model, values)
    recipe.write_text('task = "classification"\n' + recipe.read_text())
    return recipe


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A finished run of 12 steps with merged weights."""
    folder = tmp_path_factory.mktemp("classified")
    changes = {"export.formats": ["adapter", "merged_16bit"], "train.eval_strategy": "epoch"}
    return run(labelled(folder, model, **changes))


def test_a_run_says_how_well_it_classifies_before_and_after(ran: Ran) -> None:
    found = ran.result["classification"]

    assert found["after"]["rows"] == found["majority"]["rows"] == 12
    assert sum(map(sum, found["after"]["confusion"])) == 12
    assert {one["label"] for one in found["after"]["classes"]} == {"cold", "warm"}
    assert ran.result["eval_loss"]["after"] < ran.result["eval_loss"]["before"]


def test_only_the_adapter_and_the_head_are_saved(ran: Ran) -> None:
    names = load_file(ran.folder.adapter / "adapter_model.safetensors")

    assert all("lora_" in name or "score" in name for name in names)
    assert any("score" in name for name in names)
    assert json.loads((ran.folder.adapter / "labels.json").read_text()) == {"0": "cold", "1": "warm"}


def test_a_stopped_run_goes_on_bit_by_bit(model: Path, ran: Ran, tmp_path: Path) -> None:
    changes = {"export.formats": ["adapter"], "train.eval_strategy": "epoch"}
    recipe = labelled(tmp_path, model, **changes)
    stop(recipe, step=5)

    resumed = run(recipe)

    assert resumed.losses == ran.losses
    whole, other = (load_file(one.folder.adapter / "adapter_model.safetensors") for one in (ran, resumed))
    assert all(torch.equal(value, other[name]) for name, value in whole.items())


def test_predictions_are_in_the_order_of_the_file_and_those_of_the_merged_model(ran: Ran, tmp_path: Path) -> None:
    rows = colour_rows(20, seed=3)
    asked = write_rows(tmp_path / "asked.jsonl", [{"text": row["text"]} for row in rows])
    table = tmp_path / "asked.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([row["text"]] for row in rows)])

    predict_in_terminal(ran.folder.path, asked, tmp_path / "out.jsonl", None, 4)
    predict_in_terminal(ran.folder.exports / "merged_16bit", table, tmp_path / "out.csv", None, 4)

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with (tmp_path / "out.csv").open(newline="") as file:
        other = list(csv.DictReader(file))
    assert [line["text"] for line in lines] == [row["text"] for row in rows] == [row["text"] for row in other]
    assert [line["predicted"] for line in lines] == [row["predicted"] for row in other]
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-5 for line in lines)


def test_sorting_by_length_changes_no_prediction(ran: Ran) -> None:
    known = ran.folder.read(Classifier)
    assert known is not None
    model, pad = load_classifier(ran.folder.exports / "merged_16bit", None, known)
    ids = [[number + 1] * (1 + number * 7 % 11) for number in range(20)]

    in_order = classify(model, ids, pad, 4, several=False, sort=False)

    assert torch.allclose(torch.tensor(classify(model, ids, pad, 4, several=False)), torch.tensor(in_order), atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_one_row_16_times_is_16_rows_at_once(several: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(16, 8, dtype=torch.float64)
    labels = torch.randint(0, 2, (16, 3)).double() if several else torch.randint(0, 3, (16,))
    weights = torch.tensor([0.5, 1.0, 2.0])
    items = labels.numel()
    gradients = []
    for batch in (16, 1):
        head = torch.full((8, 3), 0.1, dtype=torch.float64, requires_grad=True)
        for start in range(0, 16, batch):
            rows = slice(start, start + batch)
            (loss_sums(hidden[rows] @ head, labels[rows], weights, 0.1).sum() / items).backward()
        gradients.append(head.grad)

    assert gradients[0] is not None
    assert torch.allclose(*gradients, rtol=1e-12)


def test_accumulation_gives_the_weights_of_the_large_batch(model: Path, tmp_path: Path) -> None:
    weights = {}
    for batch, times in ((8, 1), (1, 8)):
        changes = {
            "train.per_device_train_batch_size": batch,
            "train.gradient_accumulation_steps": times,
            "train.max_steps": 2,
            "train.num_train_epochs": None,
            # Adam divides by the size of the gradient, which makes rounding of tiny ones large.
            "train.optim": "sgd",
            "train.learning_rate": 0.5,
            "classification.class_weights": "balanced",
        }
        recipe = labelled(tmp_path / str(batch), model, **changes)
        weights[batch] = load_file(run(recipe).folder.adapter / "adapter_model.safetensors")

    # Sums in float32 in another order.
    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[8].items())


def make_bloom(folder: Path) -> Path:
    """A tiny random BLOOM with the tokenizer of the tiny Llama."""
    make_model(folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    for path in (*folder.glob("*.safetensors"), folder / "config.json", folder / "generation_config.json"):
        path.unlink(missing_ok=True)
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=vocabulary, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2)
    BloomForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_bloom_takes_the_layers_that_it_has(tmp_path: Path) -> None:
    bloom = make_bloom(tmp_path / "bloom")
    changes = {
        "lora.target_modules": None,
        "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 8,
        "train.num_train_epochs": 1,
        "train.save_steps": 3,
        "export.formats": ["adapter", "merged_16bit"],
    }

    ran = run(labelled(tmp_path / "run", bloom, **changes))

    saved = load_file(ran.folder.adapter / "adapter_model.safetensors")
    assert all("query_key_value" in name or "score" in name for name in saved)
    assert ran.result["steps"] == 3


def test_a_target_that_the_model_has_not_is_refused_before_it_is_loaded(tmp_path: Path, model: Path) -> None:
    recipe = labelled(tmp_path, model, **{"lora.target_modules": ["query_key_value"]})

    with pytest.raises(FastftError, match=r"no layer query_key_value.*q_proj"):
        run(recipe)


def test_several_labels_a_text_and_full_fine_tuning(model: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": [row["label"], "long"] if len(row["text"]) > 20 else []} for row in colour_rows(16)]
    changes = {
        "model.full_finetuning": True,
        "lora.r": None,
        "lora.lora_alpha": None,
        "classification.multi_label": True,
        "export.formats": ["merged_16bit"],
        "train.learning_rate": 1e-3,
        "train.max_steps": 2,
        "train.num_train_epochs": None,
        "data.eval": None,
        "data.eval_fraction": 0.25,
    }
    recipe = labelled(tmp_path, model, **changes)
    write_rows(tmp_path / "train.jsonl", rows)

    ran = run(recipe)

    asked = write_rows(tmp_path / "asked.jsonl", rows[:3])
    predict_in_terminal(ran.folder.path, asked, tmp_path / "out.jsonl", None, 4)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(isinstance(line["predicted"], list) for line in lines)
    assert ran.result["classification"]["after"]["confusion"] == []


def test_the_untrained_head_is_the_same_each_time(model: Path, tmp_path: Path) -> None:

    parts = make_parts(labelled(tmp_path, model))
    heads = [load_model(parts.plan, None)[0].base_model.model.score.weight.detach().clone() for _ in range(2)]

    assert torch.equal(*heads)
