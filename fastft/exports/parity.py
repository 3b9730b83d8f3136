"""The parity gate: does an artefact match the trained model? Figures, bars and reasons; no torch.

The engine makes a `Reference` from the trained model. An artefact passes when its own runtime reads the same tokens,
predicts the same next tokens, is nearer to the trained model than to the base, and stops where it should.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import computed_field

from fastft.data.example import Example
from fastft.errors import FastftError
from fastft.files.tensors import Floats
from fastft.inference.conversation import render_chat
from fastft.recipe.export_formats import FOLDER_FORMATS
from fastft.recipe.quantizations import QUANTIZATIONS

# Two tokens of the trained model that are nearer than this, in nats, may swap by rounding: a mean KL divergence of
# 2e-3, as q8_0 has, moves a logit by some sqrt(2 * 2e-3) = 0.06.
NEAR_TIE = 0.1
# Mean and worst KL divergence of a model in bfloat16 from itself in float32: three times the largest measured
# (benchmarks/kl_bars.json).
ROUNDED_KL = (7e-3, 2e-1)
# Held-out conversations that an export is compared on; a hundred answer tokens show a wrong merge or template.
COMPARED = 16
ChatMessages = Sequence[dict[str, str]]
"""Messages with `role` and `content`, the last one an answer."""


def comparable(examples: Iterable[Example]) -> tuple[tuple[dict[str, str], ...], ...]:
    """The messages of the first COMPARED conversations, each up to its last answer."""
    found = []
    for example in islice((example for example in examples if example.messages), COMPARED):
        last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
        found.append(tuple({"role": turn.role, "content": turn.content} for turn in example.messages[: last + 1]))
    return tuple(found)


@dataclass(frozen=True)
class Passage:
    """One held-out conversation as the trained model reads it."""

    messages: tuple[dict[str, str], ...]
    """All messages; the last one is the answer."""
    tokens: tuple[int, ...]
    """Prompt and answer as they were tokenized for training."""
    prompt_tokens: int
    """The number of prompt tokens among them."""

    @property
    def positions(self) -> slice:
        """The rows of the logits that predict the answer."""
        return slice(self.prompt_tokens - 1, len(self.tokens) - 1)


@dataclass(frozen=True)
class Reference:
    """The logits of the trained model and its base for the held-out passages."""

    passages: tuple[Passage, ...]
    trained: tuple[Floats, ...]
    """For each passage (answer tokens, vocabulary): logits of the trained model."""
    base: tuple[Floats, ...] | None
    """The same of the base model; None with full fine-tuning."""
    chat_template: str
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, for the template."""
    end_ids: tuple[int, ...]
    """The tokens at which an answer ends."""
    is_rounded: bool = False
    """The logits were computed in 16 bits, as on a GPU."""


@dataclass(frozen=True)
class Verdict:
    """The outcome for one artefact: figures to keep, and the reasons why it failed (none: it passed)."""

    artefact: str
    kind: str
    """merged_16bit, or the GGUF quantization."""
    reasons: tuple[str, ...]
    prompts: int = 0
    positions: int = 0
    """Teacher-forced answer tokens that were compared."""
    top1_agreement: float = 0.0
    """Share of positions with the trained model's likeliest token."""
    agreement: float = 0.0
    """The same, with tokens within NEAR_TIE of the trained model's likeliest; the figure that must reach the bar."""
    bar: float = 0.0
    mean_kl: float = 0.0
    """Mean KL divergence from the trained model, in nats a token."""
    mean_kl_from_base: float = 0.0
    mean_kl_base_trained: float = 0.0
    """How far training moved the model: mean KL divergence of the base from the trained model."""
    equal_prompts: int = 0
    """Prompts whose token ids equal those of training."""
    seconds: float = 0.0
    tensors: int = 0
    """Tensors of which rows were computed again from base and adapter (see fastft.exports.tensor_check)."""
    rows: int = 0
    """The rows of them."""
    worst_kl: float = 0.0
    """The largest KL divergence of a position."""

    @computed_field  # type: ignore[prop-decorator]  # for readers of export.json
    @property
    def passed(self) -> bool:
        """Whether there is no reason to fail."""
        return not self.reasons


@dataclass(frozen=True)
class Reading:
    """The token ids and logits of an artefact for the passages, from its own runtime."""

    prompts: tuple[tuple[int, ...], ...]
    """The token ids of each prompt, rendered with the artefact's own template."""
    logits: tuple[Floats, ...]
    """(answer tokens, vocabulary) for each passage, after the reference's token ids."""
    chat_template: str | None
    eos: int
    ends: frozenset[int]
    """Which of the reference's end ids stop the artefact."""


def bar_of(kind: str) -> float:
    """The share of positions whose likeliest next token must be the trained model's.

    A token that the trained model holds as good as likely counts too (see NEAR_TIE). What each type reaches with the
    quickstart's model on free text: benchmarks/parity.json.
    """
    return FOLDER_FORMATS[kind].bar if kind in FOLDER_FORMATS else QUANTIZATIONS[kind].bar


def judge(artefact: str, kind: str, reference: Reference, reading: Reading, seconds: float = 0.0) -> Verdict:
    """Compare an artefact with the trained model."""
    figures = _figures(reference, reading)
    bar = bar_of(kind)
    reasons = [*_reading_faults(reference, reading), *_kl_faults(kind, reference, figures)]
    # `not >=` and `not <`, so that NaN fails.
    if not figures["agreement"] >= bar:
        reasons.append(
            f"predicts the trained model's next token at {figures['agreement']:.1%} of"
            f" {figures['positions']} positions, {bar:.0%} are needed"
        )
    if reference.base is not None and not figures["mean_kl"] < max(figures["mean_kl_from_base"], 1e-12):
        reasons.append(
            f"is nearer to the base than to the trained model (KL {figures['mean_kl_from_base']:.2e} and"
            f" {figures['mean_kl']:.2e}): the adapter is not in it"
        )
    return Verdict(artefact, kind, tuple(reasons), bar=bar, seconds=seconds, **figures)


def _kl_faults(kind: str, reference: Reference, figures: dict[str, Any]) -> Iterable[str]:
    row = FOLDER_FORMATS[kind] if kind in FOLDER_FORMATS else QUANTIZATIONS[kind]
    more = ROUNDED_KL if reference.is_rounded else (0.0, 0.0)
    for what, figure, most in (
        ("on average", figures["mean_kl"], row.most_mean_kl + more[0]),
        ("at one token", figures["worst_kl"], row.most_kl + more[1]),
    ):
        if not figure <= most:
            yield f"differs from the trained model by a KL divergence of {figure:.1e} {what}, {most:.1e} is the most"


def unreadable(artefact: str, kind: str, error: FastftError) -> Verdict:
    """The verdict on an artefact that its runtime cannot load."""
    return Verdict(artefact, kind, (f"cannot be read: {error}",), bar=bar_of(kind))


def check_gguf(file: Path, kind: str, reference: Reference) -> Verdict:
    """Load `file` in llama.cpp and judge it."""
    start = time.monotonic()
    try:
        reading = _read_gguf(file, reference)
    except FastftError as error:
        return unreadable(file.name, kind, error)
    return judge(file.name, kind, reference, reading, time.monotonic() - start)


def kl_divergence(first: Floats, second: Floats) -> Floats:
    """(rows,) of KL(first || second) in nats from two (rows, vocabulary) of logits."""
    a, b = _log_shares(first), _log_shares(second)
    divergence: Floats = (np.exp(a) * (a - b)).sum(axis=1)
    return divergence


def _log_shares(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    shares: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shares


def _figures(reference: Reference, reading: Reading) -> dict[str, Any]:
    hits, near, divergences, from_base, moved = [], [], [], [], []
    bases = reference.base or reference.trained
    for trained, base, artefact in zip(reference.trained, bases, reading.logits, strict=True):
        # Rows beyond the smaller vocabulary are padding that no tokenizer produces.
        width = min(trained.shape[1], artefact.shape[1])
        trained, base, artefact = trained[:, :width], base[:, :width], artefact[:, :width]
        chosen = artefact.argmax(axis=1)
        hits.append(trained.argmax(axis=1) == chosen)
        near.append(trained.max(axis=1) - trained[np.arange(len(trained)), chosen] <= NEAR_TIE)
        divergences.append(kl_divergence(trained, artefact))
        from_base.append(kl_divergence(base, artefact))
        moved.append(kl_divergence(trained, base))
    return {
        "prompts": len(reference.passages),
        "positions": int(sum(len(hit) for hit in hits)),
        "top1_agreement": float(np.concatenate(hits).mean()),
        "agreement": float(np.concatenate(near).mean()),
        "mean_kl": float(np.concatenate(divergences).mean()),
        "worst_kl": float(np.concatenate(divergences).max()),
        "mean_kl_from_base": float(np.concatenate(from_base).mean()),
        "mean_kl_base_trained": float(np.concatenate(moved).mean()),
        "equal_prompts": len(reference.passages) - len(_unequal(reference, reading)),
    }


def _unequal(reference: Reference, reading: Reading) -> list[int]:
    pairs = zip(reference.passages, reading.prompts, strict=True)
    return [index for index, (passage, ids) in enumerate(pairs) if passage.tokens[: passage.prompt_tokens] != ids]


def _reading_faults(reference: Reference, reading: Reading) -> Iterable[str]:
    unequal = _unequal(reference, reading)
    if unequal:
        index = unequal[0]
        passage = reference.passages[index]
        other = _first_difference(passage.tokens[: passage.prompt_tokens], reading.prompts[index])
        share = f"{len(unequal)} of {len(reference.passages)} prompts"
        yield f"reads {share} as other tokens than training did: prompt {index + 1} {other}"
    if reading.chat_template != reference.chat_template:
        yield "has another chat template than the one that was trained with"
    if reading.eos not in reference.end_ids:
        yield f"has {reading.eos} as its end token, trained answers end with {_ids(reference.end_ids)}"
    running_on = [token for token in reference.end_ids if token not in reading.ends]
    if running_on:
        yield f"does not stop at {_ids(running_on)}, where trained answers end"


def _first_difference(trained: Sequence[int], artefact: Sequence[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(trained, artefact, strict=False)) if a != b), None)
    if place is None:
        return f"has {len(artefact)} tokens, {len(trained)} in training"
    return f"has token {artefact[place]} at position {place}, {trained[place]} in training"


def _ids(tokens: Iterable[int]) -> str:
    return ", ".join(str(token) for token in tokens)


def _read_gguf(file: Path, reference: Reference) -> Reading:
    from fastft.inference.llamacpp import GgufModel

    longest = max(len(passage.tokens) for passage in reference.passages)
    with GgufModel(file, context_tokens=longest + 8) as model:
        template = model.chat_template or ""
        prompts = tuple(
            tuple(model.chat_tokens(render_chat(template, passage.messages[:-1], reference.special_tokens)))
            for passage in reference.passages
        )
        ends = frozenset(token for token in reference.end_ids if model.is_end(token))
        limit = model.vocabulary_size
        if any(token >= limit for passage in reference.passages for token in passage.tokens):
            raise model.failed(f"its vocabulary of {limit} tokens is smaller than the trained model's")
        logits = tuple(
            model.logits(passage.tokens)[passage.positions][: len(trained)]
            for passage, trained in zip(reference.passages, reference.trained, strict=True)
        )
        return Reading(prompts, logits, model.chat_template, model.eos, ends)
