"""From the recipe's `[data]` to the rows that are trained: read, understood, rendered, counted, nothing lost unseen."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft.data import cache
from fastft.data.contract import check_encoded
from fastft.data.encode import Encoded, encode_batches
from fastft.data.example import Example
from fastft.data.formats import detect_or_fail, rename, to_example
from fastft.data.overlong import fit
from fastft.data.readers import Row
from fastft.data.render import Renderer, make_renderer
from fastft.data.rows import Overlong, RowSet
from fastft.data.sources import Source, copies, evaluation_source, training_sources
from fastft.data.template import ChatTemplate, load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import DataSection

# Measured: batches of 1,000 through the tokenizer run a quarter faster than one call for all, in flat memory.
BATCH_ROWS = 1000
LISTED_PROBLEMS = 20
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs to know of the data."""

    train: RowSet
    eval: RowSet | None
    format: str
    renderer: Renderer
    train_sha256: str | None
    eval_sha256: str | None
    # Where train.arrow and eval.arrow lie, in the form of `datasets`; None without a cache.
    folder: Path | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template in use, None for plain text."""
        return self.renderer.template

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every row that is not trained because something is wrong with it, training rows first."""
        sets = (self.train,) if self.eval is None else (self.train, self.eval)
        return tuple(problem for rows in sets for problem in (*rows.rejected, *rows.leaked))


def prepare(
    data: DataSection,
    tokenizer: TokenizerFacts,
    *,
    max_seq_length: int,
    seed: int,
    recipe_dir: Path,
    locate: Callable[[str], Where],
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> Prepared:
    """The rows of `[data]`, rendered and tokenized; `locate` tells where the recipe sets a key.

    `progress` is called with the number of rows read so far. With `cache_dir` the rows are written there as Arrow files
    (which needs pyarrow), and a later call with the same contents and settings maps them.

    Raises:
        DataError: a source cannot be read, more than data.max_reject_fraction of its rows are broken, or none is left.
        RecipeError: the chat template is unknown or does not fit the tokenizer.
        MachineError: a Hub dataset cannot be reached.
    """
    opened = _open(data, tokenizer, recipe_dir, locate)
    folder = None
    if cache_dir is not None and None not in opened.digests:
        digests = [digest for digest in opened.digests if digest is not None]
        folder = cache_dir / cache.cache_key(data, opened.renderer, digests, max_seq_length, seed, recipe_dir)
        sets = cache.load(folder)
        if sets is not None:
            return opened.prepared(sets["train"], sets.get("eval"), folder)
    made = _gather(data, opened, max_seq_length, seed, recipe_dir, locate, progress)
    _refuse_if_broken(made.train, "data.train" if data.train else "data.sources", data, max_seq_length, locate)
    if made.eval is not None:
        key = "data.eval" if data.eval is not None else "data.eval_fraction"
        _refuse_if_broken(made.eval, key, data, max_seq_length, locate)
    if folder is not None:
        named = {"train": made.train} if made.eval is None else {"train": made.train, "eval": made.eval}
        if cache.save(folder, named):
            return replace(made, folder=folder)
    return made


def gather(
    data: DataSection,
    tokenizer: TokenizerFacts,
    *,
    max_seq_length: int,
    seed: int,
    recipe_dir: Path,
    locate: Callable[[str], Where],
    progress: Progress | None = None,
) -> Prepared:
    """As `prepare`, but however many rows are broken: what `fastft check --data` lists.

    Raises:
        DataError, RecipeError, MachineError: as `prepare`, for what is wrong with a source or template as a whole.
    """
    opened = _open(data, tokenizer, recipe_dir, locate)
    return _gather(data, opened, max_seq_length, seed, recipe_dir, locate, progress)


@dataclass(frozen=True)
class _Opened:
    """What is known before the rows are read: formats, the renderer, and the digests of the sources, training first."""

    format: str
    renderer: Renderer
    digests: list[str | None]
    has_evaluation_source: bool

    def prepared(self, train: RowSet, held_out: RowSet | None, folder: Path | None) -> Prepared:
        """The result for these rows."""
        trained = self.digests[:-1] if self.has_evaluation_source else self.digests
        return Prepared(
            train=train,
            eval=held_out,
            format=self.format,
            renderer=self.renderer,
            train_sha256=trained[0] if len(trained) == 1 else _joint(trained),
            eval_sha256=self.digests[-1] if self.has_evaluation_source else None,
            folder=folder,
        )


def _open(data: DataSection, tokenizer: TokenizerFacts, recipe_dir: Path, locate: Callable[[str], Where]) -> _Opened:
    where = locate("data.chat_template")
    held_out = evaluation_source(data)
    sources = (*training_sources(data), *((held_out,) if held_out else ()))
    formats = [_format_of(source, data, recipe_dir) for source in sources]
    if "text" in formats and set(formats) != {"text"}:
        wrong = f"plain text and conversations are mixed: {', '.join(sorted(set(formats)))}"
        raise DataError(Problem(locate("data.format"), "data.format", wrong, "give rows of one kind"))
    template = None
    if "text" not in formats:
        template = load_template(data.chat_template, recipe_dir, tokenizer.chat_template, where)
    renderer = make_renderer(template, tokenizer, data.train_on, where)
    found = " + ".join(dict.fromkeys(formats[:-1] if held_out else formats))
    return _Opened(found, renderer, [source.sha256(recipe_dir) for source in sources], held_out is not None)


def _gather(
    data: DataSection,
    opened: _Opened,
    max_seq_length: int,
    seed: int,
    recipe_dir: Path,
    locate: Callable[[str], Where],
    progress: Progress | None,
) -> Prepared:
    filler = _Filler(data, opened.renderer, max_seq_length, seed, recipe_dir, progress)
    held_out = None if data.eval is None and data.eval_fraction is None else RowSet()
    chosen = _held_out_rows(data, seed, recipe_dir, locate)
    train = RowSet()
    for source in training_sources(data):
        filler.fill(source, train, held_out if chosen else None, chosen)
    held_out_source = evaluation_source(data)
    if held_out is not None and held_out_source is not None:
        filler.fill(held_out_source, held_out, held_out, frozenset())
    if held_out is not None:
        held_out = _without_leaks(train, held_out)
    return opened.prepared(train, held_out, None)


@dataclass
class _Filler:
    """Reads sources into row sets, one batch at a time."""

    data: DataSection
    renderer: Renderer
    max_seq_length: int
    seed: int
    recipe_dir: Path
    progress: Progress | None
    seen: int = 0
    first_of: dict[bytes, Where] = field(default_factory=dict)

    def fill(self, source: Source, kept: RowSet, held_out: RowSet | None, chosen: frozenset[int]) -> None:
        """Read `source` into `kept`, and the rows whose number over all sources is in `chosen` into `held_out`."""
        data_format = _format_of(source, self.data, self.recipe_dir)
        repeats = copies(source, self.recipe_dir, self.seed)
        before = len(kept.rows)
        # What each batch of examples becomes, in step with `encode_batches`, which works one batch ahead.
        waiting: deque[tuple[list[tuple[Example, RowSet, int]], int]] = deque()

        def read() -> Iterator[list[Example]]:
            for batch in _batches(source.rows(self.recipe_dir)):
                understood = []
                for number, (where, row) in enumerate(batch, start=self.seen):
                    times = next(repeats)
                    target = held_out if held_out is not None and number in chosen else kept
                    if not times:
                        continue
                    target.read += 1
                    try:
                        example = _understood(row, where, data_format, self.data)
                    except DataError as error:
                        target.rejected.append(error.problems[0])
                    else:
                        understood.append((example, target, times))
                self.seen += len(batch)
                waiting.append((understood, self.seen))
                yield [example for example, _, _ in understood]

        for made in encode_batches(read(), self.renderer):
            understood, seen = waiting.popleft()
            for (example, target, times), encoded in zip(understood, made, strict=True):
                self._keep(example, encoded, target, times if target is kept else 1, target is held_out)
            if self.progress is not None:
                self.progress(seen)
        kept.by_source[source.name] = len(kept.rows) - before

    def _keep(
        self, example: Example, encoded: Encoded | Problem, target: RowSet, times: int, with_example: bool
    ) -> None:
        if isinstance(encoded, Problem):
            target.rejected.append(encoded)
            return
        parts = [encoded]
        if len(encoded.input_ids) > self.max_seq_length:
            parts = fit(example, encoded, self.renderer, self.max_seq_length, self.data.overlong)
            kept_tokens = sum(len(part.input_ids) for part in parts)
            target.overlong.append(Overlong(encoded.where, len(encoded.input_ids), kept_tokens))
        for part in parts:
            broken = check_encoded(part, self.renderer, plain_text=example.text is not None)
            if broken is not None:
                target.rejected.append(broken)
            elif self.data.deduplicate == "exact" and not with_example and self._is_repeated(part, target):
                continue
            else:
                for _ in range(times):
                    target.rows.append(part)
                if with_example:
                    target.examples.append(example)

    def _is_repeated(self, row: Encoded, target: RowSet) -> bool:
        first = self.first_of.setdefault(_digest(row), row.where)
        if first is row.where:
            return False
        target.repeated.append((row.where, first))
        return True


def _understood(row: dict[str, Any] | Problem, where: Where, data_format: str, data: DataSection) -> Example:
    if isinstance(row, Problem):
        raise DataError(row)
    return to_example(rename(row, data.columns, where), data_format, where)


def _format_of(source: Source, data: DataSection, recipe_dir: Path) -> str:
    """The format of the first row that can be read."""
    broken: list[Problem] = []
    for where, row in islice(source.rows(recipe_dir), BATCH_ROWS):
        if not isinstance(row, Problem):
            return detect_or_fail(rename(row, data.columns, where), where, data.format)
        broken.append(row)
    raise DataError(broken[:LISTED_PROBLEMS])


def _held_out_rows(data: DataSection, seed: int, recipe_dir: Path, locate: Callable[[str], Where]) -> frozenset[int]:
    """The numbers, from 0 over all sources, of the training rows that `eval_fraction` holds out."""
    if data.eval_fraction is None:
        return frozenset()
    total = 0
    for source in training_sources(data):
        count = source.count(recipe_dir)
        total += sum(1 for _ in source.rows(recipe_dir)) if count is None else count
    count = max(1, round(total * data.eval_fraction))
    if count >= total:
        wrong = f"{data.eval_fraction} of {total} rows leaves nothing to train on"
        raise DataError(Problem(locate("data.eval_fraction"), "data.eval_fraction", wrong, "give more rows"))
    # Not for secrets: the same seed must hold out the same rows.
    return frozenset(random.Random(seed).sample(range(total), count))  # noqa: S311


def _without_leaks(train: RowSet, held_out: RowSet) -> RowSet:
    """`held_out` without the rows that stand in `train` too, which would only measure memory."""
    trained = {_digest(row): row.where for row in train.rows}
    clean = RowSet(read=held_out.read, overlong=held_out.overlong, rejected=held_out.rejected)
    clean.by_source = held_out.by_source
    for row, example in zip(held_out.rows, held_out.examples, strict=True):
        known = trained.get(_digest(row))
        if known is None:
            clean.rows.append(row)
            clean.examples.append(example)
        else:
            wrong = f"this evaluation row is also trained, at {known}"
            clean.leaked.append(Problem(row.where, "", wrong, "remove it from one of the two"))
    return clean


def _digest(row: Encoded) -> bytes:
    return hashlib.blake2b(array("i", row.input_ids).tobytes(), digest_size=16).digest()


def _joint(digests: list[str | None]) -> str | None:
    known = [digest for digest in digests if digest is not None]
    return hashlib.sha256("\n".join(known).encode()).hexdigest() if len(known) == len(digests) else None


def _batches(items: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(items, BATCH_ROWS)):
        yield batch


def _refuse_if_broken(
    rows: RowSet, key: str, data: DataSection, max_seq_length: int, locate: Callable[[str], Where]
) -> None:
    broken, where = len(rows.rejected), locate(key)
    if broken > data.max_reject_fraction * rows.read:
        allowed = f"data.max_reject_fraction = {data.max_reject_fraction:g} allows {data.max_reject_fraction:.1%}"
        wrong = f"{broken} of {rows.read} rows ({broken / rows.read:.1%}) are broken; {allowed}"
        more = f"; the first {LISTED_PROBLEMS} are listed above" if broken > LISTED_PROBLEMS else ""
        last = Problem(where, key, wrong, f"correct or remove them{more}")
        raise DataError([*rows.rejected[:LISTED_PROBLEMS], last])
    if data.overlong == "error" and rows.overlong:
        listed = [_too_long(row, max_seq_length) for row in rows.overlong[:LISTED_PROBLEMS]]
        longest = max(row.tokens for row in rows.overlong)
        wrong = (
            f"{len(rows.overlong)} of {rows.read} rows are longer than {max_seq_length} tokens, the longest {longest}"
        )
        instead = "raise model.max_seq_length, or choose drop, truncate or split"
        raise DataError([*listed, Problem(locate("data.overlong"), "data.overlong", wrong, instead)])
    if not rows.rows:
        wrong = (
            f"no row is left of {rows.read}: {len(rows.overlong)} longer than {max_seq_length} tokens, {broken} broken"
        )
        wrong += f", {len(rows.leaked)} also trained" if rows.leaked else ""
        longest = max((row.tokens for row in rows.overlong), default=0)
        instead = (
            f"raise model.max_seq_length (the longest row has {longest} tokens)" if longest else "correct the rows"
        )
        raise DataError([*rows.leaked[:LISTED_PROBLEMS], Problem(where, key, wrong, instead)])


def _too_long(row: Overlong, limit: int) -> Problem:
    return Problem(row.where, "", f"{row.tokens} tokens, {limit} fit", "shorten it")
