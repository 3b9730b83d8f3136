"""SIGKILL at random moments, and at the n-th change of the disk, in every part of a run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from torture.case import Case, Outcome
from torture.points import Points, die_at_byte
from torture.process import Child, command
from torture.subject import RICH, RUN, compare, copy, finished_run, write_facts, write_subject

KIND, COUNT, FRESH = "kills", 300, 20
# What is shown when a part of a run begins; the first that is found in the last line counts.
PARTS = (
    ("converting", "conversion"),
    ("training rows", "preparing"),
    ("held-out rows (", "preparing"),
    ("reading", "preparing"),
    ("tokenized", "preparing"),
    ("rehearsing", "preparing"),
    ("learning_rate", "preparing"),
    ("evaluating", "evaluating"),
    ("answering", "evaluating"),
    ("step ", "training"),
    ("training", "training"),
    ("loading", "loading"),
    ("starting", "loading"),
    ("continuing", "loading"),
    ("saving", "saving"),
    ("writing", "exporting"),
    ("compar", "exporting"),
    ("question", "exporting"),
    ("merged_16bit", "exporting"),
    ("q8_0", "exporting"),
)


def prepare(shared: Path, base: Path) -> None:
    """Two undisturbed runs: the first with its facts, time and number of changes, the second with a conversion made."""
    write_subject(shared / "subject", base, RICH)
    copy(shared / "subject", shared / "whole")
    points = Points()
    child = Child(RUN, shared / "whole", points.install, lambda: points.write_count(shared / "points"))
    ended = child.wait()
    assert ended is not None
    write_facts(shared / "whole", shared / "facts.json")
    (shared / "seconds").write_text(str(ended.seconds), encoding="utf-8")
    copy(shared / "subject", shared / "again")
    again = compare(shared / "again", command(RUN, shared / "again"), shared / "facts.json")
    assert again.is_good, f"two undisturbed runs differ: {again}"


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    chance = random.Random(f"{seed} {KIND}")  # noqa: S311  not for secrets
    points, seconds = int((shared / "points").read_text()), float((shared / "seconds").read_text())
    moments = (COUNT - FRESH) // 2
    at_random = [
        Case(KIND, f"moment {number}", partial(at_moment, shared, chance.uniform(0.0, seconds)))
        for number in range(moments)
    ]
    counted = COUNT - FRESH - moments - 20
    at_points = [
        Case(
            KIND, f"change {1 + number * points // counted}", partial(at_change, shared, 1 + number * points // counted)
        )
        for number in range(counted)
    ]
    at_bytes = [
        Case(KIND, f"byte {number}", partial(at_byte, shared, int(256 * 2 ** (number * 0.65)))) for number in range(20)
    ]
    fresh = [
        Case(KIND, f"fresh {number}", partial(in_a_fresh_process, shared, chance.uniform(3.0, 16.0)))
        for number in range(FRESH)
    ]
    mixed = [*at_random, *at_points, *at_bytes, *fresh]
    chance.shuffle(mixed)
    return mixed


def part(shown: str) -> str:
    """The part of a run that its last line of progress is of."""
    lines = [line for line in shown.splitlines() if line.startswith(("•", "step "))]
    last = lines[-1] if lines else ""
    return next((name for words, name in PARTS if words in last), "starting" if not last else last[:30])


def at_moment(shared: Path, seconds: float, folder: Path) -> Outcome:
    for _ in range(6):
        copy(shared / "subject", folder / str(seconds))
        child = Child(RUN, folder / str(seconds))
        end = time.monotonic() + seconds
        if child.wait(lambda end=end: time.monotonic() >= end) is None:  # type: ignore[misc]
            child.send(signal.SIGKILL)
            ended = child.wait()
            assert ended is not None
            if ended.code == -signal.SIGKILL:
                return goes_on(shared, folder / str(seconds), ended.shown, "random moment")
        seconds *= 0.7  # it had ended before
    return Outcome("harness", 0.0, "", "never killed")


def at_change(shared: Path, number: int, folder: Path) -> Outcome:
    copy(shared / "subject", folder)
    ended = command(RUN, folder, Points(number).install)
    if ended.code != -signal.SIGKILL:
        return Outcome("harness", 0.0, "", f"not killed: exit {ended.code}: {ended.last_line}")
    return goes_on(shared, folder, ended.shown, "write, fsync, rename")


def at_byte(shared: Path, size: int, folder: Path) -> Outcome:
    copy(shared / "subject", folder)
    ended = command(RUN, folder, partial(die_at_byte, size))
    if ended.code != -signal.SIGXFSZ:
        return Outcome("harness", 0.0, "", f"not killed: exit {ended.code}: {ended.last_line}")
    return goes_on(shared, folder, ended.shown, "within a write")


def in_a_fresh_process(shared: Path, seconds: float, folder: Path) -> Outcome:
    """As users have it: two processes from the shell, and nothing in common but the folder."""
    for attempt in range(4):
        place = folder / str(attempt)  # of its own: a run that had ended before the kill is no part of the next try
        environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
        copy(shared / "subject", place)
        with (place / ".shown").open("wb") as log:
            arguments = [sys.executable, "-m", "fastft", *RUN]
            with subprocess.Popen(arguments, cwd=place, env=environment, stdout=log, stderr=log) as process:
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
            if process.returncode == -signal.SIGKILL:
                shown = (place / ".shown").read_text(encoding="utf-8")
                return goes_on(shared, place, shown, "process from the shell", environment)
        seconds *= 0.7
    return Outcome("harness", 0.0, "", "never killed")


def goes_on(shared: Path, folder: Path, shown: str, how: str, environment: dict[str, str] | None = None) -> Outcome:
    """The same command again, to its end; with --resume where the kill came behind it, or a new run would begin."""
    command_line = (*RUN, "--resume") if finished_run(folder) else RUN
    group = f"{part(shown)} / {how}"
    if environment is None:
        return compare(folder, command(command_line, folder), shared / "facts.json", group)
    arguments = [sys.executable, "-m", "fastft", *command_line]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    from torture.process import Ended

    return compare(folder, Ended(done.returncode, done.stdout + done.stderr, 0, 0), shared / "facts.json", group)
