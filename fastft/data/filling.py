"""Fill row sets from sources: read, parse, render, tokenize, check and write each row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft.data.columns import detect_or_fail, rename
from fastft.data.contract import check_encoded
from fastft.data.encode import Encoded, Made, encode_batches
from fastft.data.example import Example
from fastft.data.formats import rules_of, to_example
from fastft.data.labels import Labeller, inspect_labelled, to_labelled
from fastft.data.near import NearRepeats
from fastft.data.overlong import fit
from fastft.data.render import Renderer
from fastft.data.rows import Overlong, RowSet, RowWriter, Split, digest
from fastft.data.sources import Source, copies
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import ClassificationSection, DataSection

# Measured: batches of 1,000 are a quarter faster in the tokenizer than one call for all, in flat memory.
BATCH_ROWS = 1000
# The tokenizer needs some 100 bytes a token while it works, so that long rows need smaller batches. Measured: half a
# million characters are as fast as two million; an eighth of a million are a fifth slower.
BATCH_CHARACTERS = 2**19
LISTED_PROBLEMS = 20
OnRows = Callable[[int], None]


@dataclass
class Target:
    """A row set that is being filled: its account and the writer of its rows. `held_out` rows keep their examples."""

    account: RowSet
    writer: RowWriter
    held_out: bool = False


# An example, its target, and how often it is written there.
_Parsed = tuple[Example, Target, int]


@dataclass
class Filler:
    """Reads sources into row sets, in batches."""

    data: DataSection
    renderer: Renderer
    max_seq_length: int
    seed: int
    recipe_dir: Path
    progress: OnRows | None
    own: ClassificationSection | None = None
    labeller: Labeller | None = None
    seen: int = 0
    first_of: dict[bytes, Where] = field(default_factory=dict)

    def fill(
        self, source: Source, target: Target, other: Target | None = None, chosen: frozenset[int] = frozenset()
    ) -> None:
        """Read `source` into `target`, and the rows whose number over all sources is in `chosen` into `other`."""
        data_format = format_of(source, self.data, self.recipe_dir, self.own)
        before = target.writer.rows
        # The batches that `encode_batches`, which reads one batch ahead, has not returned yet.
        waiting: deque[tuple[list[_Parsed], int]] = deque()

        def read() -> Iterator[list[Example]]:
            for batch in self._batches(source, data_format, target, other, chosen):
                waiting.append((batch, self.seen))
                yield [example for example, _, _ in batch]

        encoded = (
            encode_batches(read(), self.renderer) if self.labeller is None else self.labeller.encode_batches(read())
        )
        for made in encoded:
            parsed, seen = waiting.popleft()
            for (_, receiver, times), rows in zip(parsed, made, strict=True):
                self._keep(rows, receiver, times)
            if self.progress is not None:
                self.progress(seen)
        target.account.by_source[source.name] = target.writer.rows - before

    def _batches(
        self, source: Source, data_format: str, target: Target, other: Target | None, chosen: frozenset[int]
    ) -> Iterator[list[_Parsed]]:
        """The valid rows, in batches of the right size for the tokenizer; rejects the others."""
        repeats = copies(source, self.recipe_dir, self.seed)
        batch: list[_Parsed] = []
        rows = characters = 0
        for where, row in source.rows(self.recipe_dir):
            receiver = other if other is not None and self.seen in chosen else target
            self.seen += 1
            rows += 1
            times = next(repeats)
            if times:
                receiver.account.read += 1
                try:
                    example = parse_row(row, where, data_format, self.data, self.own)
                except DataError as error:
                    receiver.account.rejected.append(error.problems[0])
                else:
                    # The weight of a source repeats training rows, not held-out rows.
                    batch.append((example, receiver, times if receiver is target else 1))
                    characters += example.characters
            if rows == BATCH_ROWS or characters >= BATCH_CHARACTERS:
                yield batch
                batch, rows, characters = [], 0, 0
        if rows:
            yield batch

    def _keep(self, made: Made, target: Target, times: int) -> None:
        account = target.account
        if isinstance(made, Problem):
            account.rejected.append(made)
            return
        account.unused.update(made[0][0].example.unused)
        for name in set().union(*(part.dropped for part, _ in made)):
            account.dropped[name] = account.dropped.get(name, 0) + 1
        if len(made) > 1:
            lengths = [len(encoded.input_ids) for _, encoded in made]
            account.split.append(Split(made[0][1].where, len(made), sum(lengths) - max(lengths)))
        kept = [(part.example, row) for part, encoded in made for row in self._fitting(part.example, encoded, account)]
        if not target.held_out and kept:
            kept = self._without_repeats(made[-1][0].example, kept, account)
        for example, row in kept:
            for _ in range(times):
                target.writer.append(row, example if target.held_out else None)

    def _fitting(self, example: Example, encoded: Encoded, account: RowSet) -> list[Encoded]:
        """The valid rows of at most max_seq_length tokens that `encoded` becomes."""
        rows = [encoded]
        if self.labeller is not None:
            return self._fitting_text(encoded, self.labeller, account)
        longest = max(len(text.input_ids) for text in encoded.texts)
        if encoded.rejected_from is not None and longest > self.max_seq_length:
            account.overlong.append(Overlong(encoded.where, longest))
            return []  # a shortened answer is not the one that was judged
        if longest > self.max_seq_length:
            rows = fit(example, encoded, self.renderer, self.max_seq_length, self.data.overlong)
            kept_tokens = sum(len(row.input_ids) for row in rows)
            account.overlong.append(Overlong(encoded.where, len(encoded.input_ids), kept_tokens))
        plain = example.text is not None
        broken = [
            next((wrong for text in row.texts if (wrong := check_encoded(text, self.renderer, plain_text=plain))), None)
            for row in rows
        ]
        account.rejected += [problem for problem in broken if problem is not None]
        return [row for row, problem in zip(rows, broken, strict=True) if problem is None]

    def _fitting_text(self, row: Encoded, labeller: Labeller, account: RowSet) -> list[Encoded]:
        """The same of a labelled text: the row cut to max_seq_length, or none."""
        length = len(row.input_ids)
        if length <= self.max_seq_length:
            return [row]
        rows = [labeller.cut(row, self.max_seq_length)] if self.data.overlong == "truncate" else []
        account.overlong.append(Overlong(row.where, length, self.max_seq_length * len(rows)))
        return rows

    def _without_repeats(
        self, conversation: Example, kept: list[tuple[Example, Encoded]], account: RowSet
    ) -> list[tuple[Example, Encoded]]:
        """The rows of one training conversation that data.deduplicate keeps; "near" compares whole conversations."""
        if self.data.deduplicate == "exact":
            return [one for one in kept if not self._is_repeated(one[1], account)]
        if self.data.deduplicate == "near":
            sketch = self.near.sketch(conversation)
            first = self.near.first_like(sketch)
            if first is not None:
                account.repeated.append((conversation.where, first))
                return []
            self.near.add(sketch, conversation.where)
        return kept

    def _is_repeated(self, row: Encoded, account: RowSet) -> bool:
        first = self.first_of.setdefault(digest(row.input_ids), row.where)
        if first is not row.where:
            account.repeated.append((row.where, first))
        return first is not row.where

    @cached_property
    def near(self) -> NearRepeats:
        """The index of near repeats; made on first use, because its package is optional."""
        return NearRepeats()


def format_of(source: Source, data: DataSection, recipe_dir: Path, own: ClassificationSection | None = None) -> str:
    """The format of a source, from the first row that can be read.

    Raises:
        DataError: none of the first rows can be read, or their columns fit no format.
        MachineError: a Hub dataset cannot be reached.
    """
    broken: list[Problem] = []
    for where, row in islice(source.rows(recipe_dir), BATCH_ROWS):
        if not isinstance(row, Problem):
            renamed = rename(row, data.columns, where)
            if own is None:
                return detect_or_fail(renamed, where, data.format)
            try:
                return inspect_labelled(renamed, where, data, own)
            except DataError as error:
                row = error.problems[0]
        broken.append(row)
    raise DataError(broken[:LISTED_PROBLEMS])


def parse_row(
    row: dict[str, Any] | Problem,
    where: Where,
    data_format: str,
    data: DataSection,
    own: ClassificationSection | None = None,
) -> Example:
    """The example in a row that was read; with `own`, a labelled text.

    Raises:
        DataError: the row cannot be read, or is not of this format.
    """
    if isinstance(row, Problem):
        raise DataError(row)
    renamed = rename(row, data.columns, where)
    if own is not None:
        return to_labelled(renamed, where, own, data.ignore)
    return to_example(renamed, data_format, where, rules_of(data))
