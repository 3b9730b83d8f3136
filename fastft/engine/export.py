"""Exports of a trained model, each loaded by its own runtime and compared with the model before it counts as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fastft.data.example import Example
from fastft.engine.parity import check_merged, make_reference
from fastft.errors import ExportError, Problem, Where
from fastft.export.card import CardFacts
from fastft.export.job import MERGED, Artefact, Job, finish, write
from fastft.export.parity import Reference, Verdict, check_gguf

# Held-out conversations that an export is compared on; a hundred answer tokens tell a wrong merge or template apart.
COMPARED = 16


@dataclass(frozen=True)
class Exported:
    """What was written, and export.json with the figures of the comparison."""

    record: Path
    artefacts: tuple[Artefact, ...]
    verdicts: tuple[Verdict, ...]


def export_weights(
    job: Job,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    end_ids: Sequence[int],
    card: CardFacts,
    say: Callable[[str], None],
) -> Exported:
    """Write each artefact of `job` and hold it against the trained PEFT `model` on held-out `examples`.

    Without examples nothing can be compared; that is said, and stands in the model card.

    Raises:
        ExportError: an artefact does not say what the trained model says; it is kept, marked FAILED.
        FastftError: an artefact cannot be written.
    """
    chosen = islice((example for example in examples if example.messages), COMPARED)
    conversations = [_conversation(example) for example in chosen]
    reference = make_reference(model, tokenizer, conversations, end_ids) if conversations else None
    if reference is None:
        say("no held-out conversations: the exports are not compared with the trained model")
    artefacts, verdicts = [], []
    for kind in job.kinds:
        say(f"writing {kind} to {job.place(kind)}")
        artefact = write(job, kind)
        artefacts.append(artefact)
        for note in artefact.notes:
            say(f"{kind}: {note}")
        if reference is not None:
            verdicts.append(_compared(artefact, reference))
            say(_said(kind, verdicts[-1]))
    record, final = finish(job, artefacts, verdicts, card)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        raise ExportError(
            Problem(Where(str(record)), verdict.kind, reason, "the file is kept and marked FAILED: do not use it")
            for verdict in failed
            for reason in verdict.reasons
        )
    return Exported(record, final, tuple(verdicts))


def _compared(artefact: Artefact, reference: Reference) -> Verdict:
    """The artefact in its own runtime against the trained model."""
    if artefact.kind == MERGED:
        return check_merged(artefact.path, reference, "cuda" if torch.cuda.is_available() else "cpu")
    return check_gguf(artefact.path, artefact.kind, reference)


def _said(kind: str, verdict: Verdict) -> str:
    """The comparison in one line."""
    state = "proven" if verdict.passed else "FAILED"
    return (
        f"{kind} {state}: the same likeliest token at {verdict.top1_agreement:.1%} of {verdict.positions} answer "
        f"tokens ({verdict.bar:.0%} needed), mean KL divergence {verdict.mean_kl:.1e}"
    )


def _conversation(example: Example) -> list[dict[str, str]]:
    """The messages of an example up to its last answer."""
    last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
    return [{"role": message.role, "content": message.content} for message in example.messages[: last + 1]]
