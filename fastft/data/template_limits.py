"""Chat templates of strangers, rendered in a process of its own first: one can take hours, or all memory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from functools import lru_cache
from typing import Any

from fastft.data.limited import MEMORY_BYTES, SECONDS, run_limited
from fastft.errors import Problem, RecipeError, Where
from fastft.files.cache import cache_folder

# Two questions and two answers of a word each: a template writes a few hundred characters of its own.
MOST_CHARACTERS = 1_000_000


@lru_cache(maxsize=64)
def check_limits(name: str, source: str) -> None:
    """Compile and render a template within limits, unless that was done before; verdicts are kept by its SHA-256.

    Raises:
        RecipeError: it took more than SECONDS of CPU time or MEMORY_BYTES of memory.
    """
    kept = cache_folder() / "templates" / hashlib.sha256(source.encode(errors="replace")).hexdigest()
    with contextlib.suppress(OSError):
        if kept.exists():
            return
    outcome = run_limited(render_samples, source)
    if outcome != "done":
        memory = f"{MEMORY_BYTES // 1024**2} MiB of memory or {MOST_CHARACTERS:,} characters"
        limit = f"{SECONDS} s of time" if outcome == "time" else memory
        wrong = f"the chat template takes more than {limit} for a short conversation"
        raise RecipeError(Problem(Where(name), "data.chat_template", wrong, "use another template"))
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a check each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()


def render_samples(source: str) -> None:
    """Compile a template and render short conversations with it; what a template refuses is left to its real use."""
    from fastft.data.template import compile_template

    template = compile_template(source)
    turns = [{"role": role, "content": "word"} for role in ("user", "assistant") * 2]
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    for messages, tools in (
        (turns[:1], None),
        (turns, None),
        ([{"role": "system", "content": "word"}, *turns], [tool]),
    ):
        for prompt in (False, True):
            values: dict[str, Any] = {"messages": messages, "tools": tools, "documents": None, **tokens}
            try:
                lengths = map(len, template.generate(**values, add_generation_prompt=prompt))
                too_long = any(length > MOST_CHARACTERS for length in itertools.accumulate(lengths))
            except MemoryError:
                raise
            except Exception:  # noqa: S112  a template may refuse system prompts or tools
                continue
            if too_long:
                raise MemoryError
