"""What to type instead of a command or an option that does not exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from fastft.recipe.wording import named_here

# What other tools call these commands.
ELSEWHERE = {
    "run": ("train", "fit", "finetune", "fine-tune", "sft", "dpo", "start", "resume", "pt"),
    "check": ("validate", "lint", "verify", "test"),
    "plan": ("estimate", "dry-run", "memory"),
    "preview": ("preprocess", "tokenize", "show"),
    "chat": ("infer", "inference", "generate", "eval", "evaluate", "talk"),
    "export": ("merge", "merge-lora", "merge_lora", "convert-gguf", "gguf", "quantize", "save", "push"),
    "init": ("new", "create", "quickstart"),
    "runs": ("list", "ls", "status"),
    "doctor": ("env", "info", "fetch", "install"),
    "serve": ("api", "deploy"),
    "predict": ("classify",),
}
_MEANT = {theirs: ours for ours, names in ELSEWHERE.items() for theirs in names}


def usage_hint(error: Any, arguments: Sequence[str]) -> str | None:
    """What to type instead, for a usage error of click at `arguments`; None where nothing is known to be meant."""
    command = re.search(r"No such command '(.+?)'", error.format_message())
    if command is not None:
        name = command[1]
        if name.endswith(".toml"):
            return f"fastft run {shlex.quote(name)}"
        rest = shlex.join(arguments[arguments.index(name) + 1 :]) if name in arguments else ""
        return f"fastft {_MEANT[name]} {rest}".rstrip() if name in _MEANT else None
    if type(error).__name__ == "NoSuchOption" and error.ctx is not None:
        takes_keys = any("--set" in parameter.opts for parameter in error.ctx.command.params)
        meant = named_here(error.option_name.lstrip("-").replace("-", "_"))
        return f"a key of the recipe: --set {meant}=VALUE" if takes_keys and meant else None
    return None
