"""Generate docs/reference from the program: `python -m tests.docs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from fastft.cli import app
from fastft.data.template import TEMPLATES
from fastft.exports.gguf.architectures import ARCHITECTURES
from fastft.planning.devices import MIB, SHEETS
from fastft.planning.throughput import PUBLISHED
from fastft.recipe.data_formats import DATA_FORMATS
from fastft.recipe.export_formats import FOLDER_FORMATS
from fastft.recipe.optimizers import OPTIMIZERS, Argument
from fastft.recipe.quantizations import QUANTIZATIONS
from fastft.recipe.reference import recipe_page, schema
from tests.costs import costs_page
from tests.recording import quickstart_svg

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def pages() -> dict[str, str]:
    """File name -> text of each page."""
    return {
        "recipe.md": recipe_page(),
        "cli.md": cli_page(),
        "tables.md": tables_page(),
        "costs.md": costs_page(),
        "../quickstart.svg": quickstart_svg(),
        "recipe.schema.json": json.dumps(schema(), indent=2) + "\n",
    }


def cli_page() -> str:
    """docs/reference/cli.md: the help of every command, in 100 columns."""
    parts = ["# Command reference", "Made by `make docs`; do not edit."]
    for name, text in _helps():
        parts += [f"## {name}", f"```text\n{text.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def tables_page() -> str:
    """What recipes and options can name, from the tables that every module reads."""
    optimizers = [
        (
            name,
            row.family,
            f"{row.state_bytes:g}",
            ", ".join(row.packages),
            _yes(row.paged),
            row.on_cpu or "",
            ", ".join(f"{key} ({_default(argument)})" for key, argument in row.arguments.items()),
        )
        for name, row in OPTIMIZERS.items()
        if not row.refused
    ]
    refused = [(name, row.refused, f"`{row.instead}`") for name, row in OPTIMIZERS.items() if row.refused]
    types = [
        (name, f"{row.bits:g}", f"{row.bar:.0%}", f"{row.most_mean_kl:g}", f"{row.most_kl:g}", _yes(row.by_converter))
        for name, row in QUANTIZATIONS.items()
    ]
    folders = [
        (name, row.library, f"{row.weight_bytes:g}", f"{row.bar:.0%}", f"{row.most_mean_kl:g}", f"{row.most_kl:g}")
        for name, row in FOLDER_FORMATS.items()
    ]
    devices = [
        (
            name,
            row.name,
            f"{row.memory_bytes / MIB:,.0f} MiB",
            f"{row.flops / 1e12:g}",
            f"{row.bandwidth / 1e12:g}",
            _yes(row.computes_bfloat16),
        )
        for name, row in SHEETS.items()
    ]
    rates = [
        (
            row.card,
            row.model,
            row.kind,
            row.engine,
            f"{row.tokens:,}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.utilisation:.0%}",
            row.source,
        )
        for row in PUBLISHED
    ]
    parts = [
        "# Tables",
        "Made by `make docs`; do not edit. What recipes and options can name, and what fastft knows of each.",
        "## Optimizers",
        "`train.optim`. State: bytes a trained weight, for low-rank ones (GaLore, APOLLO) the most. Package: to install"
        " besides torch and transformers. Arguments: what `train.optim_args` may say, each with its default.",
        _table(
            ("name", "algorithm", "state", "package", "paged", "default on a processor", "arguments"),
            optimizers,
        ),
        "These are refused:",
        _table(("name", "why", "instead"), refused),
        "## GGUF quantizations",
        "`export.quantization`. Bits: a weight, all of Llama-3.1-8B together. Needed: the share of held-out answer"
        " tokens at which the file must predict the trained model's next token. Mean and worst KL: the most that its"
        " predictions may differ, in nats a token. Converter: `--llama-cpp` can write it.",
        _table(("name", "bits", "needed", "mean KL", "worst KL", "converter"), types),
        "## Export formats",
        "`export.formats`, besides `gguf`. Bytes: a weight of the base model. The others: as above.",
        _table(("name", "loaded by", "bytes", "needed", "mean KL", "worst KL"), folders),
        "## GGUF architectures",
        "The `architectures` of a config.json that GGUF export knows.",
        _table(("model class", "llama.cpp's name"), [(name, row.name) for name, row in ARCHITECTURES.items()]),
        "## Data formats",
        "`data.format`, each with the columns that it needs; `auto` takes the first one that fits the first row.",
        _table(("name", "columns"), [(name, ", ".join(columns)) for name, columns in DATA_FORMATS.items()]),
        "## Chat templates",
        "`data.chat_template`, besides `model` and a file, each with the models that were trained with it.",
        _table(("name", "models"), [(name, ", ".join(families) or "any") for name, families in TEMPLATES.items()]),
        "## Devices",
        "`--device`, besides `cpu`: figures of the maker's data sheets, TFLOP/s of dense 16-bit products and TB/s.",
        _table(("name", "device", "memory", "TFLOP/s", "TB/s", "bfloat16"), devices),
        "## Published training rates",
        "What the forecast of time stands on until this machine has measured one of its own. Tokens: of a micro-batch."
        " Reached: the share of the card's 16-bit peak that the arithmetic takes, recomputation included and expanding"
        " 4-bit weights left out. No such rate was published for the other cards; their intervals are wider.",
        _table(("card", "model", "trained", "with", "tokens", "tokens/s", "reached", "source"), rates),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; the names in its first column are code."""
    body = [(f"`{name}`", *rest) for name, *rest in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *body))


def _default(argument: Argument) -> str:
    value = argument.default
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _yes(fact: bool) -> str:
    return "yes" if fact else ""


def _helps() -> Iterator[tuple[str, str]]:
    program: Any = typer.main.get_command(app)
    top = program.make_context("fastft", [], resilient_parsing=True, terminal_width=100, max_content_width=100)
    yield "fastft", program.get_help(top)
    for name, command in program.commands.items():
        context = command.make_context(name, [], parent=top, resilient_parsing=True)
        yield f"fastft {name}", command.get_help(context)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
