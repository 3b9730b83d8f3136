"""How the last attempt at a run ended, and what state the run is in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastft.files.records import read_record, write_record
from fastft.runs.directory import RunDir

State = Literal["finished", "running", "stopped", "failed"]


@dataclass(frozen=True)
class Ended:
    """ended.json of an attempt that did not finish: whether it was asked to stop, and its message."""

    FILE: ClassVar[str] = "ended.json"
    SCHEMA: ClassVar[int] = 1

    stopped: bool
    why: str


def keep_end(attempt: Path, ended: Ended) -> None:
    """Write ended.json into the folder of an attempt."""
    write_record(attempt / Ended.FILE, ended)


@dataclass(frozen=True)
class Began:
    """began.json of an attempt: the optimizer step of the checkpoint that it continued, 0 for none."""

    FILE: ClassVar[str] = "began.json"
    SCHEMA: ClassVar[int] = 1

    step: int


def attempts_of(run: RunDir) -> list[Path]:
    """The folders of the attempts at a run, in their order."""
    return sorted((path for path in run.attempts.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def keep_begin(run: RunDir, step: int) -> None:
    """Write began.json into the folder of the newest attempt, if it has one."""
    for attempt in attempts_of(run)[-1:]:
        write_record(attempt / Began.FILE, Began(step))


def resumes_of(run: RunDir) -> list[int]:
    """The optimizer steps at which later attempts continued the run, in their order.

    Raises:
        MachineError: began.json is damaged.
    """
    found = (read_record(attempt / Began.FILE, Began) for attempt in attempts_of(run)[1:])
    return [began.step for began in found if began is not None and began.step > 0]


def state_of(run: RunDir) -> tuple[State, str]:
    """(state, the message of the last attempt where it did not finish).

    Raises:
        MachineError: ended.json is damaged.
    """
    if run.is_finished:
        return "finished", ""
    attempts = attempts_of(run)
    last = attempts[-1] if attempts else None
    ended = None if last is None else read_record(last / Ended.FILE, Ended)
    if ended is not None:
        return "stopped" if ended.stopped else "failed", ended.why
    if _is_locked(run):
        return "running", ""
    return "failed", "the process ended without a word: it was killed, or the machine went down"


def _is_locked(run: RunDir) -> bool:
    """Whether a process is running in the folder; never on Windows, which has no such locks and runs nothing."""
    try:
        import fcntl

        with (run.path / "lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, ImportError):
        return False
    except OSError:
        return True
    return False
