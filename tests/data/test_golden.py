"""One row of each format through every template, against files that were read and approved by eye.

The files show the text with ⟦ ⟧ around what carries loss. The tokenizer here has one token a byte and one for each
control token, so that this text determines the ids and labels. `python tests/data/test_golden.py` writes them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fastft.data.columns import detect_or_fail
from fastft.data.encode import encode_batches
from fastft.data.formats import to_example
from fastft.data.preview import preview
from fastft.data.render import make_renderer
from fastft.data.template import TEMPLATES, load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import Problem, Where

GOLDEN = Path(__file__).with_name("golden")
ROWS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Capital of Österreich? "},
            {"role": "assistant", "content": "Wien"},
            {"role": "user", "content": "And of Japan?"},
            {"role": "assistant", "content": "Tokyo 🗼"},
        ]
    },
    "sharegpt": {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello.\n\nHow are you?"}],
    },
    "alpaca": {
        "instruction": "Add the numbers.",
        "input": "2 and 3",
        "output": "5",
        "history": [["Ready?", "Yes."]],
    },
    "prompt_completion": {"prompt": "The sky is", "completion": " blue"},
    "belle": {"instruction": "Human:你好\nAssistant:你好！\nHuman:再见\nAssistant:", "input": "", "output": "再见！"},
    "classification": {"system": "Positive or negative?", "text": "What a fine day!", "label": "positive"},
    "text": {"text": "Once upon a time."},
}


def shown(name: str, facts: TokenizerFacts) -> str:
    parts = []
    where = Where("golden", 1)
    for data_format, row in ROWS.items():
        assert detect_or_fail(row, where) == data_format
        template = None if data_format == "text" else load_template(name, Path(), None, where)
        renderer = make_renderer(template, facts, "assistant", where, "auto")
        ((made,),) = encode_batches([[to_example(row, data_format, where)]], renderer)
        assert not isinstance(made, Problem)
        marked = [preview(encoded, facts.tokenizer).marked() for _, encoded in made]
        parts += [f"=== {data_format}\n", "\n--- split\n".join(marked), "\n"]
    return "".join(parts)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_format_in_every_template_is_as_approved(name: str, every_token: TokenizerFacts) -> None:
    assert shown(name, every_token) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(TEMPLATES)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import every_token_facts

    GOLDEN.mkdir(exist_ok=True)
    for template_name in TEMPLATES:
        (GOLDEN / f"{template_name}.txt").write_text(shown(template_name, every_token_facts()), encoding="utf-8")
