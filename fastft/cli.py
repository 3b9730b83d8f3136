"""The command line: one function a command, a few lines each; what is heavy is imported inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastft import __version__
from fastft.errors import DataError, FastftError, Problem, UsageError, Where

app = typer.Typer(
    help="Fine-tune language models fast, from one TOML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

if TYPE_CHECKING:
    from fastft.data.inspect import SourceFacts
    from fastft.recipe.loader import LoadedRecipe

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a .toml file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set train.learning_rate=1e-4")
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where run folders are made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this recipe.")] = False,
) -> None:
    """Check, plan, load, train, evaluate and save; print what changed."""
    from rich.console import Console

    from fastft.pipeline import own_console
    from fastft.pipeline import run as run_recipe
    from fastft.report.result import print_result

    console = own_console()
    with console.file:
        finished = run_recipe(recipe, overrides or [], runs_dir, resume=resume, console=console)
    print_result(Console(), finished.result or {}, str(finished.path))


@app.command()
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="One or more recipes.", show_default=False)],
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Render and tokenize every row too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find every fault that shows without a model or a GPU."""
    from fastft.check import check as check_recipe
    from fastft.recipe.loader import load

    failed: dict[Path, FastftError] = {}
    seen = {}
    for path in recipes:
        try:
            loaded = load(path, overrides or [])
            seen[path] = check_recipe(loaded)
            if data:
                _check_rows(loaded)
        except FastftError as error:
            failed[path] = error
    if as_json:
        print(json.dumps([_checked(path, failed.get(path)) for path in recipes], indent=2))
    else:
        for path in recipes:
            for problem in failed[path].problems if path in failed else ():
                print(problem, file=sys.stderr)
            if path not in failed:
                print(f"{path}: sound; " + "; ".join(_source(source) for source in seen[path].sources))
    if failed:
        raise typer.Exit(min(error.exit_code for error in failed.values()))


def _check_rows(loaded: LoadedRecipe) -> None:
    """Every row as it would be trained: counts and notes to standard error, broken rows as a DataError."""
    from fastft.rows import account, prepared_rows, tokenizer_folder

    made = prepared_rows(loaded, tokenizer_folder(loaded, _say), refuse_broken=False)
    for name, rows in (("training", made.train), ("held-out", made.eval)):
        if rows is not None:
            said, notes = account(name, rows, made.format)
            for line in (said, *notes):
                _say(line)
    broken = [*made.train.rejected, *(made.eval.rejected if made.eval else ())]
    if broken:
        raise DataError(broken)


def _say(text: str) -> None:
    print(f"• {text}", file=sys.stderr)


def _source(source: SourceFacts) -> str:
    """One data source as `data.train: rows.jsonl (messages)`."""
    return f"{source.key}: {source.source} ({source.format or 'on the Hub, not looked at'})"


def _checked(path: Path, error: FastftError | None) -> dict[str, object]:
    problems = [] if error is None else [_as_json(problem) for problem in error.problems]
    return {"recipe": str(path), "sound": error is None, "problems": problems}


def _as_json(problem: Problem) -> dict[str, object]:
    return {
        "file": problem.where.path,
        "line": problem.where.line,
        "field": problem.field,
        "wrong": problem.wrong,
        "got": problem.got,
        "instead": problem.instead,
    }


@app.command()
def preview(
    recipe: RecipePath,
    count: Annotated[int, typer.Option("-n", min=1, help="How many rows, from the first on.")] = 3,
    row: Annotated[int | None, typer.Option("--row", min=1, help="One row, by its number in training.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print rows as they are trained, and which tokens carry loss."""
    from rich.console import Console

    from fastft.check import check as check_recipe
    from fastft.data.preview import preview as preview_row
    from fastft.data.tokenizer import load_tokenizer
    from fastft.recipe.loader import load
    from fastft.report.preview import print_row
    from fastft.rows import prepared_rows, tokenizer_folder

    loaded = load(recipe, overrides or [])
    check_recipe(loaded)
    folder = tokenizer_folder(loaded, _say)
    train = prepared_rows(loaded, folder).train
    if row is not None and row > len(train.rows):
        wrong = f"there is no row {row}"
        raise UsageError(Problem(Where("--row"), "", wrong, f"write 1 to {len(train.rows)}"))
    chosen = [row - 1] if row is not None else range(min(count, len(train.rows)))
    tokenizer = load_tokenizer(folder).tokenizer
    dropped = {entry.where: entry.tokens - entry.kept_tokens for entry in train.overlong}
    shown = [
        preview_row(encoded, tokenizer, dropped.get(encoded.where, 0))
        for encoded in (train.rows[index] for index in chosen)
    ]
    if as_json:
        print(json.dumps([entry.as_json() for entry in shown], indent=2, ensure_ascii=False))
        return
    for entry in shown:
        print_row(Console(), entry)


@app.command()
def data(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Report repeats, leaks, contradictions and imbalance of the data."""
    import dataclasses

    from fastft.check import check as check_recipe
    from fastft.data.hygiene import examine
    from fastft.recipe.loader import load
    from fastft.report.hygiene import print_hygiene

    loaded = load(recipe, overrides or [])
    check_recipe(loaded)
    found = examine(loaded.recipe.data, loaded.folder)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        print_hygiene(found)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Forecast for a100-40gb, h100, l4, t4, cpu, ...")
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Its memory: 24GB.")] = None,
    price_per_hour: Annotated[float | None, typer.Option("--price-per-hour", min=0, help="What an hour costs.")] = None,
    what_if: Annotated[
        str | None, typer.Option("--what-if", metavar="KEY=V1,V2", help="One row for each value of a key.")
    ] = None,
    calls: Annotated[bool, typer.Option("--calls", help="Show the upstream calls too.")] = False,
) -> None:
    """Forecast steps, padding, memory, time and disk, without a GPU."""
    from rich.console import Console

    from fastft.check import check as check_recipe
    from fastft.planning import Question, answer, compare
    from fastft.recipe.loader import load
    from fastft.report.plan import plan_page
    from fastft.report.what_if import what_if_page

    loaded = load(recipe, overrides or [])
    check_recipe(loaded)
    question = Question(runs_dir, device, memory, price_per_hour)
    if what_if is not None:
        field, plans = compare(loaded, what_if, question)
        if as_json:
            print(json.dumps([{"value": value, **made.as_json()} for value, made in plans], indent=2))
        else:
            Console(highlight=False).print(what_if_page(field, plans), crop=False)
        return
    made = answer(loaded, question)
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        Console(highlight=False).print(plan_page(made, with_calls=calls), crop=False)


WeightsArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="A run, an adapter, a model folder or a .gguf file.", show_default=False)
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="The 16-bit base of an adapter: a folder or a Hub id.")
]


@app.command()
def export(
    path: WeightsArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMATS", help="adapter,merged_16bit,merged_4bit,gguf")] = "gguf",
    quant: Annotated[str, typer.Option("--quant", metavar="TYPES", help="GGUF types: q4_k_m,q8_0")] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: its exports/ folder.")] = None,
    base: Base = None,
    llama_cpp: Annotated[
        Path | None, typer.Option("--llama-cpp", metavar="DIR", help="Convert with this llama.cpp checkout.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="HUB_ID", help="Upload what passed; a new repository is private.")
    ] = None,
) -> None:
    """Write merged or GGUF weights, proven against the trained model."""
    from fastft.probe.software import require

    require(("numpy", "gguf", "xllamacpp", "torch", "transformers", "peft"), "fastft export")
    from fastft.exporting import Request
    from fastft.exporting import export as export_weights
    from fastft.pipeline import own_console
    from fastft.report.export import print_exports

    console = own_console()
    with console.file:
        request = Request(_listed(to), _listed(quant), out, base, llama_cpp, push)
        done = export_weights(path, request, lambda text: console.print(f"• {text}", markup=False))
    print_exports(done.record)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


@app.command()
def chat(
    path: WeightsArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="One question, one answer.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Let the untrained base answer beside it.")] = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1, help="Draw from this share.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 256,
    seed: Annotated[int | None, typer.Option("--seed", help="The same draws each time.")] = None,
    context_tokens: Annotated[int, typer.Option("--context-tokens", min=64, help="Of a GGUF file.")] = 4096,
    base: Base = None,
) -> None:
    """Talk to a run, an adapter, a merged model or a GGUF file."""
    from fastft.probe.software import require

    require(("numpy", "xllamacpp"), "fastft chat")
    from fastft.chatting import Request, chat_in_terminal
    from fastft.export.chat import Sampling

    sampling = Sampling(temperature, top_p, max_new_tokens, seed)
    chat_in_terminal(path, Request(base, compare, system, sampling, context_tokens), prompt)


@app.command()
def serve(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A .gguf file, or a run with one.", show_default=False)],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="On 127.0.0.1.")] = 8080,
    context_tokens: Annotated[int, typer.Option("--context-tokens", min=64, help="The longest conversation.")] = 4096,
) -> None:
    """Serve a GGUF file on 127.0.0.1, as OpenAI's API does."""
    from fastft.probe.software import require

    require(("numpy", "xllamacpp"), "fastft serve")
    from fastft.chatting import serve_until_stopped

    serve_until_stopped(path, port, context_tokens)


@app.command()
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key (learning_rate, lora.r) or a section.")
    ] = None,
) -> None:
    """Tell what a recipe key does, and when it is too small or large."""
    from fastft.recipe.reference import explain as explain_key

    print(explain_key(key))


@app.command()
def init(name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the recipe.")] = "recipe") -> None:
    """Write a commented starter recipe, and a few rows for it."""
    from fastft.recipe.starter import starter, starter_rows

    stem = name.removesuffix(".toml")
    recipe, rows = Path(f"{stem}.toml"), Path(f"{stem}.jsonl")
    for path in (recipe, rows):
        if path.exists():
            raise UsageError(Problem(Where(str(path)), "", "exists already", "give another name: fastft init NAME"))
    try:
        recipe.write_text(starter(Path(stem).name), encoding="utf-8")
        rows.write_text(starter_rows(), encoding="utf-8")
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        raise UsageError(Problem(Where(str(recipe)), "", wrong, "name a file in a folder that exists")) from None
    print(f"wrote {recipe} and {rows}; next: fastft check {recipe}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors that complete it."""
    from fastft.recipe.reference import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@app.command()
def doctor(
    as_json: AsJson = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train, resume and export a tiny model too: a minute.")
    ] = False,
) -> None:
    """Examine versions, device and disk, and say what mends them."""
    import dataclasses

    from fastft.probe.doctor import examine
    from fastft.report.doctor import print_findings

    findings = examine(Path())
    if train and not any(finding.state == "broken" for finding in findings):
        from fastft.doctor import prove
        from fastft.pipeline import own_console

        console = own_console()
        with console.file:
            findings += prove(lambda text: console.print(f"• {text}"))
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        print_findings(findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(4)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastft {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models fast, from one TOML recipe."""


def main() -> None:
    """Run the command line. Exit codes: docs/runs.md."""
    try:
        app(prog_name="fastft")
    except FastftError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
