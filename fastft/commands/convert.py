"""`fastft convert`: a recipe out of the files of other tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastft.console import redact, redact_value, say
from fastft.errors import Problem, UsageError, Where
from fastft.files.atomic import write_text
from fastft.migration.convert import MOST_BYTES, Converted, Placed, convert, read_source
from fastft.migration.program_text import UNKNOWN


def convert_in_terminal(file: Path, out: Path | None, *, partial: bool, as_json: bool) -> None:
    """Write the recipe to `out`, with a list of where each argument went, or print it alone.

    Raises:
        UsageError: the file cannot be read, asks for another kind of training, or says what a recipe cannot and
            `partial` is not given; or `out` exists.
    """
    source = read_source(str(file), _read(file))
    made = convert(source, Path() if str(file) == "-" else file.parent)
    say(made.summary)
    if made.lost and not partial:
        raise UsageError([_problem(made, entry) for entry in made.lost])
    if out is not None:
        if out.exists():
            raise UsageError(Problem(Where(str(out)), "", "exists already", "give another name to --out"))
        try:
            write_text(out, redact(made.text))
        except OSError as error:
            wrong = f"cannot be written: {error.strerror}"
            raise UsageError(Problem(Where(str(out)), "", wrong, "name a file in a folder that exists")) from None
    if as_json:
        print(json.dumps(_as_json(made), indent=2))
    elif out is None:
        print(redact(made.text), end="")
    else:
        for entry in made.placed:
            print(f"{entry.argument.name}: {', '.join(entry.fields) or entry.note}")
        print(f"wrote {out}; next: fastft check {out}")


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            return sys.stdin.read(MOST_BYTES)
        with file.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UsageError(
                Problem(Where(str(file)), "", f"is larger than {MOST_BYTES // 2**20} MiB", "name a page of text")
            )
        return raw.decode("utf-8-sig")
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
    except ValueError:
        wrong = "is not UTF-8 text"
    raise UsageError(Problem(Where(str(file)), "", wrong, "name a YAML file, a notebook or a command line"))


def _problem(made: Converted, entry: Placed) -> Problem:
    place = Where(made.source.path, entry.argument.line)
    return Problem(place, entry.argument.name, f"has no place in a recipe: {entry.note}", "--partial leaves it out")


def _as_json(made: Converted) -> dict[str, object]:
    return {
        "form": made.source.form,
        "tool": made.source.tool,
        "arguments": [
            {
                "name": entry.argument.name,
                "value": None
                if entry.argument.value is UNKNOWN
                else redact_value(entry.argument.name, entry.argument.value),
                "line": entry.argument.line,
                "keys": list(entry.fields),
                "note": entry.note,
                "lost": entry.lost,
            }
            for entry in made.placed
        ],
        "recipe": redact(made.text),
    }
