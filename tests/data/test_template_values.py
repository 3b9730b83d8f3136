"""The date and the arguments of a run, written into its chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastft.data.example import Message
from fastft.data.prepare import prepare
from fastft.data.render import render_prompt
from fastft.data.template import TEMPLATES, ChatTemplate, load_template
from fastft.data.template_values import with_values
from fastft.errors import RecipeError, Where
from fastft.inference.conversation import render_chat
from fastft.recipe.model import DataSection
from tests.data.test_behaviours import FACTS

HERE = Where("recipe.toml", 3)
TURNS = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
MACROS = "{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}{{ day('%A') }} {{ strftime_now('%d.%m.') }}" + TURNS
SWITCH = (
    TURNS + "{% if add_generation_prompt %}<|im_start|>{{ 'deep' if thinking is defined and thinking else 'short' }}"
    "{% if effort %} {{ effort }}{% endif %}\n{% endif %}"
)


def asked(template: ChatTemplate, **values: Any) -> str:
    """The prompt of a program that passes `values` itself."""
    messages = [Message("user", "Hi")]
    tokens = {"bos_token": "<s>", **values}
    return template.render(messages, tokens, where=HERE, add_generation_prompt=True)


def test_a_date_stays_the_same_whatever_day_it_is() -> None:
    made = with_values(ChatTemplate("x", MACROS), "2011-03-04", {}, HERE)

    assert asked(made).startswith("Friday 04.03.")
    assert render_chat(made.source, [{"role": "user", "content": "Hi"}], {}) == asked(made)
    assert made.written_date == "2011-03-04"


def test_an_argument_reaches_every_prompt_and_none_that_is_passed_changes_it() -> None:
    made = with_values(
        ChatTemplate("x", SWITCH), "2011-03-04", {"thinking": True, "effort": 'a "b" }} %} \u00e9'}, HERE
    )

    assert asked(made).endswith('deep a "b" }} %} \u00e9')
    assert asked(made, thinking=False, effort="none") == asked(made)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_values_renders_as_before(name: str) -> None:
    template = load_template(name, Path(), None, HERE)
    made = with_values(template, template.today, {}, HERE)

    assert asked(made) == asked(template)
    assert asked(made, date_string="01 Jan 2001") == asked(template)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"thinkin": True}, "did you mean thinking"),
        ({"zzz": 1}, "it reads effort, thinking"),
        ({"messages": "x"}, "each row gives its own"),
        ({"m": 1}, "it reads effort, thinking"),
    ],
)
def test_a_name_that_the_template_does_not_read_is_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        with_values(ChatTemplate("x", SWITCH), "2011-03-04", kwargs, HERE)

    assert caught.value.problems[0].field == "data.chat_template_kwargs"


def test_rows_and_prompts_of_a_recipe_have_its_values(tmp_path: Path) -> None:
    (tmp_path / "switch.jinja").write_text(SWITCH, encoding="utf-8")
    for name, text in (("rows", "Hi"), ("held", "Ho")):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Up."}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    data = DataSection(
        train="rows.jsonl", eval="held.jsonl", chat_template="switch.jinja", chat_template_kwargs={"effort": "high"}
    )
    made = prepare(data, FACTS, max_seq_length=200, seed=1, recipe_dir=tmp_path, locate=lambda _: HERE)

    assert made.eval is not None
    (example,) = made.eval.examples
    assert "high" in FACTS.tokenizer.decode(made.train.rows[0].input_ids.tolist(), skip_special_tokens=False)
    assert "high" in render_prompt(example, made.renderer).text
