"""Texts with labels, end to end on tiny random models: train, stop, resume, save, merge, predict."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BloomConfig, BloomForCausalLM

from fastft.commands.chat import ChatRequest, open_chat
from fastft.commands.export import ExportRequest, export
from fastft.commands.predict import predict_in_terminal
from fastft.engine.model import load_model
from fastft.engine.tasks.classification import loss_sums
from fastft.engine.tasks.classifier import compared, export_classifier, load_classifier, logits_of
from fastft.errors import ExportError, FastftError, UsageError
from fastft.exports.card import CardFacts
from fastft.exports.job import Job
from fastft.exports.record import read_exports
from fastft.files.records import read_record
from fastft.runs.classification import Classifier
from fastft.stages.weights import find_gguf
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
    assert read_record(ran.folder.adapter / Classifier.FILE, Classifier) == ran.folder.require(Classifier)


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

    in_order = logits_of(model, ids, pad, 4, sort=False)

    assert torch.allclose(logits_of(model, ids, pad, 4), in_order, atol=1e-5)


def test_exports_give_the_logits_of_the_trained_model(ran: Ran, model: Path, tmp_path: Path) -> None:
    known, trained = ran.folder.require(Classifier), load_file(ran.folder.adapter / "adapter_model.safetensors")
    done = export(ran.folder.path, ExportRequest(("adapter", "merged_16bit"), out=tmp_path / "out"), lambda _: None)

    again = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert again.keys() == trained.keys()
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    notes = {one.kind: one.notes[-1] for one in read_exports(tmp_path / "out").artefacts}
    assert notes["adapter"].endswith("logits at most 0.0e+00 apart")
    assert "the same label for 12 rows" in notes["merged_16bit"]
    assert "reloaded" in (done.artefacts[1].path / "README.md").read_text()
    ids = [[number + 1] * 5 for number in range(20)]
    one, two = (
        logits_of(*load_classifier(folder, adapter, known)[:1], ids, 0, 4)
        for folder, adapter in ((model, ran.folder.adapter), (tmp_path / "out" / "merged_16bit", None))
    )
    # Weights of 16 bits: a thousandth of each.
    assert torch.allclose(one, two, atol=2e-2)


def test_an_export_that_is_another_model_is_refused(ran: Ran, model: Path, tmp_path: Path) -> None:
    known = ran.folder.require(Classifier)
    trained = compared(model, ran.folder.adapter, known, ())
    other = dataclasses.replace(trained, logits=-10 * trained.logits)
    job = Job(model, ran.folder.adapter, tmp_path / "out", ("merged_16bit",))

    with pytest.raises(ExportError, match="another label than the trained model"):
        export_classifier(job, known, other, CardFacts("base"), lambda _: None)

    assert not (tmp_path / "out" / "merged_16bit").exists()


def test_what_answers_nothing_is_refused_in_one_sentence(ran: Ran) -> None:
    for folder in (ran.folder.path, ran.folder.adapter, ran.folder.exports / "merged_16bit"):
        with (
            pytest.raises(UsageError, match=r"is a classifier.*fastft predict"),
            open_chat(folder, ChatRequest(), lambda _: None),
        ):
            pass
        with pytest.raises(UsageError, match=r"is a classifier.*fastft predict"):
            find_gguf(folder)
    for kind in ("gguf", "merged_4bit"):
        with pytest.raises(UsageError, match=r"no head for labels.*merged_16bit"):
            export(ran.folder.path, ExportRequest((kind,)), lambda _: None)


def test_training_stops_when_f1_no_longer_rises(model: Path, tmp_path: Path) -> None:
    steps = {}
    for metric in ("f1", "eval_loss"):
        changes = {
            # So slow that no row changes its label, while the loss falls a little each time.
            "train.learning_rate": 1e-6,
            "train.lr_scheduler_type": "constant",
            "train.num_train_epochs": 4,
            "train.eval_strategy": "epoch",
            "train.save_strategy": "epoch",
            "train.save_steps": None,
            "train.load_best_model_at_end": True,
            "train.metric_for_best_model": metric,
            "train.early_stopping_patience": 1,
        }
        ran = run(labelled(tmp_path / metric, model, **changes))
        steps[metric] = ran.result["steps"]

    assert steps == {"f1": 12, "eval_loss": 24}


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
