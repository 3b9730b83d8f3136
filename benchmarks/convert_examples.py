"""How much of public files of other tools `fastft convert` finds a place for.

`python -m benchmarks.convert_examples KIND=FOLDER...` reads the files below each folder
of a checkout, converts each as --partial does, and writes convert_examples.json beside this file: counts, no text.
`KIND` is the name of the row, such as "Axolotl YAML".
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from fastft.errors import FastftError
from fastft.migration.convert import Converted, convert, read_source

SUFFIXES = (".yaml", ".yml", ".ipynb", ".py", ".sh")
OUT = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Row:
    """What became of the files of one kind: files, and their arguments. `most_lost`: the names that are lost most."""

    kind: str
    commit: str
    refused: int
    converted: int
    without_loss: int
    unsound: int
    keys: int
    need_none: int
    lost: int
    most_lost: dict[str, int]

    @property
    def share(self) -> float:
        """The share of arguments that have a key or need none."""
        return 1 - self.lost / max(1, self.keys + self.need_none + self.lost)


def measure(kind: str, folder: Path) -> Row:
    """Convert every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    made: list[Converted] = []
    for path in files:
        try:
            made.append(convert(read_source(str(path), path.read_text(encoding="utf-8")), path.parent))
        except FastftError as error:
            print(f"refused: {error.problems[0]}", file=sys.stderr)
    placed = [entry for converted in made for entry in converted.placed]
    keys, lost = sum(bool(entry.fields) for entry in placed), [entry for entry in placed if entry.lost]
    return Row(
        kind,
        _commit(folder),
        refused=len(files) - len(made),
        converted=len(made),
        without_loss=sum(not converted.lost for converted in made),
        unsound=sum(not converted.sound for converted in made),
        keys=keys,
        need_none=len(placed) - keys - len(lost),
        lost=len(lost),
        most_lost=dict(Counter(entry.argument.name for entry in lost).most_common(8)),
    )


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = (
        "kind",
        "refused",
        "converted",
        "arguments",
        "have a key",
        "need none",
        "lost",
        "placed",
        "files without loss",
    )
    lines = [head, tuple("---" for _ in head)]
    for row in rows:
        total = row.keys + row.need_none + row.lost
        share = f"{row.share:.1%}".replace("%", " %").replace("100.0", "100")
        counts = (row.refused, row.converted, f"{total:,}", f"{row.keys:,}", row.need_none, row.lost, share)
        lines.append((row.kind, *map(str, counts), str(row.without_loss)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- |", "|---|").replace(" --- |", "---|")


def main() -> None:
    """Measure what the command line names."""
    rows = [measure(kind, Path(folder)) for kind, folder in (text.split("=", 1) for text in sys.argv[1:])]
    OUT.write_text(json.dumps([{**asdict(row), "share": round(row.share, 4)} for row in rows], indent=1) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
