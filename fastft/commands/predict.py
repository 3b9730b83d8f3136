"""`fastft predict`: the labels of texts in a file, with probabilities, one line a row in the order of the file."""

from __future__ import annotations

import csv
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from fastft.console import library_output_to
from fastft.data.columns import rename
from fastft.data.labels import Labeller, Labels, to_labelled
from fastft.data.readers import read_file
from fastft.data.tokenizer import load_tokenizer
from fastft.engine_choice import select
from fastft.errors import DataError, Problem, UsageError, Where
from fastft.recipe.loader import load
from fastft.recipe.model import ClassificationSection
from fastft.runs.classification import Classifier, predicted
from fastft.stages.weights import WeightsPath, find_base, find_classifier, find_weights

# Texts that are sorted by length together: enough for full batches of like length, and little memory.
WINDOW = 2048
Row = dict[str, Any]


def predict_in_terminal(path: Path, file: Path, out: Path | None, base: str | None, batch: int) -> None:
    """Write the labels of the rows of `file` to `out` (CSV by its ending, else JSON lines), or print them.

    Raises:
        UsageError: there is no classifier at `path`, or no such file.
        DataError: no row of the file has a text.
    """
    weights = find_weights(path)
    known = find_classifier(weights)
    if known is None:
        wrong, instead = "is no classifier", 'name a run of task = "classification", or an export of one'
        raise UsageError(Problem(Where(str(path)), "", wrong, instead))
    if not file.is_file():
        raise UsageError(Problem(Where(str(file)), "", "there is no such file", "name a .jsonl or .csv file"))
    columns = {} if weights.run is None else load(weights.run.recipe).recipe.data.columns
    with ExitStack() as stack:
        stream = sys.stdout if out is None else stack.enter_context(out.open("w", encoding="utf-8", newline=""))
        write = _writer(stream, known, as_csv=out is not None and out.suffix == ".csv")
        broken = total = 0
        for row in _predicted(weights, known, file, columns, base, batch):
            write(row)
            total, broken = total + 1, broken + ("error" in row)
    print(f"{total - broken} of {total} rows labelled" + (f"; {broken} have no text" * bool(broken)), file=sys.stderr)
    if total == broken:
        raise DataError(Problem(Where(str(file)), "", "no row has a text that can be read", "look at its columns"))


def _predicted(
    weights: WeightsPath, known: Classifier, file: Path, columns: dict[str, str], base: str | None, batch: int
) -> Iterator[Row]:
    """Each row of the file with its prediction; one that cannot be read has `error` instead."""
    adapter, folder = None, weights.path
    if weights.kind == "adapter":
        _, folder = find_base(weights, base, lambda text: print(text, file=sys.stderr))
        adapter = weights.path
    labels = Labels(known.labels, known.several)
    labeller = Labeller(load_tokenizer(adapter or folder), labels, known.truncation)
    own = ClassificationSection(labels=known.labels, multi_label=known.several)
    waiting: deque[list[Row]] = deque()

    def windows() -> Iterator[list[Sequence[int]]]:
        rows: list[Row] = []
        texts: list[list[str]] = []
        for where, row in read_file(file):
            rows.append(_read(row, where, columns, own, texts))
            if len(texts) == WINDOW:
                waiting.append(rows)
                yield _ids(labeller, texts, known.max_seq_length)
                rows, texts = [], []
        if rows:
            waiting.append(rows)
            yield _ids(labeller, texts, known.max_seq_length)

    select("transformers")
    # Libraries say much while they load; what they say of a failure is in its message.
    with library_output_to(weights.path.parent / "predict.log"):
        from fastft.engine.tasks.classifier import predict

        made = predict(folder, adapter, known, windows(), batch)
        results = iter(made)
        first = next(results, None)
    while first is not None:
        chances = iter(first)
        for row in waiting.popleft():
            yield row if "error" in row else {**row, **_prediction(next(chances), known)}
        first = next(results, None)


def _read(
    row: Row | Problem, where: Where, columns: dict[str, str], own: ClassificationSection, texts: list[list[str]]
) -> Row:
    """The row as it is repeated in the output; adds its text to `texts`, or `error` to the row."""
    if isinstance(row, Problem):
        return {"error": str(row)}
    try:
        present = {new: old for new, old in columns.items() if old in row}
        plain = dict(rename(row, present, where))
        without = {name: value for name, value in plain.items() if name not in ("label", "labels")}
        # Any label: what is asked for is not what the file says.
        example = to_labelled({**without, "label": own.labels[0]}, where, own)
    except DataError as error:
        return {**row, "error": str(error.problems[0])}
    texts.append([message.content for message in example.messages[:-1]])
    return row


def _ids(labeller: Labeller, texts: list[list[str]], limit: int) -> list[Sequence[int]]:
    return [labeller.cut_ids(ids, limit) for ids in labeller.encode(texts)] if texts else []


def _prediction(chances: list[float], known: Classifier) -> Row:
    number = predicted(chances, several=known.several)
    names = Labels(known.labels, known.several).of(number)
    shares = {name: round(value, 6) for name, value in zip(known.labels, chances, strict=True)}
    if known.several:
        return {"predicted": list(names), "probabilities": shares}
    return {"predicted": names[0], "probability": round(max(chances), 6), "probabilities": shares}


def _writer(stream: TextIO, known: Classifier, *, as_csv: bool) -> Callable[[Row], None]:
    """What writes one row: a JSON line, or a CSV line with a column a label."""
    if not as_csv:
        return lambda row: print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)
    table: list[Any] = []

    def write(row: Row) -> None:
        flat = {key: value for key, value in row.items() if key not in ("probabilities", "error")}
        if isinstance(flat.get("predicted"), list):
            flat["predicted"] = "; ".join(flat["predicted"])
        shares = row.get("probabilities", {})
        flat |= {f"probability of {name}": shares.get(name, "") for name in known.labels}
        flat["error"] = row.get("error", "")
        if not table:
            names = [*(key for key in flat if key != "error"), "error"]
            table.append(csv.DictWriter(stream, names, extrasaction="ignore", restval=""))
            table[0].writeheader()
        table[0].writerow(flat)

    return write
