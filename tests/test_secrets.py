"""A secret that somebody wrote in a wrong place is nowhere in what fastft prints, logs or keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.console import library_output_to, redact, redact_value, say
from fastft.errors import Problem, RecipeError, Where
from fastft.exports.card import CardFacts, model_card
from fastft.recipe.loader import load
from fastft.runs.directory import create_run_dir, differences

# No key of anybody: each has "canary" in it.
CANARY = "canaryC4n4ry0123456789"
TEXTS = [
    f"https://user:{CANARY}@example.org/x.jsonl",
    f"https://{CANARY}@huggingface.co/org/model",
    f"https://example.org/x?token={CANARY}&a=b",
    f"https://example.org/x?a=b&api_key={CANARY}",
    f"hf_{CANARY}",
    f"hf_{CANARY}/model",
    f"sk-{CANARY}",
    f"sk-proj-{CANARY}-x",
    f"ghp_{CANARY}",
    f"github_pat_{CANARY}",
    f"glpat-{CANARY}",
    f"xoxb-{CANARY}",
    f"Authorization: Bearer {CANARY}",
    f"hub_token={CANARY}",
    f"train.hub_token = '{CANARY}'",
    f"WANDB_API_KEY={CANARY}",
    f"password = {CANARY}",
    f'{{"api_key": "{CANARY}"}}',
    f"{{'hf_token': '{CANARY}'}}",
    f"AWS_SECRET_ACCESS_KEY={CANARY}",
]
PLAIN = [
    "eos_token = <|im_end|>, bos_token: <s>, pad_token='x'",
    "max_new_tokens = 256; tokens=4096",
    "train.token: there is no such key; write another",
    "org/sk-learn, task-specific-and-long-enough-name, hf_x",
    "pip install hf_transfer hf-xet",
    "user@example.org and https://example.org/a@b",
    "asked sk-learn-and-a-long-tail-of-words to answer",
    "data.train: no such file (got rows.jsonl); write the name of a file",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_is_hidden_in_every_message(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem(Where(f"--set {text}"), "model.id", f"is wrong: {text}", f"write no {text}", text)
    say(text)

    for shown in (str(problem), json.dumps(problem.as_json()), str(RecipeError(problem)), capsys.readouterr().err):
        assert "canary" not in shown
        assert "***" in shown


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_second_look_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_a_value_under_the_name_of_a_secret_is_hidden_whole() -> None:
    value = {"api_key": "plain words", "list": [{"password": "x y"}, f"hf_{CANARY}"], "eos_token": "<s>"}

    assert redact_value("", value) == {
        "api_key": "***",
        "list": [{"password": "***"}, "***"],
        "eos_token": "<s>",
    }


def test_a_secret_of_the_environment_is_hidden_whatever_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-canary-words")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "rather-not")

    assert redact("it was plain-canary-words, rather-not") == "it was ***, rather-not"


def test_the_log_of_an_attempt_has_no_secret(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with library_output_to(log):
        os.write(1, f"GET https://user:{CANARY}@example.org/\n\xff".encode("latin-1"))
        print(f"hf_{CANARY}", flush=True)

    assert log.read_bytes() == b"GET https://***@example.org/\n\xff***\n"


def test_the_folder_of_a_run_has_no_secret(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(f"# hub_token = {CANARY}\n[data.columns]\nmessages = 'hf_{CANARY}'\n")
    loaded = load(path, [f"model.revision=sk-{CANARY}"])
    run = create_run_dir(tmp_path / "runs", loaded)

    for file in run.path.rglob("*"):
        assert "canary" not in file.read_text(encoding="utf-8"), file
    assert differences(run, loaded) == []


def test_a_card_has_no_secret(tmp_path: Path) -> None:
    facts = CardFacts("org/model", recipe=f'[model]\nid = "https://u:{CANARY}@x/y"\n', figures={"x": f"hf_{CANARY}"})

    assert "canary" not in model_card(facts, "merged_16bit", tmp_path / "x", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", f"train.hub_token={CANARY}"],
        ["--set", f"model.id=https://u:{CANARY}@huggingface.co/org/model"],
        ["--set", f"hub_token={CANARY}"],
        ["--set", f"train.seed=hf_{CANARY}"],
        ["--set", f"data.train=https://example.org/rows.jsonl?token={CANARY}"],
    ],
)
def test_the_program_echoes_no_secret(write_recipe: Callable[..., Path], arguments: list[str]) -> None:
    command = [sys.executable, "-m", "fastft", "check", str(write_recipe()), *arguments]
    for form in ([], ["--json"]):
        done = subprocess.run([*command, *form], capture_output=True, text=True, check=False)
        assert "canary" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["run", "x.toml", f"hf_{CANARY}"], ["run", "x.toml", f"--hub-token={CANARY}"], [f"hf_{CANARY}"],
     ["serve", "x", "--port", f"hf_{CANARY}"], ["run"]],
)  # fmt: skip
def test_usage_errors_repeat_no_secret(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fastft", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()

    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert "canary" not in shown.out + shown.err
    assert "Usage: fastft" in shown.err


def test_redaction_takes_no_time_on_long_texts() -> None:
    begun = time.process_time()
    for text in ("a" * 200_000, "sk-" * 70_000, "token" * 40_000, "://" * 70_000, '"' * 200_000, "bearer " * 30_000):
        redact(text)
    assert time.process_time() - begun < 2
