from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.errors import RecipeError
from fastft.recipe.loader import MAX_BYTES, LoadedRecipe, Setting, load

Make = Callable[..., LoadedRecipe]


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_an_override_wins_over_the_file_and_the_file_over_the_default(recipe: Make) -> None:
    train = recipe("[train]\nseed = 1\nlogging_steps = 5\n", "train.seed=2").recipe.train

    assert (train.seed, train.logging_steps, train.save_total_limit) == (2, 5, 2)


def test_settings_say_where_each_value_came_from(recipe: Make) -> None:
    settings = recipe("[train]\nseed = 1\nlogging_steps = 5\n", "train.seed=2").settings()

    assert settings["train.seed"] == Setting(2, "--set")
    assert settings["train.logging_steps"] == Setting(5, "recipe")
    assert settings["train.save_total_limit"] == Setting(2, "default")
    assert settings["lora.target_modules"].value[0] == "q_proj"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.revision=main", "main"),
        ("model.revision='7'", "7"),
        ("model.revision=a=b", "a=b"),
        ('export.formats=["gguf", "adapter"]', ("gguf", "adapter")),
        ('data.columns={ prompt = "question" }', {"prompt": "question"}),
        ("train.bf16=false", False),
        ("train.learning_rate=1e-4", 1e-4),
        (" train.seed =3", 3),
    ],
)
def test_the_value_of_an_override_is_toml_or_else_plain_text(recipe: Make, override: str, value: object) -> None:
    section, key = override.strip().split("=")[0].strip().split(".")

    assert getattr(getattr(recipe("", override).recipe, section), key) == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max_steps=5", "write --set train.max_steps=5"),
        ("lr=1e-4", "write --set train.learning_rate=1e-4"),
        ("max_step=5", "write --set train.max_steps=5"),
        ("args.lora_rank.x=8", "`fastft explain` lists the keys"),
        ("train.seed", "write --set train.seed=VALUE"),
        ("max_steps=", "write --set train.max_steps=VALUE"),
        ("train.=1", "as in --set train.max_steps=5"),
        ("=1", "as in --set train.max_steps=5"),
        ("", "as in --set train.max_steps=5"),
    ],
)
def test_the_message_for_a_malformed_override_is_made_of_what_was_typed(
    write_recipe: Callable[..., Path], override: str, expected: str
) -> None:
    (message,) = problems_of(write_recipe(), override)

    assert message.startswith("--set: is not section.key=value")
    assert message.endswith(expected) or expected in message


@pytest.mark.parametrize(
    ("override", "value"),
    [("export.formats=gguf", ("gguf",)), ("export.quantization=q8_0", ("q8_0",))],
)
def test_a_list_of_texts_takes_one_text(recipe: Make, override: str, value: object) -> None:
    section, key = override.split("=")[0].split(".")

    assert getattr(getattr(recipe("", "export.formats=gguf", override).recipe, section), key) == value


@pytest.mark.parametrize(
    ("lines", "strategy", "origin"),
    [
        ("[train]\nsave_steps = 5\n", "steps", "train.save_steps"),
        ('[train]\nsave_steps = 5\nsave_strategy = "steps"\n', "steps", "recipe"),
        ("", "epoch", "default"),
    ],
)
def test_save_steps_alone_means_that_checkpoints_are_written_by_steps(
    recipe: Make, lines: str, strategy: str, origin: str
) -> None:
    loaded = recipe(lines)

    setting = loaded.settings()["train.save_strategy"]
    assert (setting.value, setting.origin) == (strategy, origin)
    assert loaded.implies_save_strategy is (origin == "train.save_steps")


def test_save_steps_can_be_set_alone(recipe: Make) -> None:
    assert recipe("", "train.save_steps=5").recipe.train.save_strategy == "steps"


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".ipynb"])
def test_the_file_of_another_tool_is_named_as_such(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"config{ending}"
    path.write_text("base_model: org/model\nlora_r: 16\n", encoding="utf-8")

    (message,) = problems_of(path)

    assert message.startswith(f"{path}: is a {ending} file; a recipe is TOML")


def test_a_problem_of_an_override_names_the_override(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe("[train]\noptim = 1\n")

    message = problems_of(path, "train.seed=-1", "train.sede=1", "trian.seed=1", "lora.r=0")

    places = sorted(line.split(": ")[0] for line in message)
    assert places == ["--set lora.r=0", "--set train.sede=1", "--set train.seed=-1", "--set trian.seed=1", f"{path}:7"]


def test_a_rule_that_an_override_breaks_names_the_override(write_recipe: Callable[..., Path]) -> None:
    (message,) = problems_of(write_recipe("[train]\nwarmup_ratio = 0.1\n"), "train.warmup_steps=5")

    assert message.startswith("--set train.warmup_steps=5: train.warmup_steps: is set together with warmup_ratio = 0.1")


def test_an_override_fixes_what_is_wrong_in_the_file(recipe: Make) -> None:
    assert recipe("[train]\nseed = -1\n", "train.seed=1").recipe.train.seed == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * (MAX_BYTES + 1), "is larger than 64 KiB; a recipe is a page of TOML text"),
        (b"[model]\nid = '\xff'\n", ":2: is not UTF-8 text (byte 14); save the file as UTF-8"),
        (b"\x00" * 10, ":1: is not valid TOML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)

    assert message in problems_of(path)[0]


def test_a_file_without_an_end_is_refused() -> None:
    assert "is larger than 64 KiB" in problems_of(Path("/dev/zero"))[0]


def test_the_message_for_a_missing_file_names_the_nearest_one(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(name="llama31")

    assert problems_of(path.with_name("llama3.toml")) == [
        f"{path.with_name('llama3.toml')}: no such file; did you mean {path}?"
    ]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == [f"{tmp_path}: is a folder; name a recipe file (.toml)"]


def test_a_path_with_a_nul_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: embedded null byte" in problems_of(Path("a\0b.toml"))[0]


def test_a_recipe_can_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b'model.id = "org/model"\ndata.train = "rows.jsonl"\n')
    os.close(writing)

    assert load(Path(f"/dev/fd/{reading}")).recipe.model.id == "org/model"
    os.close(reading)


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'\xef\xbb\xbf[model]\r\nid = "org/model"\r\n[data]\r\ntrain = "rows.jsonl"\r\n')

    assert load(path).recipe.data.train == "rows.jsonl"


def test_control_characters_of_a_recipe_are_escaped(write_recipe: Callable[..., Path]) -> None:
    (message,) = problems_of(write_recipe('[train]\noptim = "\\u001b[2J\\u202e"\n'))

    assert message.isprintable()


def test_a_recipe_and_its_sections_never_change(recipe: Make) -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe().recipe.train.seed = 1


def test_a_value_that_fits_none_of_two_types_is_one_problem(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write_recipe(), ["train.gradient_checkpointing=maybe", "train.report_to=wandb"])

    assert [problem.field for problem in caught.value.problems] == ["train.gradient_checkpointing", "train.report_to"]
