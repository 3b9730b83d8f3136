"""Secrets out of text: what fastft prints, logs or writes about a run passes through `redact`."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

HIDDEN = "***"

# Names of keys that hold a secret. Not bos_token, eos_token, max_new_tokens, ...
_NAME = (
    r"[\w-]*(?:api[_-]?key|access[_-]?key|(?:hub|hf|auth|access|bearer|private|refresh)[_-]?token|passw(?:or)?d|secret)"
)
_VALUE = r"[^\s\"'&,;)}\]]+"
# Recognised by their form: keys of Hugging Face, OpenAI and others (sk-), GitHub, GitLab, Slack, AWS.
_FORMS = (
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]{0,99}[0-9A-Z])[\w-]{16,}|gh[opsur]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16})"
)
_PATTERNS = (
    (re.compile(_FORMS), HIDDEN),
    (re.compile(r"(?<=://)[^\s/@\"']+(?=@)"), HIDDEN),
    (re.compile(rf"(?i)\b(bearer\s+){_VALUE}"), rf"\1{HIDDEN}"),
    # name=value, name = "value", "name": "value", ?token=value
    (re.compile(rf"(?i)((?<![\w-])(?:{_NAME}|token)\s*=\s*[\"']?){_VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)([\"'](?:{_NAME}|token)[\"']\s*:\s*[\"']){_VALUE}"), rf"\1{HIDDEN}"),
)
_IS_SECRET = re.compile(rf"(?i)(?:.*[.\[])?(?:{_NAME}|token)[\"'\]]*")
_SECRET_VARIABLE = re.compile(r"(?:.*_)?(?:TOKEN|API_?KEY|ACCESS_KEY|PASSWORD|SECRET)")
SHORTEST_VARIABLE = 8


def redact(text: str) -> str:
    """`text` with `***` in place of tokens, of names and passwords in URLs, and of values of keys such as api_key.

    Also of the values of environment variables whose names end like HF_TOKEN, WANDB_API_KEY or PASSWORD.
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_VARIABLE and value in text and _SECRET_VARIABLE.fullmatch(name):
            text = text.replace(value, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redact_value(name: str, value: Any) -> Any:
    """A JSON value under its key, with `redact` on each text in it; a text under a secret's name is hidden whole."""
    if isinstance(value, str):
        return HIDDEN if _IS_SECRET.fullmatch(name) else redact(value)
    if isinstance(value, dict):
        return {redact(str(key)): redact_value(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_value(name, entry) for entry in value)
    return value


def redact_file(path: Path) -> None:
    """Redact a text file, such as a log that libraries wrote to."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        raw = file.read()
        redacted = redact(raw.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        if redacted != raw:
            # In place: that needs no room on a full disk.
            file.seek(0)
            file.write(redacted)
            file.truncate()
