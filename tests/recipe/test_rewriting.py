"""Keys written into a recipe: all else stays, letter by letter."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fastft.errors import UsageError
from fastft.recipe.rewriting import with_keys

PATH = Path("a.toml")
VALUES = {"train.per_device_train_batch_size": "8", "train.packing": "false", "model.load_in_4bit": "true"}

FORMS = {
    "absent": '# mine\n[model]\nid = "a/b" # x\n\n[train]\nseed = 3\n',
    "auto": '[model]\nid = "a/b"\nload_in_4bit = "auto"\n[train]\npacking = "auto" # why\n'
    'per_device_train_batch_size="auto"',
    "single quotes": "[train]\npacking = 'auto'\n[model]\nid = 'a/b'\n",
    "dotted": 'model.id = "a/b"\nmodel.load_in_4bit = "auto"\ntrain.packing = "auto"\n'
    'train.per_device_train_batch_size = "auto"\n',
    "inline": 'model = {id = "a/b", load_in_4bit = "auto"}\n'
    'train = {packing = "auto", per_device_train_batch_size = "auto"}\n',
    "no section": '[model]\nid = "a/b"',
    "quoted key": '[model]\nid = "a/b"\n[train]\n"packing" = "auto"\n',
    "a list over lines": '[model]\nid = "a/b"\n[train]\nreport_to = [\n  "wandb", # here\n]\npacking = "auto"\n',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_written_where_its_section_is(form: str) -> None:
    text = FORMS[form]
    before = tomllib.loads(text)

    made = tomllib.loads(with_keys(text, VALUES, {"train.packing": "measured"}, PATH))

    assert made["train"]["packing"] is False
    assert made["train"]["per_device_train_batch_size"] == 8
    assert made["model"]["load_in_4bit"] is True
    changed = {tuple(field.split(".")) for field in VALUES}
    for section, table in before.items():
        for key, value in table.items():
            assert made[section][key] == (value if (section, key) not in changed else made[section][key])


def test_comments_of_the_user_stay_and_new_keys_keep_their_order() -> None:
    made = with_keys(FORMS["absent"], VALUES, {"train.packing": "200 tokens/s"}, PATH)

    assert made == (
        '# mine\n[model]\nload_in_4bit = true\nid = "a/b" # x\n\n[train]\nper_device_train_batch_size = 8\n'
        "packing = false  # 200 tokens/s\nseed = 3\n"
    )
    assert "packing = false # why" in with_keys(FORMS["auto"], VALUES, {"train.packing": "200 tokens/s"}, PATH)


def test_a_section_that_is_no_section_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a.toml.*\[train\] is not written as a section"):
        with_keys('model.id = "a/b"\ntrain = {seed = 3}\n', {"train.packing": "false"}, {}, PATH)
