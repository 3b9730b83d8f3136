"""Whether llama.cpp reads text as training did, proven with a GGUF file that holds only the tokenizer.

Where it does not, `agree` tries what the file can say: whether a beginning token and a space are added, and the family
in the model's name. What no choice makes equal is refused, or named where only odd text differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastft.data.tokenizer import TokenizerFacts, load_tokenizer
from fastft.errors import DataError, MachineError, Problem, RecipeError, Where
from fastft.exports.gguf.vocabulary import CONTROL, USER_DEFINED, Vocabulary
from fastft.inference.conversation import render_chat
from fastft.inference.llamacpp import GgufVocabulary

ODD_TEXTS = 200
PLACE = "PLACE-OF-THE-TEXT"
# A tokenizer that normalizes Unicode, as Qwen's, differs in a few odd texts; more than this is another tokenizer.
MOST_UNEQUAL = 0.05
# Words of many scripts, digits, white space, code, and texts that look like special tokens.
PIECES = (
    "hello", "Hello, world!", "don't", "I'LL", "naïve", "Straße", "日本語", "こんにちは", "안녕하세요", "привет",
    "مرحبا", "שלום", "ไทย", "हिन्दी", "🚀", "👩\u200d👧", "🇫🇷", "ﬁ", "½", "²", "Å", "e\u0301", "\u00a0", "\u200b",
    "\u3000", "…", "—", "“x”", "0", "7", "42", "007", "1234", "12345678", "3.14", "1,000,000", "-5", "1e-9", "0x1F",
    "٣٤", "５", " ", "  ", "   ", "     ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n ", "\n\t", "a\n",
    "\nb", "def f(x):\n    return x", '{"a": [1, 2]}', "</p>", "<b>", "[INST]", "<<SYS>>", "http://x.org/a?b=c#d",
    "C:\\a", "#!/bin/sh", "a_b", "camelCase", "SHOUT", "x" * 40, "-" * 20, "=" * 7, "...", "?!", "@#$%^&*", "~`|",
    "(())", "<|", "|>", "▁", "Ġ",
)  # fmt: skip


_agreed: dict[tuple[object, ...], Vocabulary] = {}


@dataclass(frozen=True)
class _Text:
    text: str
    ids: list[int]
    """As training has them."""
    is_odd: bool


def odd_texts() -> tuple[str, ...]:
    """ODD_TEXTS strings: single pieces, then pieces joined by chance, always the same."""
    chance = np.random.default_rng(0)
    joined = ("".join(chance.choice(PIECES, size=chance.integers(2, 6))) for _ in range(ODD_TEXTS))
    return tuple(itertools.islice(itertools.chain(PIECES, joined), ODD_TEXTS))


def agree(vocabulary: Vocabulary, folder: Path, architecture: str, prompts: tuple[str, ...] = ()) -> Vocabulary:
    """`vocabulary` with the settings by which llama.cpp makes the ids of the tokenizer in `folder`.

    `prompts` are rendered prompts of training, which must all agree.

    Raises:
        RecipeError: no setting makes a prompt, or the greater part of odd texts, agree.
        MachineError: llama.cpp cannot load the tokenizer.
    """
    if not (folder / "tokenizer.json").is_file():
        return vocabulary
    facts = load_tokenizer(folder)
    # The same tokenizer is asked for once an artefact, and at the rehearsal.
    key = (
        facts.sha256,
        architecture,
        len(vocabulary.tokens),
        str(vocabulary.special),
        vocabulary.chat_template,
        prompts,
    )
    if key not in _agreed:
        _agreed.clear()
        _agreed[key] = _settle(vocabulary, folder, architecture, list(_texts(vocabulary, facts, prompts)))
    found = _agreed[key]
    settings = {name: getattr(found, name) for name in ("family", "adds_bos", "space_prefix", "notes")}
    return dataclasses.replace(vocabulary, **settings)


def _settle(vocabulary: Vocabulary, folder: Path, architecture: str, texts: list[_Text]) -> Vocabulary:
    best, unequal = vocabulary, _unequal(vocabulary, architecture, texts)
    if unequal:
        for candidate in _candidates(vocabulary, architecture):
            try:
                found = _unequal(candidate, architecture, texts)
            except MachineError:  # a family whose tokens are not there
                continue
            if _weight(found) < _weight(unequal):
                best, unequal = candidate, found
            if not unequal:
                break
    if not unequal:
        return best
    first, read = unequal[0]
    if not first.is_odd or len(unequal) > MOST_UNEQUAL * len(texts):
        wrong = f"llama.cpp reads {len(unequal)} of {len(texts)} texts otherwise than training: {_shown(first, read)}"
        instead = "use another data.chat_template, or export without gguf"
        raise RecipeError(Problem(Where(str(folder / "tokenizer.json")), "", wrong, instead))
    note = f"llama.cpp reads {len(unequal)} of {len(texts)} odd texts otherwise: {_shown(first, read)}"
    return dataclasses.replace(best, notes=(*best.notes, note))


def _texts(vocabulary: Vocabulary, facts: TokenizerFacts, prompts: Sequence[str]) -> Iterator[_Text]:
    for prompt in prompts:
        yield _text(prompt, facts, is_odd=False)
    special = {name: text for name, text in facts.template_tokens.items() if name in ("bos_token", "eos_token")}
    template = vocabulary.chat_template
    around = PLACE
    if template is not None:
        # A template that wants more than a question is tried on the prompts alone.
        with contextlib.suppress(DataError):
            around = render_chat(template, [{"role": "user", "content": PLACE}], special)
            yield _text(around.replace(PLACE, "What is it?"), facts, is_odd=False)
    for odd in odd_texts():
        yield _text(around.replace(PLACE, odd), facts, is_odd=True)
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    tokens = [token.decode() for token, kind in pairs if kind in (CONTROL, USER_DEFINED)]
    for token in tokens[:16]:
        for text in (f"{token}text", f"a{token} text"):
            yield _text(text, facts, is_odd=True)


def _text(text: str, facts: TokenizerFacts, is_odd: bool) -> _Text:
    bos = facts.bos_token if facts.adds_bos else None
    whole = text if bos is None or text.startswith(bos) else bos + text
    return _Text(text, facts.tokenizer.encode(whole, add_special_tokens=False).ids, is_odd)


def _candidates(vocabulary: Vocabulary, architecture: str) -> Iterator[Vocabulary]:
    families = (None, "phi-3") if architecture == "phi3" else (None,)
    prefixes = (vocabulary.space_prefix, *(one for one in (False, True) if one is not vocabulary.space_prefix))
    for family, adds_bos, prefix in itertools.product(families, (True, False), prefixes):
        if not (adds_bos and "bos" not in vocabulary.special):
            yield dataclasses.replace(vocabulary, family=family, adds_bos=adds_bos, space_prefix=prefix)


def _unequal(vocabulary: Vocabulary, architecture: str, texts: Sequence[_Text]) -> list[tuple[_Text, list[int]]]:
    """The texts that llama.cpp reads otherwise with what it makes of them, prompts first."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(file, architecture)
        writer.add_name(vocabulary.family or "tokenizer")
        vocabulary.add_to(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with GgufVocabulary(file) as model:
            read = [(text, model.chat_tokens(text.text)) for text in texts]
    return [(text, ids) for text, ids in read if ids != text.ids]


def _weight(unequal: list[tuple[_Text, list[int]]]) -> tuple[int, int]:
    return sum(not text.is_odd for text, _ in unequal), len(unequal)


def _shown(text: _Text, read: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(text.ids, read, strict=False)) if a != b), len(text.ids))
    trained, other = text.ids[place : place + 4], read[place : place + 4]
    return f"{text.text[-60:]!r} has the ids {other} from position {place} on, {trained} in training"
