"""The tokenizer as llama.cpp wants it: tokens, merges or scores, pre-tokenizer name, special ids, chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastft.errors import Problem, RecipeError, Where
from fastft.exports.gguf.architectures import not_for_gguf
from fastft.exports.merged import stopping_ids
from fastft.exports.trained import read_config
from fastft.probe.model_config import read_object

# gguf.TokenType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# The regular expressions by which byte-level tokenizers split text first; llama.cpp has them built in under a name.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_START, _UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_AFTER_CASED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(ending: str) -> str:
    return f"{_START}{_UPPER}*{_LOWER}+{ending}|{_START}{_UPPER}+{_LOWER}*{ending}"


SPLITS = {
    f"{_WORDS}{{1,3}}{_REST}": "llama-bpe",
    f"{_WORDS}{_REST}": "qwen2",
    rf"{_cased('')}|\p{{N}}{_AFTER_CASED}": "tekken",
    # Phi-4-mini: o200k.
    _cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + rf"|\p{{N}}{{1,3}}{_AFTER_CASED}": "gpt-4o",
    # Phi-4: cl100k, which llama.cpp has under the name of the first model that used it.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+": "dbrx",
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer in a GGUF file; lists are by token id."""

    model: str
    """"gpt2" for byte-level BPE, "llama" for SentencePiece."""
    pre: str
    """llama.cpp's name of the pre-tokenizer."""
    tokens: list[bytes]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    """bos, eos, unk, pad and others: their ids."""
    adds_bos: bool = False
    adds_eos: bool = False
    space_prefix: bool | None = None
    chat_template: str | None = None
    family: str | None = None
    """What the model's name must have in it: llama.cpp knows by "phi-3" to skip white space after special tokens."""
    notes: tuple[str, ...] = ()
    """Notes for the user: what is left out, and what llama.cpp reads otherwise."""

    @property
    def size_bytes(self) -> int:
        """The bytes in the file, about: each string has 8 bytes of length, each token 4 of type."""
        merges = sum(len(merge.encode()) + 8 for merge in self.merges)
        return sum(len(token) + 12 for token in self.tokens) + merges + 4 * len(self.scores) + 4096

    def add_to(self, writer: Any) -> None:
        """Write it with a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for kind, add in (
            ("bos", writer.add_bos_token_id),
            ("eos", writer.add_eos_token_id),
            ("eot", writer.add_eot_token_id),
            ("unk", writer.add_unk_token_id),
            ("sep", writer.add_sep_token_id),
            ("pad", writer.add_pad_token_id),
        ):
            if kind in self.special:
                add(self.special[kind])
        writer.add_add_bos_token(self.adds_bos)
        if self.adds_eos:
            writer.add_add_eos_token(True)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(
    folder: Path,
    base: Path,
    size: int,
    architecture: str,
    chat_template: str | None = None,
    end_ids: Sequence[int] = (),
) -> Vocabulary:
    """The tokenizer of `folder`, padded to the `size` rows of the embedding.

    `base` has the generation config, and the SentencePiece model where `folder` lacks it (transformers 5 does not save
    it with an adapter). `chat_template` takes the place of the folder's own. The first of `end_ids` becomes the end
    of turn where it is not the end token already.

    Raises:
        RecipeError: the tokenizer is of a kind that llama.cpp or this reader does not know, or larger than `size`.
        MachineError: a file is missing or damaged.
    """
    tokenizer = _read(folder / "tokenizer.json")
    settings = _read(folder / "tokenizer_config.json")
    pieces = next((path for path in (folder / "tokenizer.model", base / "tokenizer.model") if path.is_file()), None)
    special = _special_ids(settings, tokenizer, base)
    if end_ids and end_ids[0] != special.get("eos"):
        special["eot"] = end_ids[0]
    prefix = settings.get("add_prefix_space")
    template = _chat_template(folder, base, settings) if chat_template is None else chat_template
    if _is_byte_level(tokenizer):
        found = {index: (text.encode(), 0.0, NORMAL) for text, index in tokenizer["model"]["vocab"].items()}
        tokens, _, types, notes = _padded(found, tokenizer.get("added_tokens", []), size, folder)
        adds_bos, adds_eos = _adds(folder / "tokenizer.json", special)
        pre, merges = pre_tokenizer(tokenizer, folder), _merges(tokenizer["model"]["merges"])
        return Vocabulary(
            "gpt2",
            pre,
            tokens,
            types,
            merges=merges,
            special=special,
            adds_bos=adds_bos,
            adds_eos=adds_eos,
            space_prefix=prefix if architecture == "llama" else None,
            chat_template=template,
            notes=notes,
        )
    found = _from_sentencepiece(pieces) if pieces is not None else _from_byte_fallback(tokenizer, folder)
    added = tokenizer.get("added_tokens") or [
        {"id": int(index), **entry} for index, entry in settings.get("added_tokens_decoder", {}).items()
    ]
    tokens, scores, types, notes = _padded(found, added, size, folder)
    adds_bos = settings.get("add_bos_token") is not False
    if tokenizer:
        adds_bos, _ = _adds(folder / "tokenizer.json", special)
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=scores,
        special=special,
        adds_bos=adds_bos,
        adds_eos=settings.get("add_eos_token") is True,
        space_prefix=False if architecture.startswith("gemma") else prefix,
        chat_template=template,
        notes=notes,
    )


def pre_tokenizer(tokenizer: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text before it merges.

    Raises:
        RecipeError: no name is known; a wrong one would cut text, and above all digits, in other places.
    """
    steps = _steps(tokenizer)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0].get("pattern", {}).get("Regex", "")
        if pattern in SPLITS:
            return SPLITS[pattern]
    wrong = "llama.cpp's name for this pre-tokenizer is not known"
    raise not_for_gguf(Where(str(folder / "tokenizer.json")), "pre_tokenizer", wrong, json.dumps(steps)[:200])


def _read(file: Path) -> dict[str, Any]:
    # A tokenizer.json may be larger than a config.json, and its tokens are keys of any name.
    return read_config(file, read_object) if file.is_file() else {}


def _steps(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    steps = tokenizer.get("pre_tokenizer") or {}
    found: list[dict[str, Any]] = steps.get("pretokenizers", [steps])
    return found


def _is_byte_level(tokenizer: dict[str, Any]) -> bool:
    is_bpe = tokenizer.get("model", {}).get("type") == "BPE"
    return is_bpe and any(step.get("type") == "ByteLevel" for step in _steps(tokenizer))


def _looks_special(text: str) -> bool:
    """Whether a token is a control token that its model may leave unmarked, by the rule of llama.cpp's converter."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>")))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _added(entry: dict[str, Any]) -> tuple[bytes, int]:
    text = entry["content"]
    if entry.get("special") or _looks_special(text):
        return text.encode(), CONTROL
    return text.replace("▁", " ").encode(), USER_DEFINED


def _padded(
    found: dict[int, tuple[bytes, float, int]], added: list[dict[str, Any]], size: int, folder: Path
) -> tuple[list[bytes], list[float], list[int], tuple[str, ...]]:
    """Texts, scores and types by token id, with `added` tokens in place of what was found, up to `size`; and notes.

    Added tokens beyond the embedding are left out, as Gemma 3 has one: the model cannot have seen them.
    """
    beyond = [entry["content"] for entry in added if entry["id"] >= size]
    for entry in added:
        if entry["id"] < size:
            text, kind = _added(entry)
            if found.get(entry["id"], (b"", 0.0, NORMAL))[2] == UNKNOWN:
                kind = UNKNOWN  # the unknown token is added too, but is no control token
            found[entry["id"]] = (text, -1000.0, kind)
    if max(found) >= size:
        wrong = f"the tokenizer has ids up to {max(found)}, the model's embedding only {size} rows"
        instead = "use the tokenizer that the model was trained with"
        raise RecipeError(Problem(Where(str(folder / "tokenizer.json")), "", wrong, instead))
    padded = [found.get(index, (f"[PAD{index}]".encode(), -10000.0, UNUSED)) for index in range(size)]
    texts, scores = [text for text, _, _ in padded], [score for _, score, _ in padded]
    types = [kind for _, _, kind in padded]
    notes: tuple[str, ...] = ()
    if beyond:
        notes = (f"left out {', '.join(beyond[:3])}: the model's embedding has only {size} rows",)
    return texts, scores, types, notes


def _merges(merges: list[Any]) -> list[str]:
    """Merges as "left right"; a space inside a part is written as byte-level BPE writes it."""
    return [merge if isinstance(merge, str) else " ".join(part.replace(" ", "Ġ") for part in merge) for merge in merges]


def _from_sentencepiece(file: Path) -> dict[int, tuple[bytes, float, int]]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    model.LoadFromFile(str(file))
    found = {}
    for index in range(model.vocab_size()):
        kind = NORMAL
        if model.IsUnknown(index):
            kind = UNKNOWN
        elif model.IsControl(index):
            kind = CONTROL
        elif model.IsUnused(index):
            kind = UNUSED
        elif model.IsByte(index):
            kind = BYTE
        found[index] = (model.IdToPiece(index).encode(), model.GetScore(index), kind)
    return found


def _from_byte_fallback(tokenizer: dict[str, Any], folder: Path) -> dict[int, tuple[bytes, float, int]]:
    """SentencePiece from its conversion to BPE: a piece's score is how early a merge makes it."""
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        wrong = "neither byte-level BPE nor SentencePiece"
        raise not_for_gguf(Where(str(folder)), "tokenizer", wrong, str(model.get("type")))
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    found = {}
    for text, index in model["vocab"].items():
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        score = 0.0 if is_byte else -float(ranks.get(text, len(ranks) + index))
        kind = BYTE if is_byte else UNKNOWN if text == model.get("unk_token") else NORMAL
        found[index] = (text.encode(), score, kind)
    return found


def _special_ids(settings: dict[str, Any], tokenizer: dict[str, Any], base: Path) -> dict[str, int]:
    """bos, eos, unk, sep, pad from the tokenizer, else the model's config; eos is one that generation stops at."""
    by_text = dict(tokenizer.get("model", {}).get("vocab", {}))
    by_text |= {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    decoder = settings.get("added_tokens_decoder", {})
    by_text |= {entry["content"]: int(index) for index, entry in decoder.items()}
    found: dict[str, int] = {}
    for kind in ("bos", "eos", "unk", "sep", "pad"):
        text = settings.get(f"{kind}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if text in by_text:
            found[kind] = by_text[text]
    config = _read(base / "config.json")
    for kind in ("bos", "eos", "unk", "sep", "pad"):
        index = config.get(f"{kind}_token_id")
        index = index[0] if isinstance(index, list) else index
        if isinstance(index, int):
            found.setdefault(kind, index)
    ends = stopping_ids(_read(base / "generation_config.json"))
    if ends and found.get("eos") not in ends:
        found["eos"] = ends[0]
    return found


def _adds(file: Path, special: dict[str, int]) -> tuple[bool, bool]:
    """Whether the tokenizer itself puts bos before a text, and eos after it."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(file))
    bare, whole = loaded.encode("a", add_special_tokens=False).ids, loaded.encode("a").ids
    if len(whole) == len(bare):
        return False, False
    adds_bos = whole[:1] != bare[:1] and whole[0] == special.get("bos")
    return adds_bos, whole[-1:] != bare[-1:] and whole[-1] == special.get("eos")


def _chat_template(folder: Path, base: Path, settings: dict[str, Any]) -> str | None:
    """The template beside the tokenizer, in its config, or with the base."""
    for place in (folder, base):
        if (place / "chat_template.jinja").is_file():
            return (place / "chat_template.jinja").read_text(encoding="utf-8")
        found = (settings if place == folder else _read(place / "tokenizer_config.json")).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            return next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    return None
