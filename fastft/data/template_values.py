"""The date and the arguments of a run, written into its chat template.

So the one template that is trained with, and saved with the weights, gives the same prompt in every program that asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from fastft.data.template import ChatTemplate
from fastft.errors import Problem, RecipeError, Where, nearest

if TYPE_CHECKING:
    from jinja2 import nodes

KWARGS_FIELD = "data.chat_template_kwargs"
# What every program gives a template itself, or jinja2 does.
_GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "strftime_now"}
)
_NOT_ARGUMENTS = frozenset(
    {"raise_exception", "range", "dict", "lipsum", "cycler", "joiner", "namespace", "pad_token", "unk_token"}
)
_ASK = ("defined", "undefined", "default", "d")
_FORMAT = re.compile(r"%-?[A-Za-z]")


def with_values(template: ChatTemplate, day: str, kwargs: Mapping[str, Any], where: Where) -> ChatTemplate:
    """The template with the date `day` (YYYY-MM-DD) for today's, and with `kwargs` for its variables of these names.

    Raises:
        RecipeError: the template reads no variable of such a name, or it is one that is given for each row.
    """
    from jinja2 import meta, nodes

    tree = template.compiled.environment.parse(template.source)
    read = meta.find_undeclared_variables(tree)
    assigned = {one.name for one in tree.find_all(nodes.Name) if one.ctx == "store"} - _asked_for(tree)
    _refuse_unknown(kwargs, read - assigned - _GIVEN - _NOT_ARGUMENTS, template.name, where)
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in kwargs.items()}
    if (
        "date_string" in read and "date_string" not in values
    ):  # llama.cpp passes today's: without a value as in training
        values["date_string"] = "no_date_string"
    start = "".join(f"{{%- set {name} = {value} %}}" for name, value in values.items())
    if "strftime_now" in read:
        texts = dict.fromkeys(one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str))
        formats = [text for text in texts if _FORMAT.search(text)]
        start += _date_macro(date.fromisoformat(day), formats)
    if not start:
        return template
    # jinja2 leaves out this line break; without it, white space before a tag would stay that it leaves out.
    between = "\n" if template.source[:1].isspace() else ""
    return replace(template, source=f"{start}{between}{template.source}", today=day)


def _asked_for(tree: nodes.Template) -> set[str]:
    """The variables that a template asks for before it sets them: `x is defined`, `x | default(...)`."""
    from jinja2 import nodes

    asked = (one for kind in (nodes.Test, nodes.Filter) for one in tree.find_all(kind) if one.name in _ASK)
    return {one.node.name for one in asked if isinstance(one.node, nodes.Name)}


def _date_macro(day: date, formats: list[str]) -> str:
    """A macro in the place of `strftime_now` that knows the `formats` of the template."""
    cases = "".join(
        f"{{%- {'el' if number else ''}if format == {json.dumps(text, ensure_ascii=False)} -%}}{day.strftime(text)}"
        for number, text in enumerate(formats)
    )
    return f"{{%- macro strftime_now(format) -%}}{cases}{'{%- endif -%}' if cases else day}{{%- endmacro %}}"


def _refuse_unknown(kwargs: Mapping[str, Any], known: set[str], name: str, where: Where) -> None:
    for key in kwargs:
        if key in _GIVEN:
            wrong, instead = f"{key} is not an argument: each row gives its own", "remove it"
        elif key in known:
            continue
        else:
            wrong, near = f"the chat template reads no variable {key}", nearest(key, known)
            instead = f"it reads {', '.join(sorted(known))}" if known else "it has no arguments: remove it"
            instead = f"did you mean {near}?" if near else instead
        raise RecipeError(Problem(where, KWARGS_FIELD, wrong, instead, got=f"{key}, template {name}"))
