"""Odd terminals, full disks, broken proxies and caches: one line and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Write = Callable[..., Path]


def fastft(*arguments: object, out: str | None = None, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own; `out`: where its standard output goes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    line = [sys.executable, "-m", "fastft", *map(str, arguments)]
    with open(out or os.devnull, "wb") as stream:  # noqa: PTH123  /dev/full is no file that a Path opens better
        output = stream if out else subprocess.PIPE
        return subprocess.run(line, stdout=output, stderr=subprocess.PIPE, env=environment, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device, which is always full")
@pytest.mark.parametrize("command", [["plan"], ["check"], ["explain", "seed"], ["schema"], ["plan", "--json"]])
def test_a_full_standard_output_is_one_line(write_recipe: Write, tmp_path: Path, command: list[str]) -> None:
    recipe = [write_recipe()] if command[0] in ("plan", "check") else []

    done = fastft(*command, *recipe, out="/dev/full", XDG_CACHE_HOME=str(tmp_path / "cache"))

    log = tmp_path / "cache" / "fastft" / "error.txt"
    assert done.returncode == 4
    assert done.stderr.decode().splitlines() == [
        f"standard output: failed: No space left on device; the traceback is in {log}"
    ]
    assert "Traceback" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_terminal_of_another_encoding_shows_what_it_can(write_recipe: Write, variables: dict[str, str]) -> None:
    done = fastft("plan", write_recipe(), "--set", "train.max_steps=20", **variables)

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"steps" in done.stdout
    assert b"?" not in done.stdout
    assert b"####" in done.stdout
    assert b"< active" in done.stdout


def test_a_reader_that_goes_away_ends_the_program_quietly(write_recipe: Write) -> None:
    recipe = write_recipe()
    line = f"{sys.executable} -m fastft plan --calls {recipe} | head -1"

    done = subprocess.run(line, shell=True, capture_output=True, cwd=ROOT, check=False)  # noqa: S602  a pipe is the point

    assert done.stderr == b""


def test_a_cache_that_is_a_file_is_one_line(write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = fastft("doctor", "--train", XDG_CACHE_HOME=str(tmp_path / "file"))

    assert done.returncode == 4
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"XDG_CACHE_HOME" in done.stderr + done.stdout


@pytest.mark.skipif(os.name != "posix", reason="users of Windows have a home folder")
def test_a_user_without_a_home_folder_is_one_line() -> None:
    """As in a container whose user is a number: no HOME, and no line in /etc/passwd."""
    code = "import pwd; pwd.getpwuid = lambda _: {}[0]; from fastft.cli import main; main()"
    variables = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}

    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"],
        env={**variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )

    assert done.returncode == 4
    assert done.stderr.decode().splitlines() == [
        "HOME: this user has no home folder; set HOME or XDG_CACHE_HOME to a folder that you may write to"
    ]


def test_a_cache_that_cannot_be_written_is_one_line(write_recipe: Write) -> None:
    done = fastft("doctor", "--train", XDG_CACHE_HOME="/proc")

    assert done.returncode == 4
    assert b"Traceback" not in done.stderr + done.stdout


def test_a_proxy_that_lacks_its_package_is_named_with_what_to_install(write_recipe: Write) -> None:
    pytest.importorskip("httpx")

    done = fastft("preview", write_recipe(), ALL_PROXY="socks5://127.0.0.1:9", HF_HUB_OFFLINE="0")

    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 4
    assert "the Hub cannot be reached through the proxy of ALL_PROXY" in last
    assert 'run: pip install "httpx[socks]", or unset the variable' in last


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("max_steps=5", "write --set train.max_steps=5"),
        ("lora_alpha=8", "write --set lora.lora_alpha=8"),
        ("nothing=5", "as in --set train.max_steps=5"),
        ("max_steps", "write --set train.max_steps=VALUE"),
        ("export.formats=ggu", 'write a list of "adapter"'),
    ],
)
def test_the_hint_of_an_override_is_made_of_what_was_typed(write_recipe: Write, override: str, instead: str) -> None:
    done = fastft("check", write_recipe(), "--set", override)

    assert done.returncode == 2
    assert instead in done.stderr.decode()
    assert "did you mean" not in done.stderr.decode()
