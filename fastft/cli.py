"""The command line: options and help of each command, and one call, imported when the command runs."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastft import __version__
from fastft.commands.failure import reported
from fastft.commands.options import (
    AsJson,
    Base,
    ContextTokens,
    Overrides,
    PricePerHour,
    RecipePath,
    RunFolder,
    RunsDir,
    WeightsArgument,
    looked_up,
)
from fastft.console import show_plain_signs
from fastft.probe.software import NEEDED_TO_CHAT, NEEDED_TO_EXPORT, require

# The value of `--resume` without a folder. No folder has an empty name.
NEWEST = ""

app = typer.Typer(
    help="Fine-tune language models fast, from one TOML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[RUN]",
            help="Do not run a finished run again; RUN: continue this folder.",
            callback=looked_up,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new run, even where one did not finish.")] = False,
    accept_drift: Annotated[
        list[str] | None,
        typer.Option("--accept-drift", metavar="KEY", help="Continue although this changed: packages.torch, device."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check, plan, load, train, evaluate and save; print what changed.

    A run of the same recipe that did not finish is continued.
    """
    from fastft.commands.run import run_in_terminal
    from fastft.stages.attempt import Start

    run = Path(resume) if resume not in (None, NEWEST) else None
    start = Start(resume is not None, fresh, run, tuple(accept_drift or ()))
    run_in_terminal(recipe, overrides or [], runs_dir, start, as_json=as_json)


@app.command()
def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new run, even where one did not finish.")] = False,
    nproc: Annotated[
        int | None, typer.Option("--nproc", min=1, max=4096, help="Processes on this host; default: one a GPU.")
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option("--hostfile", metavar="FILE", help="Lines: node1 slots=8", callback=looked_up),
    ] = None,
    nnodes: Annotated[int | None, typer.Option("--nnodes", min=1, max=4096, help="How many hosts.")] = None,
    node_rank: Annotated[int | None, typer.Option("--node-rank", min=0, help="Which host this is, from 0.")] = None,
    master: Annotated[str | None, typer.Option("--master", metavar="ADDRESS[:PORT]", help="The first host.")] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="ddp, zero1, zero2, zero3 or FILE.json of DeepSpeed."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands alone.")] = False,
) -> None:
    """Run a recipe as several processes, on this host or on several.

    The batch of the recipe stays the same: each process takes its share.
    """
    from fastft.commands.launch import LaunchRequest, launch_in_terminal

    arguments = (*(("--runs-dir", str(runs_dir)) if runs_dir != Path("runs") else ()), *(("--fresh",) if fresh else ()))
    request = LaunchRequest(nproc, hostfile, nnodes, node_rank, master, engine, arguments)
    raise typer.Exit(launch_in_terminal(recipe, overrides or [], request, dry_run=dry_run))


@app.command()
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="One or more recipes.", show_default=False)],
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Render and tokenize every row too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find every problem that shows without a model or a GPU."""
    from fastft.commands.check import check_in_terminal

    raise typer.Exit(check_in_terminal(recipes, overrides or [], rows=data, as_json=as_json))


@app.command()
def preview(
    recipe: RecipePath,
    count: Annotated[int, typer.Option("-n", min=1, help="How many rows, from the first on.")] = 3,
    row: Annotated[int | None, typer.Option("--row", min=1, help="One row, by its number in training.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print rows as they are trained, and which tokens carry loss."""
    from fastft.commands.preview import preview_in_terminal

    preview_in_terminal(recipe, overrides or [], count=count, row=row, as_json=as_json)


@app.command()
def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    no_personal: Annotated[bool, typer.Option("--no-personal", help="Do not look for personal data.")] = False,
) -> None:
    """Report repeats, leaks, contradictions, imbalance and personal data of the rows, and what they hold."""
    from fastft.commands.data import data_in_terminal

    data_in_terminal(recipe, overrides or [], as_json=as_json, personal=not no_personal)


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
    price_per_hour: PricePerHour = None,
    devices: Annotated[int | None, typer.Option("--devices", min=1, max=1024, help="GPUs of each host.")] = None,
    hosts: Annotated[int | None, typer.Option("--hosts", min=1, max=1024, help="How many hosts.")] = None,
    link: Annotated[str | None, typer.Option("--link", metavar="NAMES", help="pcie4,25gbit, 8x400gbit, ...")] = None,
    engine: Annotated[str | None, typer.Option("--engine", metavar="NAME", help="ddp, fsdp2, zero1/2/3.")] = None,
    what_if: Annotated[
        str | None, typer.Option("--what-if", metavar="KEY=V1,V2", help="One row for each value of a key.")
    ] = None,
    calls: Annotated[bool, typer.Option("--calls", help="Show the upstream calls too.")] = False,
) -> None:
    """Forecast steps, padding, memory, time and disk, without a GPU."""
    from fastft.commands.plan import Question, plan_in_terminal

    question = Question(runs_dir, device, memory, price_per_hour, devices, hosts, link, engine)
    plan_in_terminal(recipe, overrides or [], question, what_if=what_if, calls=calls, as_json=as_json)


@app.command()
def export(
    path: WeightsArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMATS", help="adapter,merged_16bit,merged_4bit,gguf")] = "gguf",
    quant: Annotated[str, typer.Option("--quant", metavar="TYPES", help="GGUF types: q4_k_m,q8_0")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default: its exports/ folder.", callback=looked_up)
    ] = None,
    base: Base = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", metavar="DIR", help="Convert with this llama.cpp checkout.", callback=looked_up),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="HUB_ID", help="Upload what passed; a new repository is private.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write merged or GGUF weights, and compare them with the trained model."""
    require(NEEDED_TO_EXPORT, "fastft export")
    from fastft.commands.export import ExportRequest, export_in_terminal

    request = ExportRequest(_listed(to), _listed(quant), out, base, llama_cpp, push)
    export_in_terminal(path, request, as_json=as_json)


@app.command()
def predict(
    path: WeightsArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Texts: .jsonl or .csv.", callback=looked_up)],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write here: .jsonl or .csv.")] = None,
    base: Base = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts that are read at once.")] = 16,
) -> None:
    """Give each text of a file its label, by a run of task = "classification"."""
    require(NEEDED_TO_EXPORT, "fastft predict")
    from fastft.commands.predict import predict_in_terminal

    predict_in_terminal(path, file, out, base, batch)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


@app.command()
def chat(
    path: WeightsArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="One question, one answer.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the answer of the untrained base too.")] = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1, help="Draw from this share.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 256,
    seed: Annotated[int | None, typer.Option("--seed", help="The same draws each time.")] = None,
    context_tokens: ContextTokens = None,
    base: Base = None,
) -> None:
    """Chat with a run, an adapter, a merged model or a GGUF file."""
    require(NEEDED_TO_CHAT, "fastft chat")
    from fastft.commands.chat import ChatRequest, chat_in_terminal
    from fastft.inference.conversation import Sampling

    sampling = Sampling(temperature, top_p, max_new_tokens, seed)
    chat_in_terminal(path, ChatRequest(base, compare, system, sampling, context_tokens), prompt)


@app.command()
def serve(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A .gguf file, or a run with one.", callback=looked_up, show_default=False),
    ],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="On 127.0.0.1.")] = 8080,
    context_tokens: ContextTokens = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", envvar="LLAMA_API_KEY", help="Clients must send it.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="ORIGIN", help="Let this web page ask: https://example.org:3000"),
    ] = None,
) -> None:
    """Serve a GGUF file on 127.0.0.1, as OpenAI's API does."""
    require(NEEDED_TO_CHAT, "fastft serve")
    from fastft.commands.serve import serve_until_stopped
    from fastft.inference.proxy import Access

    serve_until_stopped(path, port, context_tokens, Access(tuple(allow_origin or ()), api_key))


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default: report.html in the run's folder.", callback=looked_up),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
) -> None:
    """Write the report page of a run: one HTML file that loads nothing."""
    from fastft.commands.report import report_in_terminal

    report_in_terminal(run, out, open_it=open_it)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the runs.", callback=looked_up)] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: state, steps, held-out loss, time, size, exports."""
    from fastft.commands.runs import runs_in_terminal

    runs_in_terminal(folder, as_json=as_json)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The first is the one to beat.")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with curves too.", callback=looked_up)
    ] = None,
    price_per_hour: PricePerHour = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs on the same held-out rows: which is better and how sure that is, settings, speed, memory."""
    from fastft.commands.compare import compare_in_terminal

    compare_in_terminal([looked_up(folder) for folder in folders], html, price_per_hour, as_json=as_json)


@app.command()
def reproduce(
    run: RunFolder,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="In nats; default: 0 on a CPU, 0.01 elsewhere.")
    ] = None,
) -> None:
    """Run a finished run again with the same data, base and versions, and compare every loss."""
    from fastft.commands.reproduce import reproduce_in_terminal

    reproduce_in_terminal(run, tolerance)


@app.command()
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key (learning_rate, lora.r) or a section.")
    ] = None,
) -> None:
    """Explain what a recipe key does, and when it is too small or large."""
    from fastft.recipe.reference import explain as explain_key

    print(explain_key(key))


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the recipe.")] = "recipe",
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="A Hub id or a folder.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Your rows: their columns give the format.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="For the forecast: a100-80gb, l4, cpu, ...")
    ] = None,
) -> None:
    """Write a commented starter recipe, for your rows or with a few of its own."""
    from fastft.commands.init import init_in_terminal

    init_in_terminal(name, model, data, device)


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="YAML, a notebook, a program, a command line; -: standard input."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the recipe here.", callback=looked_up)
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out what a recipe cannot say, as comments.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a recipe of a file of Axolotl, LLaMA-Factory, TRL, ms-swift or Unsloth, or of a command line."""
    from fastft.commands.convert import convert_in_terminal

    convert_in_terminal(file, out, partial=partial, as_json=as_json)


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
    """Check versions, device and disk, and print the commands that fix them."""
    from fastft.commands.doctor import doctor_in_terminal

    raise typer.Exit(doctor_in_terminal(train=train, as_json=as_json))


def _with_resume_value(arguments: list[str]) -> list[str]:
    """The arguments, with NEWEST after a `--resume` that names no folder: Typer knows no optional values."""
    given: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        given.append(argument)
        if argument == "--resume" and (following is None or following.startswith("-") or following.endswith(".toml")):
            given.append(NEWEST)
    return given


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastft {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[  # noqa: ARG001 -- its callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
) -> None:
    """Fine-tune language models fast, from one TOML recipe."""
    if local_rank is not None:  # deepspeed's launcher says it here too, in front of the command
        os.environ.setdefault("LOCAL_RANK", str(local_rank))


def main() -> None:
    """Run the command line. Exit codes: docs/runs.md."""
    show_plain_signs()
    with reported():
        sys.exit(app(_with_resume_value(sys.argv[1:]), prog_name="fastft", standalone_mode=False) or 0)
