"""Every documented way of installing, in fresh environments, with the newest versions that the index gives.

`python -m benchmarks.installations [--quick] [--train]` builds the wheel and the sdist twice (the same bytes), checks
their metadata with twine, installs fastft in each way and for each Python of this machine, and tries the light commands
with a Hub model that is not here. `--train` installs `[train]` too and runs `fastft doctor --train`. `--quick`: pip
with this Python alone. Writes installations.json beside this file, and prints the table of docs/installation.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastft import __version__

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).with_suffix(".json")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Made from the tree alone: the time of an entry in the archive is that of this release, not of the build.
SOURCE_DATE_EPOCH = "1700000000"
ROWS = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
# (command, exit code, what it must say)
LIGHT = (
    (("--version",), 0, f"fastft {__version__}"),
    (("init", "mine", "--model", "nobody/nothing"), 0, "wrote mine.toml"),
    (("check", "mine.toml"), 0, "sound"),
    (("plan", "mine.toml", "--device", "h100"), 0, "steps"),
    (("check", "mine.toml", "--data"), 4, "is not on this machine"),
    (("preview", "mine.toml"), 4, "is not on this machine"),
    (("explain", "lora.r"), 0, "rank"),
    (("schema",), 0, "fastft recipe"),
    (("run", "mine.toml"), 4, 'pip install "fastft[train]"'),
)
MISSING = "no such Python on this machine"
NAMED = ("huggingface_hub", "pydantic", "tokenizers", "typer", "torch", "transformers", "trl", "unsloth")


@dataclass(frozen=True)
class Installation:
    """What one way of installing gave; `faults`: the commands that did not do what they should."""

    way: str
    python: str
    seconds: float
    versions: dict[str, str]
    faults: tuple[str, ...]


def installed(way: str, python: str, install: Callable[[Path], Path], *, train: bool = False) -> Installation:
    """Install into an empty folder, and try the commands; `install` returns the program."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        try:
            program = install(folder)
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            return Installation(way, python, time.monotonic() - began, {}, (f"install: {said.strip()[-300:]}",))
        seconds = time.monotonic() - began
        faults = [fault for command in LIGHT[: -1 if train else None] if (fault := _fault(program, folder, *command))]
        if train and (fault := _fault(program, folder, ("doctor", "--train"), 0, "")):
            faults.append(fault)
        return Installation(way, python, round(seconds, 1), _versions(program), tuple(faults))


def _fault(program: Path, folder: Path, arguments: Sequence[str], code: int, said: str) -> str | None:
    environment = {"PATH": "", "HOME": str(folder), "HF_HUB_OFFLINE": "1" if "--train" in arguments else "0"}
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    shown = done.stdout + done.stderr
    if done.returncode == code and said in shown and "Traceback" not in shown:
        return None
    return f"{' '.join(arguments)}: exit {done.returncode}, {shown.strip()[-300:]}"


def _versions(program: Path) -> dict[str, str]:
    python = Path(program.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!").split()[0])
    code = (
        "import importlib.metadata as m, json, sys\nfound = {}\nfor name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\nprint(json.dumps(found))"
    )
    done = _run([str(python), "-c", code, *NAMED])
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    # Without PYTHONPATH, through which pip would find fastft installed already.
    values = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=values, check=True)


def sources(folder: Path) -> Path:
    """A copy of what the wheel is made of: setuptools leaves a build folder behind."""
    copy = folder / "source"
    shutil.copytree(ROOT / "fastft", copy / "fastft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    return copy


def build(folder: Path) -> list[Path]:
    """The wheel and the sdist of this tree."""
    out = folder / "dist"
    _run(
        [sys.executable, "-m", "build", "--outdir", out, sources(folder)],
        SOURCE_DATE_EPOCH=SOURCE_DATE_EPOCH,
    )
    return sorted(out.iterdir())


def check_builds() -> list[str]:
    """What is wrong with the built files: not the same bytes twice, or metadata that an index refuses."""
    faults = []
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        ours, theirs = build(Path(first)), build(Path(second))
        for one, other in zip(ours, theirs, strict=True):
            if _contents(one) != _contents(other):
                faults.append(f"{one.name} differs when it is built again")
        done = subprocess.run(
            [sys.executable, "-m", "twine", "check", "--strict", *map(str, ours)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            faults.append(done.stdout.strip()[-300:])
    return faults


def _contents(path: Path) -> str:
    """The digest of a built file; of an sdist, whose entries have the time of the build, that of its contents."""
    if path.suffix == ".whl":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    import tarfile

    with tarfile.open(path) as archive:
        entries = [
            (member.name, member.mode, "" if (file := archive.extractfile(member)) is None else _digest(file.read()))
            for member in sorted(archive.getmembers(), key=lambda member: member.name)
        ]
    return _digest(json.dumps(entries).encode())


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _python(version: str) -> Path | None:
    """An interpreter of that version on this machine, or one that uv knows."""
    for command in ([f"python{version}"], [str(_bin() / "uv"), "python", "find", version]):
        if shutil.which(command[0]) is None:
            continue
        line = command if len(command) > 1 else [*command, "-c", "import sys; print(sys.executable)"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return Path(done.stdout.strip())
    return None


def _bin() -> Path:
    return Path(sys.executable).parent


def pip(python: Path, extra: str = "", upgrade_from: str = "") -> Callable[[Path], Path]:
    """`pip install .` in a fresh environment; `upgrade_from`: over an older environment with these packages."""

    def install(folder: Path) -> Path:
        _run([python, "-m", "venv", folder / "venv"])
        own = folder / "venv" / "bin" / "python"
        if upgrade_from:
            _run([own, "-m", "pip", "install", "--quiet", *upgrade_from.split()])
        upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if upgrade_from else []
        _run([own, "-m", "pip", "install", "--quiet", *upgrade, f"{sources(folder)}{extra}"])
        return folder / "venv" / "bin" / "fastft"

    return install


def uv_pip(python: Path) -> Callable[[Path], Path]:
    """`uv pip install .` in a fresh environment."""

    def install(folder: Path) -> Path:
        uv = _bin() / "uv"
        _run([uv, "venv", "--quiet", "--python", python, folder / "venv"])
        _run([uv, "pip", "install", "--quiet", "--python", folder / "venv" / "bin" / "python", sources(folder)])
        return folder / "venv" / "bin" / "fastft"

    return install


def uv_tool(python: Path) -> Callable[[Path], Path]:
    """`uv tool install .`."""

    def install(folder: Path) -> Path:
        places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
        _run([_bin() / "uv", "tool", "install", "--quiet", "--python", python, sources(folder)], **places)
        return folder / "bin" / "fastft"

    return install


def pipx(python: Path) -> Callable[[Path], Path]:
    """`pipx install .`."""

    def install(folder: Path) -> Path:
        places = {"PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin")}
        _run([sys.executable, "-m", "pipx", "install", "--python", python, sources(folder)], **places)
        return folder / "bin" / "fastft"

    return install


def ways(*, quick: bool, train: bool) -> Iterator[Installation]:
    """Each way with each Python."""
    here = ".".join(map(str, sys.version_info[:2]))
    yield installed("pip install .", here, pip(Path(sys.executable)))
    if not quick:
        for version in PYTHONS:
            python = _python(version)
            if python is None:
                yield Installation("pip install .", version, 0, {}, (MISSING,))
                continue
            if version != here:
                yield installed("pip install .", version, pip(python))
            for way, make in (("uv pip install .", uv_pip), ("uv tool install .", uv_tool), ("pipx install .", pipx)):
                yield installed(way, version, make(python))
        old = "pydantic==2.11.0 rich==14.0.0 typer==0.16.0 huggingface_hub==1.0.0"
        yield installed("pip install --upgrade .", here, pip(Path(sys.executable), upgrade_from=old))
    if train:
        yield installed('pip install ".[train]"', here, pip(Path(sys.executable), "[train]"), train=True)


def table(found: Sequence[Installation]) -> str:
    """The installations as Markdown."""
    lines = ["| way | Python | seconds | huggingface_hub | all commands |", "|---|---|---|---|---|"]
    for one in found:
        state = "yes" if not one.faults else "; ".join(one.faults).replace("\n", " ")[:120]
        hub = one.versions.get("huggingface_hub", "-")
        lines.append(f"| `{one.way}` | {one.python} | {one.seconds:.0f} | {hub} | {state} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try all; exit 1 where something is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    found: list[Installation] = []
    for one in ways(quick=options.quick, train=options.train):
        found.append(one)
        print(table([one]).splitlines()[-1], flush=True)
        if not options.quick:
            OUT.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    faults = [] if options.quick else check_builds()
    print("\n".join(faults or ["" if options.quick else "wheel and sdist: the same when built again; twine: passed"]))
    sys.exit(bool(faults) or any(one.faults and one.faults != (MISSING,) for one in found))


if __name__ == "__main__":
    main()
