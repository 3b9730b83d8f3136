"""The model card beside exported weights."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from fastft.console import redact
from fastft.exports.parity import Verdict
from fastft.probe.base_model import licence
from fastft.recipe.export_formats import FOLDER_FORMATS, GGUF
from fastft.recipe.hub_id import is_hub_id


@dataclass(frozen=True)
class CardFacts:
    """The facts of a training run for its model card."""

    base_model: str
    """A Hub id, not a path of this machine."""
    base_license: str | None = None
    data_fingerprint: str | None = None
    """SHA-256 of the training rows."""
    recipe: str | None = None
    """The recipe's text."""
    figures: dict[str, str] = field(default_factory=dict)
    """Name and value of each measured figure, for instance {"exact match": "97.5 % of 40 rows"}."""
    proof: str | None = None
    """What comparing it with the trained model found, where no verdict says so."""


def card_facts(
    base: str, folder: Path, data_sha256: str | None, recipe: str | None, figures: dict[str, str]
) -> CardFacts:
    """The facts of a run for its card: the base by its name, its licence from `folder`, and the measured figures."""
    name = base if is_hub_id(base) or base.startswith("package:") else Path(base).name
    return CardFacts(name, licence(folder), data_sha256, recipe, figures)


def model_card(facts: CardFacts, kind: str, path: Path, verdict: Verdict | None) -> str:
    """The card in Markdown with the Hub's YAML head; every value is quoted, so that no name can add fields."""
    library = FOLDER_FORMATS[kind].library if kind in FOLDER_FORMATS else GGUF
    lines = ["---", f"base_model: {_quoted(facts.base_model)}", f"library_name: {library}"]
    if facts.base_license:
        lines.append(f"license: {_quoted(facts.base_license)}")
    lines += ["tags: [fastft, lora]", "---", "", f"# {_plain(path.name)}", ""]
    lines += [f"Fine-tuned from {_plain(facts.base_model)} with fastft ({kind}).", ""]
    if facts.figures:
        lines += ["| measured | value |", "| --- | --- |"]
        lines += [f"| {_plain(name)} | {_plain(value)} |" for name, value in facts.figures.items()] + [""]
    lines += _proof(verdict) if facts.proof is None else [f"This export was {_plain(facts.proof)}.", ""]
    if facts.data_fingerprint:
        lines += [f"Training data (SHA-256): `{_plain(facts.data_fingerprint)}`", ""]
    if facts.recipe:
        # A fence longer than any in the recipe cannot be closed by it.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", facts.recipe)), default=0))
        lines += ["## Recipe", "", f"{fence}toml", facts.recipe.rstrip("\n"), fence, ""]
    return redact("\n".join(lines))


def _proof(verdict: Verdict | None) -> list[str]:
    if verdict is None or not (verdict.reasons or verdict.prompts or verdict.tensors):
        return ["This export was not compared with the trained model.", ""]
    if not verdict.passed:
        return ["**FAILED**: do not use these weights.", "", *(f"- {_plain(reason)}" for reason in verdict.reasons), ""]
    again = (
        f"{verdict.rows} rows of {verdict.tensors} tensors were computed again from base and adapter: all are right."
    )
    if not verdict.prompts:
        return [f"Not compared with the trained model in conversations. {again}", ""]
    return [
        f"Compared with the trained model on {verdict.prompts} held-out prompts ({verdict.positions} answer tokens):"
        f" the same likeliest token at {verdict.top1_agreement:.2%}, mean KL divergence {verdict.mean_kl:.2e} nats"
        f" (the base model: {verdict.mean_kl_base_trained:.2e}). {again if verdict.tensors else ''}".rstrip(),
        "",
    ]


def _quoted(text: str) -> str:
    # A JSON string is a YAML string, and quotes are escaped in it.
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """One line without what Markdown or HTML would take for markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "'")
