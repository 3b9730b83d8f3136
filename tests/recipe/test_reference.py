from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from fastft.errors import RecipeError
from fastft.recipe.reference import LABELS, explain, fields, reference, schema, source_fields

ROOT = Path(__file__).parents[2]
FIELDS = [*fields(), *source_fields()]
# Numbers for which neither direction is better.
NO_SIZE = ("train.seed",)


@pytest.mark.parametrize("field", FIELDS)
def test_every_key_is_documented(field: str) -> None:
    entry = reference(field)

    assert entry.text.endswith(".")
    assert "Upstream" in entry.notes
    assert list(entry.notes) == [label for label in LABELS if label in entry.notes]


@pytest.mark.parametrize("field", [field for field in FIELDS if "number" in reference(field).allowed])
def test_every_number_says_its_unit_and_both_directions(field: str) -> None:
    if field not in NO_SIZE:
        assert {"Unit", "Too small", "Too large"} <= set(reference(field).notes)


@pytest.mark.parametrize("field", [field for field in FIELDS if "true or false" in reference(field).allowed])
def test_every_switch_says_what_each_side_does(field: str) -> None:
    assert {"On", "Off"} <= set(reference(field).notes)


def test_explain_without_a_key_lists_the_sections() -> None:
    assert [line.split("]")[0] for line in explain(None).splitlines() if line.startswith("[")] == [
        "[model",
        "[lora",
        "[classification",
        "[preference",
        "[data",
        "[train",
        "[eval",
        "[export",
    ]


def test_explain_of_a_section_lists_its_keys_with_a_whole_sentence_each() -> None:
    lines = explain("lora").splitlines()

    assert [line.split()[0] for line in lines] == [field for field in fields() if field.startswith("lora.")]
    assert [line for line in lines if line.endswith(("al.", "et.", ","))] == []


@pytest.mark.parametrize("key", ["gradient_accumulation_steps", "train.gradient_accumulation_steps"])
def test_explain_prints_everything_about_a_key(key: str) -> None:
    page = explain(key)

    for part in ("Micro-batches", "Default", "Allowed", "Unit", "Too small", "Too large", "SFTConfig("):
        assert part in page


def test_explain_prints_every_key_of_that_name() -> None:
    assert "data.train\n" in explain("data.train")
    assert "data.sources.weight" in explain("weight")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rat", "train.learning_rate"),
        ("lora_r", "lora.r"),
        ("train.micro_batch_size", "train.per_device_train_batch_size"),
        ("trian", "data.train"),
        ("zzz", "`fastft explain` lists the sections"),
    ],
)
def test_explain_names_the_key_that_an_unknown_one_most_likely_means(key: str, meant: str) -> None:
    with pytest.raises(RecipeError, match="there is no such key") as caught:
        explain(key)

    assert meant in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_recipe(path: Path) -> None:
    jsonschema.validate(tomllib.loads(path.read_text()), schema())


@pytest.mark.parametrize(
    "wrong", [{"train": {"seed": "1"}}, {"train": {"sede": 1}}, {"trian": {}}, {"train": {"learning_rate": 0}}]
)
def test_the_schema_rejects_what_the_loader_rejects(wrong: dict[str, object]) -> None:
    sound = {"model": {"id": "org/model"}, "data": {"train": "rows.jsonl"}}

    jsonschema.validate(sound, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**sound, **wrong}, schema())


def test_the_schema_is_valid_and_describes_its_keys() -> None:
    text = json.dumps(schema())

    jsonschema.Draft202012Validator.check_schema(schema())
    assert "Micro-batches whose gradients are added up" in text
