from __future__ import annotations

import textwrap

import pytest

from fastft.recipe.locate import line_of, line_of_nearest, line_of_statement

TOML = textwrap.dedent(
    """\
    # a comment, and [not.a] = header
    top.dotted = 1

    [model]
    id = "org/model"   # text with # and [ and = in it
    list = [
      "a",  # one
      "b",
    ]
    inline = { one = 1, two = { three = 3 } }
    text = \'\'\'
    [train]
    seed = 1
    \'\'\'
    "quoted key" = 1
    after = 2

    [data.columns]
    prompt = "question"

    [[data.sources]]
    path = "a"

    [[data.sources]]
    path = "b"
    weight = 2

    [train]
    seed = 3
    """
)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["top"], 2),
        (["top", "dotted"], 2),
        (["model"], 4),
        (["model", "id"], 5),
        (["model", "list"], 6),
        (["model", "inline", "two", "three"], 10),
        (["model", "text"], 11),
        (["model", "quoted key"], 15),
        (["model", "after"], 16),
        (["data"], 18),
        (["data", "columns", "prompt"], 19),
        (["data", "sources"], 21),
        (["data", "sources", 0, "path"], 22),
        (["data", "sources", 1], 24),
        (["data", "sources", 1, "path"], 25),
        (["data", "sources", 1, "weight"], 26),
        (["train"], 28),
        (["train", "seed"], 29),
        (["train", "missing"], None),
        (["data", "sources", 0, "weight"], None),
    ],
)
def test_a_value_is_found_on_the_line_that_defines_it(path: list[str | int], line: int | None) -> None:
    assert line_of(TOML, path) == line


def test_a_missing_key_is_placed_at_its_table() -> None:
    assert line_of_nearest(TOML, ["data", "sources", 1, "limit"]) == 24
    assert line_of_nearest(TOML, ["lora", "r"]) == 1


def test_only_line_feeds_count_as_line_ends() -> None:
    assert line_of("# \u2028 \x85\na = 1\n", ["a"]) == 2


def test_a_broken_statement_is_located_by_its_first_line() -> None:
    text = "a = 1\nb = [\n  1,\n  oops,\n"

    assert line_of_statement(text, 4) == 2
    assert line_of_statement(text, 1) == 1
    assert line_of_statement(text, None) == 2
