"""One fault, what came of it, and the file that keeps the outcomes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GOOD = ("exact", "refused", "said", "harmless")
BAD = ("silent", "traceback", "slow", "not exact", "leak", "hang", "wrong answer", "harness")


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    `verdict`: one of GOOD or BAD. `seconds`: of the answer, in CPU time; for signals on the clock, to the end of the
    process. `group`: a part of the kind that the report counts apart. `detail`: what was seen.
    """

    verdict: str
    seconds: float = 0.0
    group: str = ""
    detail: str = ""

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


@dataclass(frozen=True)
class Case:
    """A fault with its name, unique in its kind; `run` gets an empty folder."""

    kind: str
    name: str
    run: Callable[[Path], Outcome]


@dataclass(frozen=True)
class Line:
    """An outcome in the file."""

    kind: str
    name: str
    seed: int
    verdict: str
    seconds: float
    group: str
    detail: str


class Ledger:
    """Outcomes as JSON lines: appended at once, so that a torture that was stopped goes on where it was."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self._seed = path, seed

    def lines(self) -> list[Line]:
        """The newest outcome of each case of this seed."""
        texts = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        lines = [Line(**json.loads(text)) for text in texts]
        return list({(line.kind, line.name): line for line in lines if line.seed == self._seed}.values())

    def add(self, case: Case, outcome: Outcome) -> None:
        line = Line(case.kind, case.name, self._seed, **dataclasses.asdict(outcome))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(line), ensure_ascii=False) + "\n")

    def retain(self, kind: str, names: set[str]) -> None:
        """Drop the outcomes of cases of `kind` that are no more, such as kills at other changes of the disk."""
        kept = [line for line in self.lines() if line.kind != kind or line.name in names]
        self._rewrite(kept)

    def forget(self, kinds: tuple[str, ...], *, only_bad: bool) -> None:
        """Drop the outcomes of `kinds`, or only what went wrong, and every older outcome of a case."""
        kept = [line for line in self.lines() if line.kind not in kinds or (only_bad and line.verdict in GOOD)]
        self._rewrite(kept)

    def _rewrite(self, kept: list[Line]) -> None:
        self.path.write_text(
            "".join(json.dumps(dataclasses.asdict(line), ensure_ascii=False) + "\n" for line in kept), encoding="utf-8"
        )
