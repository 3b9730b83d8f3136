"""The tokenizer of a model folder and its control tokens, loaded without transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft.errors import MachineError, Problem, Where

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer that training uses, and the control tokens of its folder."""

    tokenizer: Tokenizer
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    # The model's own chat template, None for a base model without one.
    chat_template: str | None
    # The tokens that end a generation: eos_token_id of generation_config.json, else of config.json, else eos_token.
    stop_tokens: tuple[str, ...]
    # Every string that the tokenizer turns into one control token anywhere in a text.
    special_tokens: frozenset[str]
    # Whether the tokenizer itself puts bos_token before a plain text.
    adds_bos: bool
    # SHA-256 of tokenizer.json, and of the tokens that the recipe adds.
    sha256: str
    # The tokens that the recipe adds, special ones among them: messages may contain these.
    added: tuple[str, ...] = ()

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, or None."""
        found: int | None = self.tokenizer.token_to_id(token)
        return found

    def ids_of(self, tokens: Iterable[str]) -> frozenset[int]:
        """The ids of those `tokens` that the vocabulary has."""
        return frozenset(found for found in map(self.id_of, tokens) if found is not None)

    @property
    def template_tokens(self) -> dict[str, str]:
        """The control tokens of the model, by their names in chat templates."""
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        named |= {"pad_token": self.pad_token, "unk_token": self.unk_token}
        return {name: token for name, token in named.items() if token is not None}

    @cached_property
    def special_openings(self) -> frozenset[str]:
        """The first two characters of each special token: a text without any of them has no special token."""
        return frozenset(token[:2] for token in self.special_tokens)

    @cached_property
    def special_letters(self) -> frozenset[str]:
        """The first character of each special token: an even faster check."""
        return frozenset(token[:1] for token in self.special_tokens)

    @property
    def end_of_text(self) -> str | None:
        """A token after which this model stops: eos_token if it is one of `stop_tokens`, else the first of them.

        A converted GGUF file can have an eos_token that never stops its model, so generation_config.json wins.
        """
        if self.eos_token in self.stop_tokens or not self.stop_tokens:
            return self.eos_token
        return self.stop_tokens[0]


def load_tokenizer(folder: Path) -> TokenizerFacts:
    """The tokenizer of a model folder.

    Raises:
        MachineError: tokenizer.json is missing or damaged.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        wrong = "the model folder has no tokenizer.json"
        instead = "save it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        raise MachineError(Problem(Where(str(path)), "model.id", wrong, instead))
    content = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        wrong = f"damaged: {' '.join(str(error).split())[:200]}"
        raise MachineError(Problem(Where(str(path)), "model.id", wrong, "fetch the model again")) from error
    # A truncation or padding setting in the file would change what is trained.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _json(folder / "tokenizer_config.json")
    return make_facts(
        tokenizer,
        bos_token=_token(config.get("bos_token")),
        eos_token=_token(config.get("eos_token")),
        pad_token=_token(config.get("pad_token")),
        unk_token=_token(config.get("unk_token")),
        chat_template=_chat_template(folder, config),
        stop_ids=_stop_ids(folder),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def make_facts(
    tokenizer: Tokenizer,
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
    unk_token: str | None = None,
    chat_template: str | None = None,
    stop_ids: tuple[int, ...] = (),
    sha256: str = "",
) -> TokenizerFacts:
    """The facts of a tokenizer that is already in memory."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    special |= {token for token in (bos_token, eos_token) if token}
    stops = tuple(token for token in map(tokenizer.id_to_token, stop_ids) if token is not None)
    bos_id = tokenizer.token_to_id(bos_token) if bos_token else None
    return TokenizerFacts(
        tokenizer=tokenizer,
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
        unk_token=unk_token,
        chat_template=chat_template,
        stop_tokens=stops or ((eos_token,) if eos_token else ()),
        special_tokens=frozenset(special),
        adds_bos=bos_id is not None and tokenizer.encode("a").ids[:1] == [bos_id],
        sha256=sha256,
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        wrong = f"damaged: {error}"
        raise MachineError(Problem(Where(str(path)), "model.id", wrong, "fetch the model again")) from error
    return value if isinstance(value, dict) else {}


def _token(value: object) -> str | None:
    """The text of a token, which is a string or an object with `content` in the file."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The default chat template: chat_template.jinja first, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _stop_ids(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list):
            return tuple(entry for entry in value if isinstance(entry, int))
    return ()
