"""Texts with labels: what rows become, which are refused, how long ones are cut."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fastft.data.hygiene import examine
from fastft.data.labels import Labeller, Labels, find_labels, label_counts, labels_of, targets, to_labelled
from fastft.data.prepare import prepare
from fastft.data.tokenizer import make_facts
from fastft.errors import DataError, Where
from fastft.recipe.model import ClassificationSection, DataSection
from fastft.runs.classification import majority, measure

HERE = Where("rows.jsonl", 3)
ONE, SEVERAL = ClassificationSection(), ClassificationSection(multi_label=True)


def word_tokenizer(framed: bool = False) -> Tokenizer:
    """One token a word of a to z; `framed` puts <s> and </s> around a text."""
    words = ["<s>", "</s>", "?", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return tokenizer


@pytest.mark.parametrize(
    ("row", "own", "labels"),
    [
        ({"text": "a", "label": "x"}, ONE, ["x"]),
        ({"text": "a", "label": 1}, ONE, ["1"]),
        ({"text": "a", "label": True}, ONE, ["true"]),
        ({"text": "a", "label": ["x"]}, ONE, ["x"]),
        ({"text": "a", "label": "x; y"}, SEVERAL, ["x", "y"]),
        ({"text": "a", "labels": ["x", "y", "x"]}, SEVERAL, ["x", "y"]),
        ({"text": "a", "label": []}, SEVERAL, []),
        ({"messages": [{"role": "user", "content": "a"}], "label": "x"}, ONE, ["x"]),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]}, ONE, ["x"]),
    ],
)
def test_a_label_is_read_in_every_form(row: dict[str, object], own: ClassificationSection, labels: list[str]) -> None:
    assert labels_of(to_labelled(row, HERE, own)) == labels


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "there is no label"),
        ({"text": "a", "label": ""}, "there is no label"),
        ({"text": "a", "label": ["x", "y"]}, "classification.multi_label = true"),
        ({"text": " ", "label": "x"}, "is empty"),
        ({"texts": "a", "label": "x"}, 'did you mean "texts"'),
        ({"text": "a", "label": 0.5}, "is no label"),
    ],
)
def test_a_row_without_text_or_label_is_refused_with_its_line(row: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said) as refused:
        to_labelled(row, HERE, ONE)

    assert "rows.jsonl:3" in str(refused.value)


def test_a_label_may_be_a_name_or_a_number() -> None:
    labels = Labels(("bad", "good"), several=False)

    assert [labels.target([one], HERE) for one in ("good", "1", "bad", "0")] == [1, 1, 0, 0]
    with pytest.raises(DataError, match='did you mean "good"'):
        labels.target(["goood"], HERE)
    assert Labels(("a", "b", "c"), several=True).of(0b101) == ("a", "c")


@pytest.mark.parametrize(("side", "kept"), [("end", "abcd"), ("start", "efgh"), ("middle", "abgh")])
@pytest.mark.parametrize("framed", [False, True])
def test_a_long_text_is_cut_where_asked_and_keeps_its_frame(side: str, kept: str, framed: bool) -> None:
    tokenizer = word_tokenizer(framed)
    labeller = Labeller(make_facts(tokenizer), Labels(("x", "y"), several=False), side)
    (ids,) = labeller.encode([["a b c d e f g h"]])

    cut = labeller.cut_ids(ids, 6 if framed else 4)

    words = [tokenizer.id_to_token(token) for token in cut]
    assert words == (["<s>", *kept, "</s>"] if framed else list(kept))
    assert labeller.cut_ids(array("i", [3]), 4) == array("i", [3])


def test_a_pair_is_parted_by_the_tokenizer_where_it_can() -> None:
    labeller = Labeller(make_facts(word_tokenizer(framed=True)), Labels(("x", "y"), several=False), "end")

    (pair,) = labeller.encode([["a", "b"]])

    assert pair.tolist() == [0, 3, 1, 4, 1]


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


def test_rows_of_a_csv_file_are_prepared_counted_and_refused(tmp_path: Path) -> None:
    data = DataSection(
        train=write(tmp_path, "train.csv", "text,label\na b c d,x\nb,y\nc,x\n"),
        eval=write(tmp_path, "eval.csv", "text,label\nb,y\nd,x\ne,z\n"),
        overlong="truncate",
        max_reject_fraction=0.9,
    )
    facts = make_facts(word_tokenizer())

    made = prepare(
        data, facts, max_seq_length=3, seed=0, recipe_dir=tmp_path, locate=lambda _: Where("recipe"), own=ONE
    )

    assert made.labels == Labels(("x", "y"), several=False)
    assert label_counts(made.train.rows, made.labels) == {"x": 2, "y": 1}
    assert targets(made.train.rows) == [0, 1, 0]
    assert [(row.tokens, row.kept_tokens) for row in made.train.overlong] == [(4, 3)]
    assert made.eval is not None
    assert ["eval.csv:4" in str(problem) for problem in made.eval.rejected] == [True]
    assert "none of the labels" in str(made.eval.rejected[0])
    assert len(made.eval.leaked) == 1


def test_numbers_as_labels_keep_their_order(tmp_path: Path) -> None:
    data = DataSection(train=write(tmp_path, "t.csv", "text,label\na,10\nb,9\n"))

    assert find_labels(data, ONE, tmp_path).names == ("9", "10")


def test_rows_of_one_label_are_refused(tmp_path: Path) -> None:
    data = DataSection(train=write(tmp_path, "t.csv", "text,label\na,x\nb,x\n"))

    with pytest.raises(DataError, match="nothing to tell apart"):
        find_labels(data, ONE, tmp_path)


def test_a_text_with_two_labels_is_a_contradiction(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    data = DataSection(train=write(tmp_path, "t.csv", "text,label\na b c,x\na b c,y\nd e f,x\n"))

    found = examine(data, tmp_path, own=ONE)

    assert found.count("contradictions") == 2


def test_the_figures_are_those_of_the_textbook() -> None:
    # True labels a a a b; predicted a a b b: precision of b 1/2, recall 1; of a 1 and 2/3.
    found = measure("ab", [0, 0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]], several=False)

    assert found.accuracy == 0.75
    assert [one.f1 for one in found.classes] == pytest.approx([0.8, 2 / 3])
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.weighted_f1 == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert found.confusion == ((2, 1), (0, 1))
    assert found.calibration_error == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)
    assert majority("ab", [0, 0, 1], [0, 1], several=False).accuracy == 0.5


def test_of_several_labels_all_must_be_right() -> None:
    found = measure("abc", [0b101, 0b010], [[0.9, 0.1, 0.8], [0.6, 0.7, 0.1]], several=True)

    assert found.accuracy == 0.5
    assert found.confusion == ()
