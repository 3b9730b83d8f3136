"""Prepare the rows of the recipe's `[data]`: read, parse, render and tokenize them, and account for every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data import cache
from fastft.data.filling import LISTED_PROBLEMS, Filler, OnRows, Target, format_of
from fastft.data.held_out import held_out_rows, without_leaks
from fastft.data.labels import Labeller, Labels, find_labels
from fastft.data.readers import joint_digest
from fastft.data.render import Renderer, make_renderer
from fastft.data.rows import RowSet, RowWriter
from fastft.data.sources import evaluation_source, training_sources
from fastft.data.template import ChatTemplate, load_template
from fastft.data.template_values import KWARGS_FIELD, with_values
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, MachineError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import ClassificationSection, DataSection


@dataclass(frozen=True)
class Prepared:
    """The prepared data: everything that training needs."""

    train: RowSet
    eval: RowSet | None
    format: str
    renderer: Renderer
    train_sha256: str
    eval_sha256: str | None
    # The folder of train.arrow and eval.arrow, in the form of `datasets`; None without a cache.
    folder: Path | None = None
    # None where answers are learnt.
    labels: Labels | None = None

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
    progress: OnRows | None = None,
    cache_dir: Path | None = None,
    refuse_broken: bool = True,
    own: ClassificationSection | None = None,
) -> Prepared:
    """The rows of `[data]`, rendered and tokenized; `locate` gives the place of a recipe key; `own`: texts with labels.

    Calls `progress` with the number of rows read so far. With `cache_dir` it writes the rows there as Arrow files
    (which needs pyarrow) while it makes them, and a later call with the same contents and settings maps them: memory
    does not grow with their tokens. Without, it keeps them in memory, 8 bytes a token.

    Raises:
        DataError: a source cannot be read; or, with `refuse_broken`, more than data.max_reject_fraction of its rows are
            broken, rows are too long and data.overlong is "error", or no row is left.
        RecipeError: the chat template is unknown or does not fit the tokenizer.
        MachineError: a Hub dataset cannot be reached, a package is missing, or `cache_dir` cannot be written.
    """
    trained, evaluated = training_sources(data), evaluation_source(data)
    found, renderer = _open(data, tokenizer, recipe_dir, locate, own)
    labeller = None if own is None else Labeller(tokenizer, find_labels(data, own, recipe_dir), own.truncation)
    labels = None if labeller is None else labeller.labels
    digests = [source.sha256(recipe_dir) for source in trained]
    eval_sha256 = evaluated.sha256(recipe_dir) if evaluated else None
    filler = Filler(data, renderer, max_seq_length, seed, recipe_dir, progress, own, labeller)
    folder = None
    if cache_dir is None:
        sets = _filled(filler, locate, lambda _name: RowWriter())
    else:
        contents = [*digests, eval_sha256] if eval_sha256 else list(digests)
        contents += _label_settings(own, labels)
        folder = cache_dir / cache.cache_key(data, renderer, contents, max_seq_length, seed, recipe_dir)
        try:
            sets = cache.load(folder) or cache.save(folder, lambda writer_of: _filled(filler, locate, writer_of))
        except OSError as error:
            where, wrong = Where(str(cache_dir)), f"the prepared rows cannot be written: {error}"
            raise MachineError(Problem(where, "", wrong, "free space there, or allow writing")) from error
    if refuse_broken:
        _refuse_if_broken(sets["train"], "data.train" if data.train else "data.sources", data, max_seq_length, locate)
        if "eval" in sets:
            key = "data.eval" if data.eval is not None else "data.eval_fraction"
            _refuse_if_broken(sets["eval"], key, data, max_seq_length, locate)
    return Prepared(
        sets["train"], sets.get("eval"), found, renderer, joint_digest(digests), eval_sha256, folder, labels
    )


def _label_settings(own: ClassificationSection | None, labels: Labels | None) -> list[str]:
    """What prepared rows with labels depend on besides."""
    return [] if own is None or labels is None else [own.model_dump_json(), *labels.names]


def _open(
    data: DataSection,
    tokenizer: TokenizerFacts,
    recipe_dir: Path,
    locate: Callable[[str], Where],
    own: ClassificationSection | None,
) -> tuple[str, Renderer]:
    """The format of the training rows, and the renderer."""
    where = locate("data.chat_template")
    held_out = evaluation_source(data)
    sources = (*training_sources(data), *((held_out,) if held_out else ()))
    formats = [format_of(source, data, recipe_dir, own) for source in sources]
    if "text" in formats and set(formats) != {"text"}:
        wrong = f"plain text and conversations are mixed: {', '.join(sorted(set(formats)))}"
        raise DataError(Problem(locate("data.format"), "data.format", wrong, "use rows of one kind"))
    template = None
    if "text" not in formats and own is None:
        template = load_template(data.chat_template, recipe_dir, tokenizer.chat_template, where)
        template = with_values(template, data.template_date, data.chat_template_kwargs, locate(KWARGS_FIELD))
    renderer = make_renderer(template, tokenizer, data.train_on, where, data.turns, data.may_drop)
    return " + ".join(dict.fromkeys(formats[:-1] if held_out else formats)), renderer


def _filled(filler: Filler, locate: Callable[[str], Where], writer_of: cache.WriterOf) -> dict[str, RowSet]:
    """The row sets "train" and, where rows are held out, "eval"."""
    data = filler.data
    chosen = held_out_rows(data, filler.seed, filler.recipe_dir, locate)
    train, held_out = Target(RowSet(), writer_of("train")), None
    if data.eval is not None or data.eval_fraction is not None:
        held_out = Target(RowSet(), writer_of("eval-as-read"), held_out=True)
    for source in training_sources(data):
        filler.fill(source, train, held_out, chosen)
    held_out_source = evaluation_source(data)
    if held_out is not None and held_out_source is not None:
        filler.fill(held_out_source, held_out)
    train.account.rows = train.writer.finish()
    if held_out is None:
        return {"train": train.account}
    held_out.account.rows = held_out.writer.finish()
    clean = without_leaks(train.account.rows, held_out.account, writer_of("eval"))
    return {"train": train.account, "eval": clean}


def _refuse_if_broken(
    rows: RowSet, key: str, data: DataSection, max_seq_length: int, locate: Callable[[str], Where]
) -> None:
    broken, where = len(rows.rejected), locate(key)
    longest = max((row.tokens for row in rows.overlong), default=0)
    if broken > data.max_reject_fraction * rows.read:
        allowed = f"data.max_reject_fraction = {data.max_reject_fraction:g} allows {data.max_reject_fraction:.1%}"
        wrong = f"{broken} of {rows.read} rows ({broken / rows.read:.1%}) are broken; {allowed}"
        more = f"; the first {LISTED_PROBLEMS} are listed above" if broken > LISTED_PROBLEMS else ""
        last = Problem(where, key, wrong, f"correct or remove them{more}")
        raise DataError([*rows.rejected[:LISTED_PROBLEMS], last])
    if data.overlong == "error" and rows.overlong:
        listed = [
            Problem(row.where, "", f"{row.tokens} tokens, {max_seq_length} fit", "shorten it")
            for row in rows.overlong[:LISTED_PROBLEMS]
        ]
        wrong = f"{len(rows.overlong)} of {rows.read} rows are longer than {max_seq_length} tokens"
        wrong += f", the longest {longest}"
        instead = "raise model.max_seq_length, or choose drop, truncate or split"
        raise DataError([*listed, Problem(locate("data.overlong"), "data.overlong", wrong, instead)])
    if not rows.rows:
        wrong = f"no row is left of {rows.read}: {len(rows.overlong)} longer than {max_seq_length} tokens"
        wrong += f", {broken} broken" + (f", {len(rows.leaked)} also trained" if rows.leaked else "")
        instead = "correct the rows"
        if longest:
            instead = f"raise model.max_seq_length (the longest row has {longest} tokens)"
        raise DataError([*rows.leaked[:LISTED_PROBLEMS], Problem(where, key, wrong, instead)])
