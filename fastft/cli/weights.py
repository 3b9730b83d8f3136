"""Commands that write or use trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastft.cli.app import app
from fastft.commands.options import AsJson, Base, ContextTokens, WeightsArgument, looked_up
from fastft.probe.software import NEEDED_TO_CHAT, NEEDED_TO_EXPORT, require


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


def _listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


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


@app.command()
def chat(
    path: WeightsArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="One question, one answer.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the answer of the untrained base too.")] = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = None,
    system_file: Annotated[
        Path | None,
        typer.Option("--system-file", metavar="FILE", help="A text file with it.", callback=looked_up),
    ] = None,
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
    chat_in_terminal(path, ChatRequest(base, compare, system, system_file, sampling, context_tokens), prompt)


@app.command()
def serve(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A .gguf file, a run, an adapter or a model folder.",
            callback=looked_up,
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="On 127.0.0.1.")] = 8080,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="NAME=PATH", help="An adapter on this base; more than one may be given."),
    ] = None,
    context_tokens: ContextTokens = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", envvar="LLAMA_API_KEY", help="Clients must send it.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="ORIGIN", help="Let this web page ask: https://example.org:3000"),
    ] = None,
) -> None:
    """Serve a GGUF file on 127.0.0.1, as OpenAI's API does; exports one first where there is none."""
    require(NEEDED_TO_CHAT, "fastft serve")
    from fastft.commands.serve import ServeRequest, serve_until_stopped
    from fastft.inference.proxy import Access

    access = Access(tuple(allow_origin or ()), api_key)
    serve_until_stopped(path, ServeRequest(port, context_tokens, access, tuple(lora or ())))
