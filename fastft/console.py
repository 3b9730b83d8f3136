"""Output: progress to standard error, a private console, the output of libraries to a log; and no secrets in any.

What fastft prints, logs or writes about a run passes through `redact`.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
"""Takes one line of progress."""
BytesWritten = Callable[[int, int], None]
"""Takes the bytes written so far, and the bytes in all; at the last call they are equal."""
Writing = Callable[[str], AbstractContextManager[BytesWritten]]
"""Takes a name, and shows the progress of writing it until the context ends."""

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


def ignore_bytes(done: int, total: int) -> None:
    """Show nothing."""


def write_silently(_: str) -> AbstractContextManager[BytesWritten]:
    """Show no progress of writing."""
    return contextlib.nullcontext(ignore_bytes)


@dataclass
class _Verbosity:
    quiet: bool = False
    verbose: bool = False


_verbosity = _Verbosity()


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """`quiet`: results, warnings and errors alone, no progress. `verbose`: errors with their traceback."""
    _verbosity.quiet, _verbosity.verbose = quiet, verbose


def is_quiet() -> bool:
    """Whether no progress is shown."""
    return _verbosity.quiet


def is_verbose() -> bool:
    """Whether errors are shown with their traceback."""
    return _verbosity.verbose


def say(text: str) -> None:
    """Print one line of progress to standard error, which keeps standard output for results; --quiet leaves it out."""
    if not is_quiet():
        warn(text)


def warn(text: str) -> None:
    """Print one line to standard error that --quiet keeps."""
    print(f"• {redact(text)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def private_console() -> Iterator[Console]:
    """A console on standard error that stays there while `library_output_to` is active.

    In a notebook standard error is an object of its own; elsewhere the console has a copy of the file descriptor.
    """
    from rich.console import Console

    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        if _has_descriptor(stream, 2):
            stream = stack.enter_context(os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1))
        # Plain lines in a notebook too: rich would write HTML to the standard output of the cell.
        yield Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), force_jupyter=False)


@contextlib.contextmanager
def library_output_to(log: Path) -> Iterator[None]:
    """Send the process's standard output and error to `log`, file descriptors and logging included.

    So are `sys.stdout` and `sys.stderr` if a notebook replaced them. A console that shows progress meanwhile must be a
    `private_console`. At the end secrets are taken out of `log`.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(redact_file, log)  # the last callback: all is written then
        file = stack.enter_context(log.open("ab", buffering=0))
        text = stack.enter_context(log.open("a", encoding="utf-8", buffering=1))
        streams = (1, sys.stdout, contextlib.redirect_stdout), (2, sys.stderr, contextlib.redirect_stderr)
        for number, stream, redirect in streams:
            stream.flush()
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(file.fileno(), number)
            if not _has_descriptor(stream, number):
                stack.enter_context(redirect(text))
        handler = logging.StreamHandler()
        logging.getLogger().addHandler(handler)
        stack.callback(logging.getLogger().removeHandler, handler)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _has_descriptor(stream: TextIO, number: int) -> bool:
    """Whether `stream` writes to that file descriptor; that of a notebook or a test has another one or none."""
    try:
        return stream.fileno() == number
    except OSError:  # io.UnsupportedOperation is one
        return False


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


# What terminals of other encodings show for the signs of our pages; "?" for all else that they lack.
_SIGNS = {
    "█": "#",
    "░": ".",
    "◂": "<",
    "•": "*",
    "±": "+-",
    "…": "...",
    "×": "x",
    "→": "->",
    "─": "-",
    "│": "|",
    "⟦": "[[",
    "⟧": "]]",
}
_PLAIN = "fastft-plain"


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(_PLAIN, _plainly)


def show_plain_signs() -> None:
    """Let terminals whose encoding lacks our signs show plain ones instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)
