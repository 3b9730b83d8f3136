"""Chat templates: loaded by name, file or model, and rendered as in transformers, in jinja2's sandbox."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft.data.example import Example, Message
from fastft.data.template_limits import check_limits
from fastft.errors import DataError, Problem, RecipeError, Where, nearest
from fastft.recipe.data_formats import TEMPLATE_DATE

if TYPE_CHECKING:
    from jinja2 import Environment, Template

FOLDER = Path(__file__).with_name("templates")
Span = tuple[int, int]


# The chat templates that fastft brings (templates/NAME.jinja), each with the model families that were trained with it;
# without one, models of any family were.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "alpaca": (),
    "baichuan2": ("baichuan",),
    "chatml": (),
    "deepseek-r1-distill": ("qwen", "llama", "deepseek"),
    "gemma": ("gemma",),
    "gemma-4": ("gemma",),
    "gpt-oss": ("gpt-oss",),
    "granite": ("granite",),
    "llama-3": ("llama",),
    "llama-3.1": ("llama",),
    "llama-3.2": ("llama",),
    "llama-3.3": ("llama",),
    "mistral": ("mistral", "mixtral"),
    "mistral-nemo": ("mistral",),
    "mistral-v7": ("mistral",),
    "phi": ("phi",),
    "phi-4": ("phi",),
    "phi-4-mini": ("phi",),
    "qwen2.5": ("qwen",),
    "qwen3": ("qwen",),
    "qwen3.5": ("qwen",),
    "smollm3": ("smollm",),
    "vicuna": ("vicuna", "llama"),
    "zephyr": ("zephyr", "mistral", "stablelm"),
}


def known_families() -> tuple[str, ...]:
    """The model families that can be recognised: those of the templates."""
    return tuple(dict.fromkeys(family for families in TEMPLATES.values() for family in families))


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja source that turns messages into text, and its name: "model", a known name, or a file."""

    name: str
    source: str
    # What `strftime_now` gives templates that write today's date: rows have to be the same tomorrow.
    today: str = TEMPLATE_DATE

    @property
    def sha256(self) -> str:
        """The SHA-256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @cached_property
    def compiled(self) -> Template:
        """The compiled template.

        Raises:
            RecipeError: the source is not valid Jinja, or takes too much time or memory (`template_limits`).
        """
        import jinja2

        if self.name not in TEMPLATES:
            check_limits(self.name, self.source)
        try:
            made = compile_template(self.source)
        except jinja2.TemplateSyntaxError as error:
            where = Where(self.name, error.lineno)
            wrong = f"the chat template is not valid Jinja: {error.message}"
            raise RecipeError(Problem(where, "data.chat_template", wrong, "correct the template")) from error
        except (RecursionError, SyntaxError, ArithmeticError, ValueError, TypeError) as error:  # of Python's compiler
            wrong = f"the chat template cannot be compiled: {error}"
            raise RecipeError(Problem(Where(self.name), "data.chat_template", wrong, "correct the template")) from error
        # jinja2 copies its ChainMap for each rendering, which takes a quarter of the time of a short row.
        made.globals = dict(made.globals)
        made.globals["strftime_now"] = date.fromisoformat(self.today).strftime
        return made

    def with_generation_prompt(self, text: str) -> ChatTemplate:
        """This template, which ignores `add_generation_prompt`, with `text` as generation prompt."""
        source = self.source.removesuffix("\n")  # jinja leaves out the last line break of a source
        return replace(self, source=f"{source}{{{{ {json.dumps(text)} if add_generation_prompt }}}}")

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """The pieces of text that the template looks for in messages, such as "</think>"."""
        from jinja2 import nodes

        tree = self.compiled.environment.parse(self.source)
        asking = tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Getitem))
        texts = {const.value for node in asking for const in node.find_all(nodes.Const)}
        return tuple(sorted(text for text in texts if isinstance(text, str) and re.search(r"[^\w\s]", text)))

    @property
    def written_date(self) -> str | None:
        """The date that the template writes where it asks for today's, None where it does not ask."""
        return self.today if "strftime_now" in self.source else None

    @cached_property
    def reasoning_key(self) -> str | None:
        """The name under which the template reads reasoning, where it is not reasoning_content."""
        if "reasoning_content" in self.source:
            return None
        found = re.search(r"""[.'"](thinking|reasoning)\b""", self.source)
        return found[1] if found else None

    @cached_property
    def marks_answers(self) -> bool:
        """Whether the template marks the answers with `{% generation %}` blocks."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def render(
        self,
        messages: Sequence[Message],
        tokens: Mapping[str, str],
        *,
        where: Where,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of `messages`; `tokens` are the control tokens by name.

        Raises:
            DataError: the template refuses these messages (the message quotes its reason), or fails on them.
        """
        values = _values(self, messages, tools, tokens, add_generation_prompt)
        try:
            return self.compiled.render(values)
        except Exception as error:
            raise DataError(_refused(where, error)) from error

    def render_marked(self, example: Example, tokens: Mapping[str, str]) -> tuple[str, list[Span]]:
        """The text of `example`, and the character spans inside `{% generation %}` blocks.

        Raises:
            DataError: the template refuses these messages, or the place of a block in the text is unknown.
        """
        spans: list[Span] = []
        blocks: list[str] = []
        pieces: list[str] = []
        length = 0
        environment: Any = self.compiled.environment
        values = _values(self, example.messages, example.tools, tokens, add_generation_prompt=False)

        def opened(block: str) -> None:
            spans.append((length, length + len(block)))
            blocks.append(block)

        environment.on_generation_block = opened
        try:
            for piece in self.compiled.generate(values):
                pieces.append(piece)
                length += len(piece)
        except Exception as error:
            raise DataError(_refused(example.where, error)) from error
        finally:
            environment.on_generation_block = None
        text = "".join(pieces)
        # A block inside a macro or a filter is written later, so that its place is unknown.
        if any(text[start:end] != block for (start, end), block in zip(spans, blocks, strict=True)):
            wrong = "the place of a {% generation %} block in the text is unknown"
            raise DataError(Problem(example.where, "", wrong, "move it out of macros and filters of the template"))
        return text, spans


def compile_template(source: str) -> Template:
    """The template in the sandbox; raises what jinja2 raises. Foreign ones only after `check_limits`."""
    return _environment().from_string(source)


def load_template(choice: str, recipe_dir: Path, model_template: str | None, where: Where) -> ChatTemplate:
    """The chat template that `data.chat_template` names: "model", a known name, or a `.jinja` file.

    Raises:
        RecipeError: it is unknown, missing or not valid Jinja, or "model" was chosen and the model has none.
    """
    field = "data.chat_template"
    if choice == "model":
        if model_template is None:
            wrong = "this model has no chat template of its own"
            instead = f"set the one that it was trained with: {', '.join(TEMPLATES)}"
            raise RecipeError(Problem(where, field, wrong, instead, got='"model"'))
        template = ChatTemplate("model", model_template)
    elif choice.endswith(".jinja"):
        path = recipe_dir / Path(choice).expanduser()
        if not path.is_file():
            near = nearest(path.name, (p.name for p in path.parent.glob("*.jinja")))
            instead = f"did you mean {near}?" if near else "paths are relative to the recipe"
            raise RecipeError(Problem(where, field, "no such file", instead, got=choice))
        template = ChatTemplate(choice, path.read_text(encoding="utf-8"))
    elif choice in TEMPLATES:
        template = ChatTemplate(choice, (FOLDER / f"{choice}.jinja").read_text(encoding="utf-8"))
    else:
        near = nearest(choice.lower(), TEMPLATES)
        instead = f'did you mean "{near}"?' if near else f"known: model, {', '.join(TEMPLATES)}, or a .jinja file"
        raise RecipeError(Problem(where, field, "unknown chat template", instead, got=f'"{choice}"'))
    _ = template.compiled
    return template


def _values(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    add_generation_prompt: bool,
) -> dict[str, Any]:
    turns = [message.as_template_value() for message in messages]
    if template.reasoning_key:
        for turn in turns:
            if "reasoning_content" in turn:
                turn[template.reasoning_key] = turn["reasoning_content"]
    return {
        **tokens,
        "messages": turns,
        "tools": list(tools) or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }


def _refused(where: Where, error: Exception) -> Problem:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return Problem(where, "", f"the chat template refuses these messages: {reason}", "change the row or the template")


_DICT_ATTRIBUTES = frozenset(dir(dict))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """A sandbox with exactly what transformers' apply_chat_template gives a template (a test compares them)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} ... {% endgeneration %}`: writes its body and passes it to `on_generation_block`."""

        tags = {"generation"}  # noqa: RUF012 -- jinja2's own way to declare it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_report"), [], [], body).set_lineno(line)

        def _report(self, caller: Any) -> str:
            block: str = caller()
            listener = self.environment.on_generation_block  # type: ignore[attr-defined]
            if listener is not None:
                listener(block)
            return block

    class Sandbox(ImmutableSandboxedEnvironment):
        """The same sandbox, faster with dicts, which templates mostly get."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            # jinja2 tries the attribute first, and catches an error before it tries the key.
            if type(obj) is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
                return obj[attribute]
            return super().getattr(obj, attribute)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter escapes HTML, which the model would learn.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.extend(on_generation_block=None)
    return environment
