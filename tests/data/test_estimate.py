"""Token lengths without a tokenizer, against the tokenizers themselves.

The counts were taken once with the tokenizers of Llama 3.1, Qwen 2.5, Gemma 3 and Mistral v0.3; none of them is needed
here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.data.estimate import (
    ERROR,
    ERROR_OF_UNKNOWN,
    RATES,
    UNKNOWN,
    EstimatedRows,
    count_tokens,
    estimate_rows,
    rates_for,
)
from fastft.errors import DataError
from fastft.recipe.loader import LoadedRecipe, load

Make = Callable[..., LoadedRecipe]
SHIPPED = Path(__file__).parents[2] / "recipes" / "llama31_sft.toml"
TEXTS = {
    "support": "My payment for the crystal goblet was declined, but the money is gone. Order #61750. Please tell me"
    " what happened and when I can expect an answer.",
    "english": "Gradient checkpointing trades arithmetic for memory: the activations of each layer are thrown away"
    " after the forward pass and computed again when the backward pass needs them.",
    "german": "Die Rechnung wurde bereits am vergangenen Dienstag bezahlt, trotzdem erhielt ich gestern eine Mahnung"
    " mit zusätzlichen Gebühren.",
    "chinese": "请把下面的文字翻译成英文，并且说明每一步的理由。机器学习模型需要大量的数据。",
    "python": "def total(rows: list[int], limit: int = 512) -> int:\n    kept = [row for row in rows if row <= limit]\n"
    "    return sum(kept) / max(1, len(kept))\n",
    "json": '{"order": 52445, "item": "wool scarf", "price": 19.95, "shipped": true, "tags": ["gift", "blue"]}',
}
# By the size of the vocabulary, in the order of TEXTS.
COUNTED = {
    128_256: (34, 30, 35, 26, 46, 38),
    151_936: (37, 30, 35, 21, 48, 43),
    256_000: (36, 30, 22, 21, 53, 42),
    32_000: (37, 36, 38, 38, 55, 46),
}


def estimate(loaded: LoadedRecipe, examples: int, *, vocabulary: int | None, max_seq_length: int) -> EstimatedRows:
    data, folder, where = loaded.recipe.data, loaded.folder, loaded.where
    return estimate_rows(
        data, folder, vocabulary=vocabulary, max_seq_length=max_seq_length, seed=1, examples=examples, locate=where
    )


@pytest.mark.parametrize("vocabulary", COUNTED)
def test_the_estimate_is_within_its_stated_error(vocabulary: int) -> None:
    rates, error = rates_for(vocabulary)
    estimated = [count_tokens(text, rates) for text in TEXTS.values()]

    assert error == ERROR
    assert sum(estimated) == pytest.approx(sum(COUNTED[vocabulary]), rel=ERROR)
    # One sentence is further off than a set of rows.
    assert estimated == pytest.approx(COUNTED[vocabulary], rel=0.25)


def test_each_control_token_of_a_template_is_one() -> None:
    rates = RATES[128_256]
    framed = f"<s><|start_header_id|>user<|end_header_id|>{TEXTS['english']}<|eot_id|>"

    assert count_tokens(framed, rates) == count_tokens("user" + " " + TEXTS["english"], rates) + 4


def test_sizes_near_a_known_vocabulary_are_of_its_family_and_others_are_less_certain() -> None:
    assert rates_for(152_064) == (RATES[151_936], ERROR)
    assert rates_for(32_768)[0].family == "Llama 2 and Mistral"
    assert rates_for(None) == rates_for(90_000) == (UNKNOWN, ERROR_OF_UNKNOWN)


def test_the_shipped_rows_are_estimated_near_what_llamas_tokenizer_counts() -> None:
    loaded = load(SHIPPED)
    found = estimate(loaded, 520, vocabulary=128_256, max_seq_length=2048)

    assert (len(found.lengths), found.lost_rows) == (520, 0)
    # Llama 3.1's tokenizer makes 78.9 tokens a row of them.
    assert sum(found.lengths) / 520 == pytest.approx(78.9, rel=ERROR)


def test_rows_that_are_too_long_are_lost_or_cut_as_the_recipe_says(recipe: Make) -> None:
    def lengths(overlong: str) -> tuple[int, int, bool]:
        loaded = recipe(f'overlong = "{overlong}"')
        found = estimate(loaded, 10, vocabulary=None, max_seq_length=5)
        return len(found.lengths), found.lost_rows, found.lost_tokens > 0

    assert lengths("drop") == (0, 10, True)
    assert lengths("truncate") == (10, 0, True)


def test_the_models_own_template_is_stood_in_for_and_that_is_said(recipe: Make) -> None:
    loaded = recipe()
    found = estimate(loaded, 10, vocabulary=128_256, max_seq_length=512)

    assert found.error == ERROR_OF_UNKNOWN
    assert "in ChatML for the model's own template" in found.how


def test_held_out_and_broken_rows_are_left_out(recipe: Make) -> None:
    loaded = recipe("eval_fraction = 0.2")
    path = loaded.folder / "rows.jsonl"
    path.write_text(path.read_text() + '{"messages": 1}\n')
    found = estimate(loaded, 9, vocabulary=None, max_seq_length=512)

    # 11 rows, of which 2 are held out and one is broken, which may be the same.
    assert len(found.lengths) in (8, 9)


def test_a_missing_file_is_named(recipe: Make) -> None:
    loaded = recipe()
    (loaded.folder / "rows.jsonl").unlink()

    with pytest.raises(DataError, match=r"rows\.jsonl"):
        estimate(loaded, 1, vocabulary=None, max_seq_length=512)
