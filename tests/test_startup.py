"""The light side stays light: a separate process prints what the quick commands leave in sys.modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").glob("*.toml"))
HEAVY = ("torch", "transformers", "datasets", "unsloth", "trl", "peft", "numpy", "pandas", "pyarrow")
COMMANDS = [
    ["--help"],
    ["schema"],
    ["explain"],
    ["explain", "gradient_accumulation_steps"],
    ["check", *RECIPES],
    ["plan", "recipes/llama31_sft.toml"],
]
# One process for all: what one command loads is still there after the next.
PROGRAM = f"""
import json, sys
import fastft.cli
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        fastft.cli.main()
    except SystemExit as done:
        heavy = [name for name in {HEAVY} if name in sys.modules]
        print(command[0], done.code or 0, *heavy, file=sys.stderr)
"""


# What Python on Windows lacks.
WITHOUT_POSIX = f"""
import os, signal, sys, warnings
warnings.simplefilter("ignore")  # filelock is surprised on Linux
for name in ("fcntl", "termios", "resource", "pwd", "grp", "tty", "pty"):
    sys.modules[name] = None
for module, names in ((os, ("getloadavg", "sched_getaffinity", "getuid", "mkfifo", "fork")),
                      (signal, ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "pthread_sigmask"))):
    for name in names:
        delattr(module, name)
{PROGRAM}
"""


def test_the_quick_commands_need_nothing_that_windows_lacks() -> None:
    assert _told(WITHOUT_POSIX) == [f"{command[0]} 0" for command in COMMANDS]


def test_the_quick_commands_load_nothing_heavy() -> None:
    assert _told(PROGRAM) == [f"{command[0]} 0" for command in COMMANDS]


def test_what_is_heavy_would_be_seen() -> None:
    assert _told(f"import numpy\n{PROGRAM}", ["--help"]) == ["--help 0 numpy"]


def _told(program: str, *commands: list[str]) -> list[str]:
    """One line a command: its name, its exit code, and the heavy modules that are loaded after it."""
    line = [sys.executable, "-c", program, json.dumps(commands or COMMANDS)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stderr.splitlines()
