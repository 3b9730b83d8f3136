"""Find rows that nearly repeat an earlier one, with MinHash and banded look-up (datasketch).

Two rows are nearly the same when at least `NEAR` of all their runs of three words are in both (Jaccard similarity). The
estimate uses fixed permutations, so that the same rows give the same answer each time. The index takes some 5 KiB a
row.
"""

from __future__ import annotations

import re
from typing import Any

from fastft.data.example import Example
from fastft.errors import MachineError, Problem, Where

NEAR = 0.8
PERMUTATIONS = 128
SEED = 1
# A word is a run of letters and digits; each Chinese or Japanese character is a word, as those have no spaces.
_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_CHARACTER}]|[^\W{_CHARACTER}]+")


class NearRepeats:
    """An index of rows that finds one that is nearly the same.

    Raises:
        MachineError: the package datasketch is not installed.
    """

    def __init__(self) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            wrong = "near repeats need the package datasketch"
            raise MachineError(Problem(Where("this machine"), "", wrong, 'pip install "fastft[hygiene]"')) from error
        self._empty = MinHash(num_perm=PERMUTATIONS, seed=SEED)
        self._index = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
        self._rows: list[tuple[Any, Where]] = []

    def sketch(self, example: Example) -> Any:
        """The MinHash of the words of `example`, without its system turns, which many rows share."""
        contents = [message.said for message in example.messages if message.role != "system"]
        words = WORD.findall((example.text or "\n".join(contents)).lower())
        triples = {" ".join(words[start : start + 3]) for start in range(max(1, len(words) - 2))}
        sketch = self._empty.copy()
        sketch.update_batch([triple.encode("utf-8", "replace") for triple in triples])
        return sketch

    def first_like(self, sketch: Any) -> Where | None:
        """The first indexed row that is nearly the same, or None."""
        candidates: list[int] = sorted(self._index.query(sketch))
        for number in candidates:
            # The bands also return pairs that are somewhat less similar.
            if sketch.jaccard(self._rows[number][0]) >= NEAR:
                return self._rows[number][1]
        return None

    def add(self, sketch: Any, where: Where) -> None:
        """Add a row, to compare later rows with it."""
        self._index.insert(len(self._rows), sketch, check_duplication=False)
        self._rows.append((sketch, where))
