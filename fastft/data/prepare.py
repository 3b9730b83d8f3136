"""From the recipe's `[data]` to the rows that are trained: read, understood, rendered, counted, nothing lost unseen."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, overload

from fastft.data.example import Example
from fastft.data.formats import detect_or_fail, to_example
from fastft.data.readers import Row, count_rows, find_files, fingerprint, is_hub_id, read_rows
from fastft.data.render import NO_LOSS, Encoded, Renderer, encode_batch, make_renderer
from fastft.data.template import ChatTemplate, load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import DataSection

# Measured: batches of 1,000 through the tokenizer run a quarter faster than one call for all, in flat memory.
BATCH_ROWS = 1000
MAX_REJECT_FRACTION = 0.01
LISTED_PROBLEMS = 20
Progress = Callable[[int], None]


class Rows(Sequence[Encoded]):
    """Encoded examples, stored flat: 8 bytes a token instead of some 70 as Python lists."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._labels = array("i")
        self._ends = array("q", [0])
        self._where: list[Where] = []

    def append(self, row: Encoded) -> None:
        self._ids.extend(row.input_ids)
        self._labels.extend(row.labels)
        self._ends.append(len(self._ids))
        self._where.append(row.where)

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self._ends[position], self._ends[position + 1]
        return Encoded(self._ids[start:end].tolist(), self._labels[start:end].tolist(), self._where[position])

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row."""
        return [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]

    @property
    def tokens(self) -> int:
        return len(self._ids)

    @property
    def trained_tokens(self) -> int:
        return len(self._labels) - self._labels.count(NO_LOSS)


@dataclass(frozen=True)
class Overlong:
    """A row that is longer than max_seq_length and is not trained."""

    where: Where
    tokens: int


@dataclass
class RowSet:
    """The training or the evaluation rows, and what became of every row that was read."""

    rows: Rows = field(default_factory=Rows)
    read: int = 0
    overlong: list[Overlong] = field(default_factory=list)
    rejected: list[Problem] = field(default_factory=list)
    # Kept for evaluation rows only, in the order of `rows`: what the model is asked, and the right answer.
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs to know of the data."""

    train: RowSet
    eval: RowSet | None
    format: str
    renderer: Renderer
    train_sha256: str | None
    eval_sha256: str | None

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template in use, None for plain text."""
        return self.renderer.template


def prepare(
    data: DataSection,
    tokenizer: TokenizerFacts,
    *,
    max_seq_length: int,
    seed: int,
    recipe_dir: Path,
    locate: Callable[[str], Where],
    progress: Progress | None = None,
) -> Prepared:
    """The rows of `[data]`, rendered and tokenized; `locate` tells where the recipe sets a key.

    `progress` is called with the number of rows read so far.

    Raises:
        DataError: a source cannot be read, more than 1 % of its rows are broken, or no row is left.
        RecipeError: the chat template is unknown or does not fit the tokenizer.
        MachineError: a Hub dataset cannot be reached.
    """
    where = locate("data.chat_template")
    found = _format_of(data.train, data.format, recipe_dir, "data.train")
    template = None
    if found != "text":
        template = load_template(data.chat_template, recipe_dir, tokenizer.chat_template, where)
    renderer = make_renderer(template, tokenizer, data.train_on, where)
    train, held_out = RowSet(), None
    chosen = _held_out_rows(data, seed, recipe_dir, locate)
    if chosen is not None:
        held_out = RowSet()
    _fill(data.train, found, renderer, max_seq_length, recipe_dir, "data.train", train, held_out, chosen, progress)
    if data.eval is not None:
        held_out = RowSet()
        eval_format = _format_of(data.eval, data.format, recipe_dir, "data.eval")
        if (eval_format == "text") != (found == "text"):
            wrong = f"the evaluation rows are {eval_format}, the training rows {found}"
            raise DataError(Problem(Where(data.eval), "data.eval", wrong, "give rows of one kind"))
        _fill(
            data.eval,
            eval_format,
            renderer,
            max_seq_length,
            recipe_dir,
            "data.eval",
            held_out,
            held_out,
            None,
            progress,
        )
    _refuse_if_broken(train, data.train, "data.train", max_seq_length)
    if held_out is not None:
        source, name = (data.eval, "data.eval") if data.eval else (data.train, "data.eval_fraction")
        _refuse_if_broken(held_out, source, name, max_seq_length)
    return Prepared(
        train=train,
        eval=held_out,
        format=found,
        renderer=renderer,
        train_sha256=_sha256(data.train, recipe_dir),
        eval_sha256=_sha256(data.eval, recipe_dir) if data.eval else None,
    )


def _format_of(source: str, chosen: str, recipe_dir: Path, field_name: str) -> str:
    """The format of the first row that can be read."""
    broken: list[Problem] = []
    for where, row in islice(read_rows(source, recipe_dir, field_name), BATCH_ROWS):
        if not isinstance(row, Problem):
            return detect_or_fail(row, where, chosen)
        broken.append(row)
    raise DataError(broken[:LISTED_PROBLEMS])


def _held_out_rows(
    data: DataSection, seed: int, recipe_dir: Path, locate: Callable[[str], Where]
) -> frozenset[int] | None:
    """The 0-based numbers of the training rows that `eval_fraction` holds out, None without it."""
    if data.eval_fraction is None:
        return None
    total = count_rows(data.train, recipe_dir)
    if total is None:
        total = sum(1 for _ in read_rows(data.train, recipe_dir))
    count = max(1, round(total * data.eval_fraction))
    if count >= total:
        wrong = f"{data.eval_fraction} of {total} rows leaves nothing to train on"
        raise DataError(Problem(locate("data.eval_fraction"), "data.eval_fraction", wrong, "give more rows"))
    # Not for secrets: the same seed must hold out the same rows.
    return frozenset(random.Random(seed).sample(range(total), count))  # noqa: S311


def _fill(
    source: str,
    data_format: str,
    renderer: Renderer,
    max_seq_length: int,
    recipe_dir: Path,
    field_name: str,
    kept: RowSet,
    held_out: RowSet | None,
    chosen: frozenset[int] | None,
    progress: Progress | None,
) -> None:
    """Read `source` into `kept`, and the rows numbered in `chosen` into `held_out`."""
    seen = 0
    for batch in _batches(read_rows(source, recipe_dir, field_name)):
        waiting: list[tuple[Example, RowSet]] = []
        for number, (where, row) in enumerate(batch, start=seen):
            target = held_out if chosen is not None and held_out is not None and number in chosen else kept
            target.read += 1
            if isinstance(row, Problem):
                target.rejected.append(row)
                continue
            try:
                waiting.append((to_example(row, data_format, where), target))
            except DataError as error:
                target.rejected.append(error.problems[0])
        encoded = encode_batch([example for example, _ in waiting], renderer)
        for (example, target), made in zip(waiting, encoded, strict=True):
            if isinstance(made, Problem):
                target.rejected.append(made)
            elif len(made.input_ids) > max_seq_length:
                target.overlong.append(Overlong(made.where, len(made.input_ids)))
            else:
                target.rows.append(made)
                if target is held_out:
                    target.examples.append(example)
        seen += len(batch)
        if progress is not None:
            progress(seen)


def _batches(items: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(items, BATCH_ROWS)):
        yield batch


def _refuse_if_broken(rows: RowSet, source: str, field_name: str, max_seq_length: int) -> None:
    broken = len(rows.rejected)
    if broken > MAX_REJECT_FRACTION * rows.read:
        problems = rows.rejected[:LISTED_PROBLEMS]
        wrong = f"{broken} of {rows.read} rows are broken, more than {MAX_REJECT_FRACTION:.0%}"
        listed = f"; the first {LISTED_PROBLEMS} are listed above" if broken > LISTED_PROBLEMS else ""
        raise DataError([*problems, Problem(Where(source), field_name, wrong, f"correct or remove them{listed}")])
    if not rows.rows:
        wrong = (
            f"no row is left of {rows.read}: {len(rows.overlong)} longer than {max_seq_length} tokens, {broken} broken"
        )
        longest = max((row.tokens for row in rows.overlong), default=0)
        instead = (
            f"raise model.max_seq_length (the longest row has {longest} tokens)" if longest else "correct the rows"
        )
        raise DataError(Problem(Where(source), field_name, wrong, instead))


def _sha256(source: str, recipe_dir: Path) -> str | None:
    return None if is_hub_id(source, recipe_dir) else fingerprint(find_files(source, recipe_dir))
