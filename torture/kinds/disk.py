"""A disk that fills up on the way, to 12 sizes: one sentence with needed and free, whole checkpoints, an exact rest."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path

from fastft.files.seal import damage
from torture.case import Case, Outcome
from torture.process import Child, command
from torture.subject import RICH, RUN, compare, copy, write_facts, write_subject

KIND = "disk"
KIB = 1024
# What is left free from step 2 on.
LEFT = tuple(KIB * kib for kib in (0, 8, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096))


def prepare(shared: Path, base: Path) -> None:
    write_subject(shared / "subject", base, {**RICH, "model.id": str(base), "train.save_total_limit": 2})
    copy(shared / "subject", shared / "whole")
    command(RUN, shared / "whole")
    write_facts(shared / "whole", shared / "facts.json")


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    return [Case(KIND, f"{left // KIB} KiB left", partial(filled, shared, left)) for left in LEFT]


def filled(shared: Path, left: int, folder: Path) -> Outcome:
    """A file system of its own where this user may mount one; elsewhere a limit on the size of each file."""
    copy(shared / "subject", folder)
    runs = folder / "runs"
    runs.mkdir()
    mounted = os.geteuid() == 0 and _mount(runs)
    try:
        child = Child(RUN, folder, None if mounted else partial(_no_file_above, left // 5))
        metrics = runs / "subject/metrics.jsonl"
        if mounted and child.wait(lambda: metrics.exists() and '"step": 2' in metrics.read_text()) is None:
            _fill(runs / "filler", left)
        ended = child.wait()
        assert ended is not None
        group = "a full file system" if mounted else "a limit on the size of a file"
        if ended.is_traceback or ended.code < 0:
            return Outcome("traceback", ended.cpu_seconds, group, f"exit {ended.code}: {ended.last_line}")
        torn = [path.name for path in runs.glob("*/checkpoints/step-*") if damage(path) is not None]
        if torn:
            return Outcome("silent", ended.cpu_seconds, group, f"torn checkpoints {torn}")
        if ended.code not in (0, 1, 4) or (ended.code and "free" not in ended.shown):
            return Outcome("wrong answer", ended.cpu_seconds, group, f"exit {ended.code}: {ended.last_line}")
        if mounted:
            (runs / "filler").unlink()
        said = f"exit {ended.code}: {ended.last_line}"
        if ended.code == 0:
            return compare(folder, ended, shared / "facts.json", group)
        rest = compare(folder, command(RUN, folder), shared / "facts.json", group)
        return Outcome(rest.verdict, ended.cpu_seconds, group, rest.detail or said)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(runs)], check=False)


def _mount(place: Path) -> bool:
    arguments = ["mount", "-t", "tmpfs", "-o", "size=64M", "none", str(place)]
    return subprocess.run(arguments, check=False, capture_output=True).returncode == 0


def _fill(file: Path, left: int) -> None:
    """Take all but `left` bytes of the file system."""
    with file.open("wb") as stream, contextlib.suppress(OSError):
        os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(file.parent).free - left))


def _no_file_above(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
