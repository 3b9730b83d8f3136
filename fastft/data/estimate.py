"""Token lengths without the tokenizer: words, digits and signs of the rendered rows, by a measured rate a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.filling import format_of, parse_row
from fastft.data.held_out import held_out_rows
from fastft.data.sources import copies, evaluation_source, training_sources
from fastft.data.template import ChatTemplate, load_template
from fastft.data.template_values import KWARGS_FIELD, with_values
from fastft.errors import DataError, Where

if TYPE_CHECKING:
    from fastft.recipe.model import ClassificationSection, DataSection

# Rows that are looked at; the lengths of more are taken from these.
ESTIMATED_ROWS = 5000
# How many tokens off the estimate was at most, as a share, in sixteen texts: English, six other European languages,
# Russian, Japanese and Chinese prose, Python, JSON, Markdown, short support messages. Greek is off by half with Qwen
# and Mistral.
ERROR, ERROR_OF_UNKNOWN = 0.2, 0.3


@dataclass(frozen=True)
class TokenRates:
    """Tokens that a tokenizer makes of a Latin word (its first six letters), of each later letter, of a digit, of a
    sign or a run of blanks, of a letter of another alphabet or with an accent, and of a Chinese or Japanese one."""

    family: str
    word: float
    letter: float
    digit: float
    sign: float
    other: float
    wide: float


# By the size of the vocabulary. Fitted by least squares to the tokenizers themselves, on the texts named at ERROR.
RATES = {
    32_000: TokenRates("Llama 2 and Mistral", 1.12, 0.25, 1.15, 0.77, 0.45, 0.94),
    49_152: TokenRates("SmolLM2", 1.01, 0.26, 1.22, 0.76, 0.89, 1.53),
    128_256: TokenRates("Llama 3", 1.08, 0.20, 0.47, 0.63, 0.34, 0.63),
    151_936: TokenRates("Qwen", 1.05, 0.21, 1.25, 0.60, 0.35, 0.61),
    256_000: TokenRates("Gemma", 1.10, 0.20, 1.23, 0.56, 0.28, 0.48),
}
UNKNOWN = TokenRates("most models", 1.07, 0.22, 1.06, 0.66, 0.46, 0.84)
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<bos>|\[/?INST\]")
_PIECE = re.compile(r"([A-Za-z]+)|(\d)|([^\W\d_]+)|(\n+|[ \t]{2,}|[^\w\s]|_)")
# A letter from here on is Chinese, Japanese or Korean.
_FIRST_WIDE = "⺀"


@dataclass(frozen=True)
class EstimatedRows:
    """Estimated tokens of each training row that fits, what does not, and what that stands on."""

    lengths: list[int]
    lost_rows: int
    lost_tokens: int
    longest: int
    how: str
    error: float


def estimate_rows(
    data: DataSection,
    recipe_dir: Path,
    *,
    vocabulary: int | None,
    max_seq_length: int,
    seed: int,
    examples: int,
    locate: Callable[[str], Where],
    own: ClassificationSection | None = None,
) -> EstimatedRows:
    """The tokens of `examples` training rows, from the text of the first ones; `vocabulary`: size of the tokenizer's.

    Where the model's own chat template is wanted and is not here, ChatML stands in for it.

    Raises:
        DataError: a source cannot be read.
        RecipeError: the chat template is unknown.
    """
    rates, error = rates_for(vocabulary)
    name, how = data.chat_template, f"counted from words, digits and signs at the rates of {rates.family}"
    if name == "model":
        name, error, how = "chatml", ERROR_OF_UNKNOWN, f"{how}, in ChatML for the model's own template"
    if own is not None:
        how = f"counted from words, digits and signs at the rates of {rates.family}"
    template = load_template(name, recipe_dir, None, locate("data.chat_template"))
    if data.chat_template != "model":
        template = with_values(template, data.template_date, data.chat_template_kwargs, locate(KWARGS_FIELD))
    held_out = held_out_rows(data, seed, recipe_dir, locate) if evaluation_source(data) is None else frozenset()
    found = list(islice(_texts(data, recipe_dir, seed, held_out, template, own), ESTIMATED_ROWS))
    whole = [count_tokens(text, rates) for text in found]
    if len(found) == ESTIMATED_ROWS and examples > ESTIMATED_ROWS:
        how += f", from the first {ESTIMATED_ROWS:,} rows"
        whole = list(islice(cycle(whole), examples))
    drops = data.overlong in ("drop", "error")
    kept = [min(tokens, max_seq_length) for tokens in whole if tokens <= max_seq_length or not drops]
    lost_tokens = sum(whole) - sum(kept)
    return EstimatedRows(kept, len(whole) - len(kept), lost_tokens, max(whole, default=0), how, error)


def rates_for(vocabulary: int | None) -> tuple[TokenRates, float]:
    """The rates of the family whose vocabulary has about this size, and their error; the mean of all for others."""
    near = [rates for size, rates in RATES.items() if vocabulary and abs(vocabulary / size - 1) < 0.03]
    return (near[0], ERROR) if near else (UNKNOWN, ERROR_OF_UNKNOWN)


def count_tokens(text: str, rates: TokenRates) -> int:
    """About how many tokens `text` is; each control token of a chat template is one."""
    total = 0.0
    for piece in _PIECE.finditer(_CONTROL.sub("", text)):
        length = len(piece[0])
        if piece.lastindex == 1:
            total += rates.word + rates.letter * max(0, length - 6)
        elif piece.lastindex == 2:
            total += rates.digit
        elif piece.lastindex == 3:
            wide = sum(letter >= _FIRST_WIDE for letter in piece[0])
            total += wide * rates.wide + (length - wide) * rates.other
        else:
            total += rates.sign
    return max(1, round(total) + len(_CONTROL.findall(text)))


def _texts(
    data: DataSection,
    recipe_dir: Path,
    seed: int,
    held_out: frozenset[int],
    template: ChatTemplate,
    own: ClassificationSection | None,
) -> Iterator[str]:
    """Each training row as the text that is tokenized, of a pair the longer one; no rows that the run rejects."""
    number = -1
    for source in training_sources(data):
        data_format, times = format_of(source, data, recipe_dir, own), copies(source, recipe_dir, seed)
        for where, row in source.rows(recipe_dir):
            number, repeats = number + 1, next(times)
            if number in held_out:
                continue
            try:
                example = parse_row(row, where, data_format, data, own)
                tokens = {"bos_token": "<s>", "eos_token": "</s>"}
                asked = None if own is None else "\n".join(message.content for message in example.messages[:-1])
                sides = [example.messages, *([example.rejected] if example.rejected else [])]
                texts = [
                    asked or example.text or template.render(one, tokens, where=where, tools=example.tools)
                    for one in sides
                ]
            except DataError:
                continue
            for _ in range(repeats):
                yield max(texts, key=len)
