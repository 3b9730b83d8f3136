"""Texts with labels: what a row of task = "classification" becomes, and the numbers of its labels.

An example holds the text (and a second one of a pair) as user turns, the label as the answer. As a trained row it has
its label at the last token: the number of the label, or with several labels the sum of 2**number.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.columns import Columns, rename
from fastft.data.encode import NO_LOSS, Encoded, Made
from fastft.data.example import Example, Message
from fastft.data.json_rows import json_kind
from fastft.data.parts import Part
from fastft.data.rows import Rows
from fastft.data.sources import training_sources
from fastft.data.tokenizer import TokenizerFacts
from fastft.data.turns import Turns, read_turns
from fastft.data.values import as_text, says_something
from fastft.errors import DataError, Problem, Where, nearest
from fastft.recipe.classification_rules import MOST_OF_SEVERAL

if TYPE_CHECKING:
    from fastft.recipe.model import ClassificationSection, DataSection

TEXT_PAIR, LABEL = "text_pair", "label"
_NO_LABEL = "write the name of a label, or its number"
# A column of free texts has more; nobody has so many labels by intention.
MOST_FOUND = 1000
# In a message.
SHOWN_LABELS = 12
# What a classification may read besides; any other column is counted as one without effect.
READ = frozenset({"text", TEXT_PAIR, LABEL, "labels", "messages"})


@dataclass(frozen=True)
class Labels:
    """The names of the labels in the order of their numbers, and whether a text may have several."""

    names: tuple[str, ...]
    several: bool

    def target(self, found: Sequence[str], where: Where) -> int:
        """The number of the label in `found`, or of several labels the sum of 2**number.

        Raises:
            DataError: one of them is none.
        """
        numbers = [self._number(name, where) for name in found]
        return sum(1 << number for number in set(numbers)) if self.several else numbers[0]

    def of(self, target: int) -> tuple[str, ...]:
        """The names of the labels that `target` stands for."""
        if not self.several:
            return (self.names[target],)
        return tuple(name for number, name in enumerate(self.names) if target >> number & 1)

    def _number(self, name: str, where: Where) -> int:
        if name in self.names:
            return self.names.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.names):
            return int(name)
        near, shown = nearest(name, self.names), ", ".join(self.names[:SHOWN_LABELS])
        instead = f'did you mean "{near}"?' if near else f"the labels are {shown}; name others in classification.labels"
        raise DataError(Problem(where, LABEL, "is none of the labels that are trained", instead, got=name[:80]))


def to_labelled(row: Columns, where: Where, own: ClassificationSection, ignored: Iterable[str] = ()) -> Example:
    """The example of a row: its text or messages, the second text of a pair, and its label.

    Raises:
        DataError: it has no text or no label.
    """
    turns = Turns(frozenset(ignored))
    value = row.get(LABEL, row.get("labels"))
    if "text" in row:
        texts = [as_text(row["text"], where, "text")]
    elif "messages" in row:
        read_turns(row["messages"], where, "messages", turns)
        messages = turns.messages
        if LABEL not in row and "labels" not in row and messages and messages[-1].role == "assistant":
            value, messages = messages[-1].content, messages[:-1]
        texts = [_transcript(messages)]
    else:
        near = nearest("text", row)
        instead = f'did you mean "{near}"? write columns = {{ text = "{near}" }}' if near else "add the column"
        raise DataError(Problem(where, "text", "the row has no text and no messages", instead, got=", ".join(row)))
    if says_something(row.get(TEXT_PAIR)):
        texts.append(as_text(row[TEXT_PAIR], where, TEXT_PAIR))
    if not texts[0].strip():
        raise DataError(Problem(where, "text", "is empty", "write text, or remove the row"))
    labels = _read_labels(value, where, own.multi_label)
    unused = {name for name in row.keys() - READ - set(ignored) if says_something(row[name])}
    answer = "; ".join(labels)
    return Example(
        where,
        messages=(*(Message("user", text) for text in texts), Message("assistant", answer)),
        unused=frozenset({*unused, *(f"[].{key}" for key in turns.unused)}),
    )


def _transcript(messages: Sequence[Message]) -> str:
    """A conversation as one text: a single question as it is, several turns each behind its role."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _read_labels(value: object, where: Where, several: bool) -> tuple[str, ...]:
    """The labels of a row as texts, each once.

    Raises:
        DataError: there is none, or there are several where a text has one.
    """
    if several:
        entries = value.split(";") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        found = [_read_label(one, where) for one in entries if one not in ("", None) or value is None]
        return tuple(dict.fromkeys(found))
    if isinstance(value, list | tuple):
        if len(value) != 1:
            wrong, instead = f"{len(value)} labels, and a text has one", "set classification.multi_label = true"
            raise DataError(Problem(where, LABEL, wrong, instead))
        value = value[0]
    return (_read_label(value, where),)


def _read_label(value: object, where: Where) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    wrong = "there is no label" if value in (None, "") else "is no label"
    raise DataError(Problem(where, LABEL, wrong, _NO_LABEL, got=json_kind(value)))


def find_labels(data: DataSection, own: ClassificationSection, recipe_dir: Path) -> Labels:
    """The labels of the recipe, or those of all training rows.

    Raises:
        DataError: a source cannot be read, or the rows have fewer than two labels, or far too many.
        MachineError: a Hub dataset cannot be reached.
    """
    if own.labels:
        return Labels(own.labels, own.multi_label)
    found: set[str] = set()
    most = MOST_OF_SEVERAL if own.multi_label else MOST_FOUND
    first: Where | None = None
    for source in training_sources(data):
        for where, row in source.rows(recipe_dir):
            first = first or where
            try:
                if not isinstance(row, Problem):
                    found |= set(labels_of(to_labelled(rename(row, data.columns, where), where, own, data.ignore)))
            except DataError:
                continue  # listed when the rows are prepared
            if len(found) > most:
                wrong = f"the rows have more than {most} different labels, {min(found)[:40]!r} for example"
                raise DataError(Problem(where, LABEL, wrong, "name the column of the labels: data.columns"))
    if len(found) < (1 if own.multi_label else 2):
        wrong = f"the rows have {len(found)} different labels: there is nothing to tell apart"
        instead = "look at the column `label`, or name the labels in classification.labels"
        raise DataError(Problem(first or Where("data.train"), LABEL, wrong, instead, got=", ".join(found)))
    numbers = all(name.isascii() and name.isdigit() for name in found)
    return Labels(tuple(sorted(found, key=int) if numbers else sorted(found)), own.multi_label)


def inspect_labelled(row: Columns, where: Where, data: DataSection, own: ClassificationSection) -> str:
    """The format of a row, by its columns.

    Raises:
        DataError: it has no text or no label.
    """
    to_labelled(row, where, own, data.ignore)
    return "classification" if "text" in row else "messages"


def labels_of(example: Example) -> list[str]:
    """The labels of an example, as they are written."""
    return [name for name in example.messages[-1].content.split("; ") if name]


@dataclass(frozen=True)
class Labeller:
    """Makes rows of labelled texts: a tokenizer, the labels, and which part of a long text is left out."""

    tokenizer: TokenizerFacts
    labels: Labels
    truncation: str

    def encode_batches(self, batches: Iterable[Sequence[Example]]) -> Iterator[list[Made]]:
        """The row of each example, or why it has none."""
        for examples in batches:
            ids = self.encode([[message.content for message in example.messages[:-1]] for example in examples])
            yield [self._made(example, row) for example, row in zip(examples, ids, strict=True)]

    def encode(self, texts: Sequence[Sequence[str]]) -> list[array[int]]:
        """The token ids of each text or pair of texts, with the tokens that the tokenizer puts around a text."""
        tokenizer = self.tokenizer.tokenizer
        # A tokenizer without a separator of its own would glue the two.
        parted = tokenizer.num_special_tokens_to_add(True) > tokenizer.num_special_tokens_to_add(False)
        asked = [tuple(one) if len(one) > 1 and parted else "\n".join(one) for one in texts]
        return [array("i", encoding.ids) for encoding in tokenizer.encode_batch_fast(asked, add_special_tokens=True)]

    def _made(self, example: Example, ids: array[int]) -> Made:
        try:
            if not ids:
                raise DataError(Problem(example.where, "text", "has no token", "write text, or remove the row"))  # noqa: TRY301
            target = self.labels.target(labels_of(example), example.where)
        except DataError as error:
            return error.problems[0]
        return [(Part(example, ""), labelled(ids, target, example.where))]

    def cut(self, row: Encoded, limit: int) -> Encoded:
        """The row with at most `limit` tokens; those that the tokenizer puts around a text stay."""
        return labelled(self.cut_ids(row.input_ids, limit), row.labels[-1], row.where)

    def cut_ids(self, ids: array[int], limit: int) -> array[int]:
        """The same of token ids alone."""
        if len(ids) <= limit:
            return ids
        begin, end = self._frame()
        text, room = ids[begin : len(ids) - end], max(1, limit - begin - end)
        if self.truncation == "start":
            kept = text[-room:]
        elif self.truncation == "middle" and room > 1:
            kept = text[: room - room // 2] + text[-(room // 2) :]
        else:
            kept = text[:room]
        return ids[:begin] + kept + ids[len(ids) - end :]

    def _frame(self) -> tuple[int, int]:
        """How many tokens the tokenizer puts before and after a text."""
        mask = self.tokenizer.tokenizer.encode("a").special_tokens_mask
        text = [number for number, special in enumerate(mask) if not special]
        return (text[0], len(mask) - 1 - text[-1]) if text else (0, 0)


def labelled(ids: array[int], target: int, where: Where) -> Encoded:
    """A row with its label at the last token."""
    return Encoded(ids, array("i", [NO_LOSS]) * (len(ids) - 1) + array("i", [target]), where)


def targets(rows: Rows) -> list[int]:
    """The label of each row, as `Labels.target` has it."""
    return [block.labels[end - 1] for block in rows.blocks for end in block.ends.tolist()[1:]]


def label_counts(rows: Rows, labels: Labels) -> dict[str, int]:
    """How many rows have each label."""
    counts: Counter[str] = Counter()
    for target, count in Counter(targets(rows)).items():
        counts.update(dict.fromkeys(labels.of(target), count))
    return {name: counts[name] for name in labels.names}
