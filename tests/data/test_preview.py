from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fastft.data.encode import NO_LOSS, Encoded, encode
from fastft.data.example import Example
from fastft.data.preview import preview
from fastft.data.render import make_renderer
from fastft.data.template import load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import Where

Conversation = Callable[..., Example]


@pytest.fixture
def row(chatml: TokenizerFacts, conversation: Conversation) -> Encoded:
    template = load_template("model", Path(), chatml.chat_template, Where("r"))
    return encode(conversation("Hü", "Ja 😀."), make_renderer(template, chatml, "assistant", Where("r")))


def test_what_carries_loss_is_marked_without_colour(row: Encoded, chatml: TokenizerFacts) -> None:
    shown = preview(row, chatml.tokenizer)
    assert shown.marked() == "<|im_start|>user\nHü<|im_end|>\n<|im_start|>assistant\n⟦Ja 😀.<|im_end|>⟧\n"
    assert (shown.tokens, shown.trained_tokens) == (len(row.input_ids), 9)


def test_a_character_of_several_tokens_is_one_piece(row: Encoded, chatml: TokenizerFacts) -> None:
    pieces = {piece.text: len(piece.ids) for piece in preview(row, chatml.tokenizer).pieces}
    assert (pieces["😀"], pieces["ü"], pieces["J"], pieces["<|im_end|>"]) == (4, 2, 1, 1)


def test_json_has_exactly_the_arrays_that_are_trained(row: Encoded, chatml: TokenizerFacts) -> None:
    made = preview(row, chatml.tokenizer, dropped_tokens=5).as_json()
    assert (made["input_ids"], made["labels"]) == (row.input_ids.tolist(), row.labels.tolist())
    assert (made["where"], made["dropped_tokens"]) == ("rows.jsonl:1", 5)


def test_a_character_cut_by_the_mask_is_shown_in_two_pieces(chatml: TokenizerFacts) -> None:
    ids = chatml.tokenizer.encode("ü").ids
    shown = preview(Encoded(array("i", ids), array("i", [NO_LOSS, ids[1]]), Where("r", 1)), chatml.tokenizer)
    assert [piece.trained for piece in shown.pieces] == [False, True]
    assert shown.as_json()["labels"] == [NO_LOSS, ids[1]]


def test_spaces_that_a_decoder_drops_at_the_beginning_are_kept_inside() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁say": 0, "▁it": 1, "▁now": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    ids = array("i", tokenizer.encode("say it now").ids)
    assert preview(Encoded(ids, ids, Where("r", 1)), tokenizer).marked() == "⟦say it now⟧"
