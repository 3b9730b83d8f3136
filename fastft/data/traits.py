"""What the rows of a data set hold: tools, reasoning, system texts, cut answers, scripts, tokens, personal data."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastft.data.example import Example
from fastft.data.personal import kinds_of
from fastft.errors import Where

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts tokenized in one call.
_BATCH = 1000
# Characters of a row that tell its script.
_SAMPLE = 4000
# The first letter of the blocks of Unicode 16 that hold a script's common letters, in order. The last block is open.
_BLOCKS = (
    (0x41, "Latin"), (0x370, "Greek"), (0x400, "Cyrillic"), (0x530, "Armenian"), (0x590, "Hebrew"), (0x600, "Arabic"),
    (0x700, "other"), (0x900, "Devanagari"), (0x980, "Bengali"), (0xA00, "other"), (0xB80, "Tamil"), (0xC00, "Telugu"),
    (0xC80, "other"), (0xE00, "Thai"), (0xE80, "other"), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "other"),
    (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "other"), (0x3040, "Japanese"), (0x3100, "other"), (0x3400, "Han"),
    (0xA000, "other"), (0xAC00, "Hangul"), (0xD7B0, "other"), (0xF900, "Han"), (0xFB00, "other"), (0x20000, "Han"),
)  # fmt: skip
_STARTS = [start for start, _ in _BLOCKS]
# Japanese mixes kana with Han: a row with this share of kana is Japanese.
_KANA_SHARE = 0.1
# An answer whose last line has this many words and ends in a letter was probably cut.
_LONG_LINE_WORDS = 12


@dataclass
class Traits:
    """Rows by what they hold. `tokens`: of the text without a template, None without a tokenizer."""

    rows: int = 0
    system: int = 0
    tools: int = 0
    reasoning: int = 0
    cut_answers: int = 0
    characters: int = 0
    tokens: int | None = None


@dataclass
class Collector:
    """Collects the traits of rows, by source."""

    tokenizer: Tokenizer | None = None
    personal: bool = True
    by_source: dict[str, Traits] = field(default_factory=lambda: defaultdict(Traits))
    scripts: Counter[str] = field(default_factory=Counter)
    # The rows by kind of personal data.
    personal_rows: dict[str, list[Where]] = field(default_factory=lambda: defaultdict(list))
    cut: list[Where] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    _waiting: list[str] = field(default_factory=list)

    def add(self, example: Example, source: str) -> None:
        """Add a row of `source`."""
        traits = self.by_source[source]
        texts = list(_texts(example))
        traits.rows += 1
        traits.system += any(message.role == "system" for message in example.messages)
        traits.tools += bool(example.tools) or any("tool_calls" in message.extra for message in example.messages)
        traits.reasoning += any("reasoning_content" in message.extra for message in example.messages)
        traits.characters += sum(map(len, texts))
        if any(is_cut(example.messages[index].content) for index in example.answers):
            traits.cut_answers += 1
            self.cut.append(example.where)
        self.scripts[script_of(texts)] += 1
        self.unused.update(example.unused)
        if self.personal:
            for kind in {kind for text in texts for kind in kinds_of(text)}:
                self.personal_rows[kind].append(example.where)
        self._waiting += texts
        if len(self._waiting) >= _BATCH:
            self.count_tokens(source)

    def count_tokens(self, source: str) -> None:
        """Count the tokens of the rows of `source` that are not counted yet."""
        if self.tokenizer is not None and self._waiting:
            made = self.tokenizer.encode_batch_fast(self._waiting, add_special_tokens=False)
            traits = self.by_source[source]
            traits.tokens = (traits.tokens or 0) + sum(len(encoding) for encoding in made)
        self._waiting = []


def is_cut(answer: str) -> bool:
    """Whether an answer seems to end before its end: inside a block of code, after a comma, or within a long line."""
    text = answer.rstrip()
    if not text:
        return False
    if text.count("```") % 2 or text[-1] in ",;([{":
        return True
    last = text.rsplit("\n", 1)[-1]
    return text[-1].isalpha() and len(last.split()) >= _LONG_LINE_WORDS


def script_of(texts: list[str]) -> str:
    """The script of most letters, "none" without letters."""
    sample = "".join(texts)[:_SAMPLE]
    if sample.isascii():
        return "Latin" if re.search("[A-Za-z]", sample) else "none"
    counts: Counter[str] = Counter()
    for letter, count in Counter(sample).items():
        if letter.isalpha():
            counts[_BLOCKS[bisect_right(_STARTS, ord(letter)) - 1][1]] += count
    if counts["Japanese"] > _KANA_SHARE * counts.total():
        return "Japanese"
    return max(counts, key=lambda name: counts[name]) if counts.total() else "none"


def _texts(example: Example) -> Iterator[str]:
    if example.text is not None:
        yield example.text
    for message in example.messages:
        yield message.content
        if "reasoning_content" in message.extra:
            yield str(message.extra["reasoning_content"])
