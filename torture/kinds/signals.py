"""The four signals that ask a run to stop, at random moments: exit code 75 within seconds, and the rest exact."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

from torture.case import Case, Outcome
from torture.kinds import kills
from torture.process import Child, command
from torture.subject import RUN, compare, copy

KIND, COUNT = "signals", 200
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SOON_SECONDS = 10.0
prepare = kills.prepare


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    chance = random.Random(f"{seed} {KIND}")  # noqa: S311  not for secrets
    seconds = float((shared / "seconds").read_text())
    return [
        Case(
            KIND,
            f"{SIGNALS[number % 4].name} {number}",
            partial(at_moment, shared, SIGNALS[number % 4], chance.uniform(0.0, seconds)),
        )
        for number in range(COUNT)
    ]


def at_moment(shared: Path, number: signal.Signals, seconds: float, folder: Path) -> Outcome:
    for attempt in range(6):
        place = folder / str(attempt)
        copy(shared / "subject", place)
        child = Child(RUN, place)
        end = time.monotonic() + seconds
        if child.wait(lambda end=end: time.monotonic() >= end) is None:  # type: ignore[misc]
            group = f"{kills.part(child.shown)} / {number.name}"
            sent = time.monotonic()
            child.send(number)
            ended = child.wait()
            assert ended is not None
            took = time.monotonic() - sent
            if ended.code == 0:  # the signal came when all was done
                seconds *= 0.7
                continue
            if not child.shown and not (place / "runs").exists() and ended.code in (130, -number):
                # Python, or fastft before its first line: ended as any program, and nothing was begun.
                rest = compare(
                    place, command(RUN, place), shared / "facts.json", f"before the run / {number.name}", took
                )
                return Outcome("harmless" if rest.is_good else rest.verdict, took, rest.group, f"exit {ended.code}")
            if ended.is_traceback:
                return Outcome("traceback", took, group, ended.last_line)
            if ended.code != 75:
                return Outcome("wrong answer", took, group, f"exit {ended.code}: {ended.last_line}")
            if took > SOON_SECONDS:
                return Outcome("slow", took, group)
            return compare(place, command(RUN, place), shared / "facts.json", group, took)
        seconds *= 0.7
    return Outcome("harness", 0.0, "", "always finished before")
