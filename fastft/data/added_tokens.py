"""Tokens that a recipe adds to the tokenizer of its base model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.tokenizer import TokenizerFacts, load_tokenizer
from fastft.errors import Problem, RecipeError, Where
from fastft.recipe.token_rules import TOKEN_FIELDS

if TYPE_CHECKING:
    from fastft.data.rows import Rows
    from fastft.recipe.model import DataSection


def tokenizer_of(data: DataSection, folder: Path, locate: Callable[[str], Where]) -> TokenizerFacts:
    """The tokenizer in `folder` with the tokens that `data` adds; their ids follow its own, in the order of the lists.

    Raises:
        MachineError: tokenizer.json is missing or damaged.
        RecipeError: it has one of the tokens already.
    """
    facts = load_tokenizer(folder)
    lists = (data.add_tokens, data.add_special_tokens)
    if not any(lists):
        return facts
    problems = [
        Problem(locate(field), field, wrong, "remove it from the list: rows may use it as it is", json.dumps(text))
        for field, texts in zip(TOKEN_FIELDS, lists, strict=True)
        for text in texts
        if (wrong := _is_there(facts, text)) is not None
    ]
    if problems:
        raise RecipeError(problems)
    from tokenizers import AddedToken

    for texts, special in zip(lists, (False, True), strict=True):
        # Not normalized: the text of a token is what the recipe says, in rows as in llama.cpp.
        facts.tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text in texts])
    digest = hashlib.sha256(json.dumps([facts.sha256, *map(list, lists)]).encode()).hexdigest()
    special_tokens = facts.special_tokens | set(data.add_special_tokens)
    return dataclasses.replace(facts, special_tokens=special_tokens, sha256=digest, added=(*lists[0], *lists[1]))


def _is_there(facts: TokenizerFacts, text: str) -> str | None:
    """What is wrong with adding `text`: it is one token of the vocabulary as it is."""
    ids = facts.tokenizer.encode(text, add_special_tokens=False).ids
    own = facts.id_of(text)
    if own is None and len(ids) == 1 and facts.tokenizer.decode(ids, skip_special_tokens=False) == text:
        own = ids[0]
    return None if own is None else f"the tokenizer has this token already, as id {own}"


def unused_tokens(facts: TokenizerFacts, rows: Rows) -> tuple[str, ...]:
    """The added tokens that no row holds."""
    missing = {facts.id_of(text): text for text in facts.added}
    for block in rows.blocks if missing else ():
        for token in set(block.ids) & missing.keys():
            del missing[token]
        if not missing:
            break
    return tuple(missing.values())


def write_grown(facts: TokenizerFacts, folder: Path, out: Path) -> None:
    """Write the tokenizer of `facts`, which was read from `folder`, to the existing folder `out`, as training saves it.

    A tokenizer.model stays behind: it does not know the added tokens, and the base has it.
    """
    facts.tokenizer.save(str(out / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
