"""Every error that fastft raises on purpose, with its place and problem.

    FastftError            exit 1
    ├── RecipeError        exit 2   the recipe or an override is wrong
    ├── UsageError         exit 2   the arguments of a command are wrong
    ├── DataError          exit 3   the training or evaluation data cannot be used
    ├── MachineError       exit 4   this machine lacks something: a package, a GPU, memory, disk, network, a file
    │   └── OutOfMemoryError   exit 4   training does not fit into memory; a smaller batch may fit
    ├── TrainingError      exit 1   the run started and failed
    ├── ExportError        exit 5   exported weights do not match the trained model
    ├── MeasureError       exit 6   the run finished, and a condition of eval.fail_if is met
    └── Interrupted        exit 75  the run was asked to stop; the same command continues it

Each has one or more `Problem`s. `cli.main` prints them and exits with the code; any other exception is a bug and keeps
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Where:
    """A place that a user can open: a file and its 1-based line, or a name such as `--set`."""

    path: str
    line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to write instead: `<where>: <field>: <wrong> (got <got>); <instead>`.

    Always one line: `str` escapes what a terminal would act on (line breaks, escape sequences). Without secrets.
    """

    where: Where
    field: str
    wrong: str
    instead: str
    got: str | None = None

    # The imports are late because `import fastft` loads this module alone.
    def __str__(self) -> str:
        from fastft.console import redact, redact_value

        place = f"{redact(str(self.where))}: {self.field}" if self.field else redact(str(self.where))
        got = "" if self.got is None else f" (got {redact_value(self.field, self.got)})"
        text = f"{place}: {redact(self.wrong)}{got}; {redact(self.instead)}"
        return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)

    def as_json(self) -> dict[str, object]:
        """The parts under their names in `--json`, without secrets."""
        from fastft.console import redact, redact_value

        return {
            "file": redact(self.where.path),
            "line": self.where.line,
            "field": self.field,
            "wrong": redact(self.wrong),
            "got": redact_value(self.field, self.got),
            "instead": redact(self.instead),
        }


class FastftError(Exception):
    """A failure that fastft explains: one or more problems, and an exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(FastftError):
    """The recipe or an override is wrong."""

    exit_code = 2


class UsageError(FastftError):
    """The arguments of a command are wrong."""

    exit_code = 2


class DataError(FastftError):
    """The training or evaluation data cannot be used."""

    exit_code = 3


class MachineError(FastftError):
    """This machine lacks something: a package, a GPU, memory, disk, network or a model file."""

    exit_code = 4


class OutOfMemoryError(MachineError):
    """Training does not fit into the memory of the device; a smaller batch may fit."""


class TrainingError(FastftError):
    """The run started and failed."""


class ExportError(FastftError):
    """Exported weights do not match the trained model; the file is kept, marked FAILED."""

    exit_code = 5


class MeasureError(FastftError):
    """The run finished, and what was measured meets a condition of `[eval] fail_if`, or is not what it repeats."""

    exit_code = 6


class Interrupted(FastftError):  # noqa: N818  a request, not a fault
    """The run was asked to stop; the same command continues it. 75 is EX_TEMPFAIL of sysexits.h: try again."""

    exit_code = 75


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to `name`, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
