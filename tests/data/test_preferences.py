"""Rows of preferences: every public form, what is refused, and what is trained of them."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from fastft.data import cache
from fastft.data.encode import NO_LOSS, encode_batches
from fastft.data.formats import to_example
from fastft.data.prepare import prepare
from fastft.data.render import make_renderer
from fastft.data.template import load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, Where
from fastft.recipe.loader import check_text

ASKED, GOOD, BAD = "Which?", "This one.", "That one, I believe."
WHERE = Where("rows.jsonl", 1)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(role: str, content: str) -> dict[str, str]:
    return {"from": role, "value": content}


# TRL, UltraFeedback, LLaMA-Factory and HH-RLHF.
PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "conversations": {
        "prompt": [turn("user", ASKED)],
        "chosen": [turn("assistant", GOOD)],
        "rejected": [turn("assistant", BAD)],
    },
    "implicit": {
        "chosen": [turn("user", ASKED), turn("assistant", GOOD)],
        "rejected": [turn("user", ASKED), turn("assistant", BAD)],
    },
    "ultrafeedback": {
        "prompt": ASKED,
        "prompt_id": "0b5a",
        "chosen": [turn("user", ASKED), turn("assistant", GOOD)],
        "rejected": [turn("user", ASKED), turn("assistant", BAD)],
        "messages": [turn("user", ASKED), turn("assistant", GOOD)],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
        "chosen_model": "one",
    },
    "sharegpt": {
        "conversations": [said("human", ASKED)],
        "chosen": said("gpt", GOOD),
        "rejected": said("gpt", BAD),
    },
    "alpaca": {"instruction": ASKED, "input": "", "chosen": GOOD, "rejected": BAD},
    "hh": {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}",
    },
}
VERDICTS: dict[str, dict[str, Any]] = {
    "trl": {"prompt": ASKED, "completion": BAD, "label": False},
    "messages": {"messages": [turn("user", ASKED), turn("assistant", BAD)], "label": False},
    "alpaca": {"instruction": ASKED, "output": BAD, "label": "false"},
    "csv": {"prompt": ASKED, "completion": BAD, "label": "0"},
}


def problem_of(row: dict[str, Any], data_format: str = "preference") -> Problem:
    with pytest.raises(DataError) as caught:
        to_example(row, data_format, WHERE)
    return caught.value.problems[0]


@pytest.mark.parametrize("name", PAIRS)
def test_every_form_of_a_pair_is_the_same_question_with_two_answers(name: str) -> None:
    example = to_example(PAIRS[name], "preference", WHERE)

    for messages, answer in ((example.messages, GOOD), (example.rejected, BAD)):
        assert [(message.role, message.content) for message in messages] == [("user", ASKED), ("assistant", answer)]
        assert messages[-1].trained


@pytest.mark.parametrize("name", VERDICTS)
def test_every_form_of_a_verdict_is_one_answer_that_is_bad(name: str) -> None:
    example = to_example(VERDICTS[name], "kto", WHERE)

    assert [message.content for message in example.messages] == [ASKED, BAD]
    assert example.is_bad
    assert not to_example({**VERDICTS["trl"], "label": 1}, "kto", WHERE).is_bad


def test_only_what_two_conversations_do_not_share_is_trained() -> None:
    before = [turn("user", "Hello"), turn("assistant", "Hi"), turn("user", ASKED)]

    example = to_example({"prompt": before, "chosen": GOOD, "rejected": BAD}, "preference", WHERE)

    assert [message.trained for message in example.messages if message.role == "assistant"] == [False, True]
    assert [message.trained for message in example.rejected if message.role == "assistant"] == [False, True]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": ASKED, "chosen": GOOD, "rejected": GOOD}, "nothing to prefer"),
        ({"chosen": GOOD, "rejected": BAD}, "no question before this answer"),
        ({"prompt": "Other?", **{key: PAIRS["implicit"][key] for key in ("chosen", "rejected")}}, "another question"),
        (
            {
                "chosen": [turn("user", ASKED), turn("assistant", GOOD)],
                "rejected": [turn("user", "?"), turn("assistant", BAD)],
            },
            "do not part at an answer",
        ),
        ({"prompt": ASKED, "chosen": GOOD}, "column is missing"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": " "}, "is empty"),
    ],
)
def test_a_pair_that_says_no_preference_is_refused(row: dict[str, Any], wrong: str) -> None:
    assert wrong in problem_of(row).wrong


def test_a_verdict_that_is_neither_yes_nor_no_is_refused() -> None:
    assert "no verdict" in problem_of({"prompt": ASKED, "completion": GOOD, "label": 0.5}, "kto").wrong


def test_a_pair_is_one_row_with_loss_on_both_answers_and_their_ends(chatml: TokenizerFacts) -> None:
    template = load_template("model", Path(), chatml.chat_template, WHERE)
    renderer = make_renderer(template, chatml, "assistant", WHERE)

    ((made,),) = encode_batches([[to_example(PAIRS["texts"], "preference", WHERE)]], renderer)

    assert not isinstance(made, Problem)
    ((_, row),) = made
    prompt = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    texts = [chatml.tokenizer.decode(list(text.input_ids), skip_special_tokens=False) for text in row.texts]
    assert [text.rstrip("\n") for text in texts] == [f"{prompt}{answer}<|im_end|>" for answer in (GOOD, BAD)]
    trained = [array("i", [label for label in text.labels if label != NO_LOSS]) for text in row.texts]
    read = [chatml.tokenizer.decode(list(ids), skip_special_tokens=False) for ids in trained]
    assert read == [f"{answer}<|im_end|>" for answer in (GOOD, BAD)]


def test_pairs_that_are_too_long_are_left_out_and_the_others_come_back_from_the_cache(
    chatml: TokenizerFacts, tmp_path: Path
) -> None:
    rows = [PAIRS["texts"], {"prompt": ASKED, "chosen": GOOD, "rejected": 400 * "x"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = 'task = "preference"\n[model]\nid = "org/model"\n[data]\ntrain = "rows.jsonl"\n'
    loaded = check_text(text, tmp_path / "recipe.toml")

    def made() -> Any:
        return prepare(
            loaded.recipe.data,
            chatml,
            max_seq_length=128,
            seed=0,
            recipe_dir=tmp_path,
            locate=loaded.where,
            cache_dir=tmp_path / "cache",
        )

    first = made().train
    assert len(first.rows) == 1
    assert [row.kept_tokens for row in first.overlong] == [0]
    longest = max(len(text.input_ids) for text in first.rows[0].texts)
    assert first.rows.widths == [2 * longest]
    again = made()
    assert again.train.rows[0] == first.rows[0]
    assert cache.load(again.folder) is not None


def test_a_task_has_a_rate_and_a_format_of_its_own(tmp_path: Path) -> None:
    text = 'task = "preference"\n[model]\nid = "org/model"\n[data]\ntrain = "rows.jsonl"\n'
    dpo, kto = (check_text(f"{text}{more}", tmp_path / "r.toml") for more in ("", '[preference]\nloss = "kto"\n'))

    assert (dpo.recipe.data.format, kto.recipe.data.format) == ("preference", "kto")
    assert dpo.recipe.train.learning_rate == 2e-5
    assert dpo.settings()["train.learning_rate"].origin == "task"
