"""The search of `fastft tune`: which set-ups are tried, in which order, and the process that tries them."""

from __future__ import annotations

import dataclasses
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Self

from fastft.errors import MachineError, Problem, Where
from fastft.planning.chooser import Candidate
from fastft.planning.fitting import TARGET_SHARE
from fastft.planning.learning_rates import RangePoint
from fastft.planning.probes import Probe, SetUp
from fastft.stages.probing import READY, Order, Question

# A set-up whose first figure is so far below the best one is not followed: a larger batch gains less.
HOPELESS = 0.75
# Importing Unsloth and loading a large model; and the steps of one probe, which are a few seconds where all is well.
START_SECONDS, PROBE_SECONDS = 600.0, 600.0


def search(
    candidates: Sequence[Candidate], ask: Callable[[SetUp], Probe], may_go_on: Callable[[], bool]
) -> list[Probe]:
    """Probes of the most promising candidates, in the order in which they were made.

    Set-ups that differ in the micro-batch alone are one row. Of each row, the one with the fastest forecast first, the
    micro-batch that the forecast likes best is tried, then twice as many examples until they are slower or do not fit;
    where the first larger one is no gain, half as many, as long as that is faster.
    """
    probes: list[Probe] = []
    for row in _rows(candidates):
        start = row.index(next((each for each in _fastest_first(row) if each.fits), row[0]))
        _follow(row, start, probes, ask, may_go_on)
        if not may_go_on():
            break
    return probes


def _rows(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    rows: dict[SetUp, list[Candidate]] = {}
    for each in candidates:
        rows.setdefault(dataclasses.replace(each.set_up, per_device_train_batch_size=0), []).append(each)
    ordered = [sorted(row, key=lambda each: each.set_up.per_device_train_batch_size) for row in rows.values()]
    return sorted(ordered, key=lambda row: -_fastest_first(row)[0].tokens_per_second)


def _fastest_first(row: Iterable[Candidate]) -> list[Candidate]:
    return sorted(row, key=lambda each: -each.tokens_per_second)


def _follow(
    row: Sequence[Candidate],
    start: int,
    probes: list[Probe],
    ask: Callable[[SetUp], Probe],
    may_go_on: Callable[[], bool],
) -> None:
    """Try `row` from the candidate `start` on, upwards and then downwards."""

    def tried(place: int) -> float:
        """Tokens a second; 0 where it failed or needs more than nine tenths of memory."""
        probes.append(ask(row[place].set_up))
        return rate_of(probes[-1])

    best_of_all = max(map(rate_of, probes), default=0.0)
    best = tried(start)
    if 0 < best < HOPELESS * best_of_all:
        return
    place, grew = start, False
    while best and may_go_on() and (larger := _beside(row, place, 2)) is not None:
        rate = tried(larger)
        if rate <= best:
            break
        place, best, grew = larger, rate, True
    place = start
    while not grew and may_go_on() and (smaller := _beside(row, place, 0.5)) is not None:
        rate = tried(smaller)
        if best and rate <= best:
            break
        place, best = smaller, rate


def _beside(row: Sequence[Candidate], place: int, factor: float) -> int | None:
    """The place of the nearest micro-batch that is at least twice, or at most half as large."""
    wanted = row[place].set_up.per_device_train_batch_size * factor
    batches = [each.set_up.per_device_train_batch_size for each in row]
    if factor > 1:
        return next((at for at, batch in enumerate(batches) if batch >= wanted), None)
    return next((at for at in range(len(batches) - 1, -1, -1) if batches[at] <= wanted), None)


def rate_of(probe: Probe) -> float:
    """Tokens a second, 0 where there is no figure or memory is filled beyond nine tenths."""
    if probe.tokens_per_second is None or probe.peak_bytes is None:
        return 0.0
    return probe.tokens_per_second if probe.peak_bytes <= TARGET_SHARE * probe.limit_bytes else 0.0


class Prober:
    """The process that takes the steps, started anew after one that died. Use as a context manager."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()

    def ask(self, question: Question, show: Callable[[RangePoint], None] = lambda _: None) -> Probe:
        """The probe of a set-up; one that says so where the process died of it. `show` takes each step of a range test.

        Raises:
            MachineError: the process does not start.
        """
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None  # noqa: S101 -- just started
        assert process.stdin is not None  # noqa: S101 -- a pipe
        nothing = Probe(question.set_up, self._order.limit_bytes)
        try:
            print(json.dumps(dataclasses.asdict(question)), file=process.stdin, flush=True)
            while answer := self._answers.get(timeout=PROBE_SECONDS):
                values = json.loads(answer)
                if "set_up" not in values:
                    show(RangePoint(**values))
                    continue
                probe = Probe(**{**values, "set_up": SetUp(**values["set_up"])})
                if probe.wrong:  # libraries are not built to go on after that
                    self._end()
                return probe
        except (OSError, queue.Empty):
            pass
        code = self._end()
        if code == -9:  # the kernel's answer to too little memory
            return dataclasses.replace(nothing, out_of_memory=True, wrong="killed: memory ran out")
        wrong = f"took more than {PROBE_SECONDS:.0f} s" if code is None else f"ended with exit code {code}"
        return dataclasses.replace(nothing, wrong=f"the process {wrong}; see {self._order.log}")

    def _start(self) -> None:
        command = [sys.executable, "-m", "fastft.stages.probing"]
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdin is not None  # noqa: S101 -- a pipe
        threading.Thread(target=_listen, args=(self._process.stdout, self._answers), daemon=True).start()
        try:
            print(json.dumps(dataclasses.asdict(self._order)), file=self._process.stdin, flush=True)
            answer = self._answers.get(timeout=START_SECONDS)
        except (OSError, queue.Empty):
            answer = ""
        if answer != READY:
            code = self._end()
            wrong = f"the process that measures did not start (exit code {code})"
            raise MachineError(Problem(Where(self._order.log), "", wrong, "see this log"))

    def _end(self) -> int | None:
        """End the process; its exit code, None where it still ran."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            code: int | None = process.wait(timeout=1.0) if self._answers.qsize() else process.poll()
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                _close(stream)
        return code


def _close(stream: IO[str]) -> None:
    try:
        stream.close()
    except OSError:  # its reader died
        return


def _listen(stream: IO[str] | None, answers: queue.Queue[str]) -> None:
    """Hand on each line, and an empty one at the end."""
    for line in stream or ():
        answers.put(line.strip())
    answers.put("")
