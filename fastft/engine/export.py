"""Exports of a trained model, each loaded by its own runtime and compared with the model before it counts as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from fastft.console import BytesWritten, Say, Writing, ignore_bytes, write_silently
from fastft.data.render import Prompt
from fastft.engine.evaluate import answer
from fastft.engine.memory import free_memory
from fastft.engine.model import Model, Tokenizer
from fastft.engine.reference import check_folder, load_to_ask, make_reference
from fastft.engine.torch_model import prompt_ids, special_tokens
from fastft.errors import ExportError, MachineError, Problem, Where
from fastft.exports.card import CardFacts
from fastft.exports.job import ADAPTER, MERGED_4BIT, Artefact, Job, is_kept, kept, publish, write, write_together
from fastft.exports.kept import exporting_alone
from fastft.exports.merged import tokenizer_folder
from fastft.exports.parity import ChatMessages, Reference, Verdict, check_gguf
from fastft.exports.record import FILE
from fastft.exports.tensor_check import TensorCheck, check_tensors
from fastft.inference.conversation import render_chat
from fastft.recipe.export_formats import FOLDER_FORMATS

# Questions for a model without held-out rows: an export must repeat its own answers to them.
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "How many days does a week have?",
    "Translate 'good morning' into Spanish.",
    "What do bees make?",
    "Order 48213 has not arrived. What should I do?",
    "Explain in one sentence what a computer does.",
)
OWN_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Exported:
    """What was written, and export.json with the figures of the comparison."""

    record: Path
    artefacts: tuple[Artefact, ...]
    verdicts: tuple[Verdict, ...]


def trained_reference(
    model: Model, tokenizer: Tokenizer, conversations: Sequence[ChatMessages], end_ids: Sequence[int], say: Say
) -> Reference | None:
    """The logits of the trained PEFT `model` on held-out `conversations`, which exports are compared with.

    Without conversations, on its own answers to QUESTIONS. None, with a line of progress, for a model without a chat
    template, which cannot be asked.
    """
    if tokenizer.chat_template is None:
        say("the model has no chat template: the exports are not compared with it")
        return None
    if not conversations:
        say(f"no held-out conversations: compared on the trained model's own answers to {len(QUESTIONS)} questions")
        conversations = own_answers(model, tokenizer, end_ids)
    return make_reference(model, tokenizer, conversations, end_ids)


def export_weights(
    job: Job, reference: Reference | None, card: CardFacts, say: Say, writing: Writing = write_silently
) -> Exported:
    """Write each artefact of `job`, compare it with `reference`, seal and record it; then comes the next.

    GGUF files are written in one pass over base and adapter. What an earlier export of the same weights left, proven
    and unchanged, is not made again.

    With None only its tensors are compared with base + adapter, and the model card says so. Release the trained model
    before: an artefact needs its memory. `writing` shows the progress of each one.

    Raises:
        ExportError: an artefact does not match the trained model; it is kept, marked FAILED.
        FastftError: an artefact cannot be written.
    """
    free_memory()
    source = job.source
    artefacts: list[Artefact] = []
    verdicts: list[Verdict] = []
    with exporting_alone(job.out):
        missing = [kind for kind in job.kinds if not is_kept(job, kind, source)]
        written: dict[str, Artefact] = {}
        for kind in job.kinds:
            if kind not in missing:
                artefact, verdict = kept(job, kind)
                say(f"{kind} is there already, {'not compared' if verdict is None else 'proven'}: {artefact.path}")
            else:
                if kind not in written:
                    written |= _write(job, kind, missing, say, writing)
                verdict = compare(job, written[kind], reference)
                say(_in_words(kind, verdict))
                artefact = publish(job, written[kind], verdict, card, source)
            artefacts.append(artefact)
            verdicts += [] if verdict is None else [verdict]
    record, failed = job.out / FILE, [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        raise ExportError(
            Problem(Where(str(record)), verdict.kind, reason, "the file is kept and marked FAILED: do not use it")
            for verdict in failed
            for reason in verdict.reasons
        )
    return Exported(record, tuple(artefacts), tuple(verdicts))


def _write(job: Job, kind: str, missing: Sequence[str], say: Say, writing: Writing) -> dict[str, Artefact]:
    """Write one artefact into the folder of unfinished ones, a GGUF file together with the other missing ones."""
    together = [kind]
    if kind not in FOLDER_FORMATS and job.llama_cpp is None:
        together = [one for one in missing if one not in FOLDER_FORMATS]
    for one in together:
        say(f"writing {one} to {job.place(one)}")
    with writing(", ".join(together)) as on_bytes:
        if len(together) > 1:
            artefacts = write_together(job.staging, together, on_bytes)
        else:
            artefacts = (write_artefact(job.staging, kind, on_bytes),)
    for artefact in artefacts:
        for note in artefact.notes:
            say(f"{artefact.kind}: {note}")
    return {artefact.kind: artefact for artefact in artefacts}


def load_trained(base: Path, adapter: Path | None) -> tuple[Model, Tokenizer]:
    """The 16-bit base with its adapter in PEFT, as a user would load them, and the tokenizer that came with it.

    In float32 on a CPU, in the base's own type on a GPU; `adapter` None loads a whole model.

    Raises:
        MachineError: transformers or PEFT cannot load them; the message quotes them.
    """
    free_memory()
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(base, adapter))
        model = load_to_ask(base, adapter, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        wrong = f"cannot be loaded: {' '.join(str(error).split())[:300]}"
        instead = "give the base it was trained on: --base"
        raise MachineError(Problem(Where(str(adapter or base)), "", wrong, instead)) from error
    return Model(model), Tokenizer(tokenizer)


def own_answers(model: Model, tokenizer: Tokenizer, end_ids: Sequence[int]) -> list[ChatMessages]:
    """QUESTIONS, each with the answer that the model gives greedily, up to OWN_ANSWER_TOKENS tokens."""
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = [render_chat(str(tokenizer.chat_template), messages, special_tokens(tokenizer)) for messages in asked]
    prompts = [Prompt(text, prompt_ids(tokenizer, text), "", Where("export")) for text in texts]
    given = answer(model, tokenizer, prompts, end_ids, OWN_ANSWER_TOKENS, lambda: False).texts
    return [[*messages, {"role": "assistant", "content": text}] for messages, text in zip(asked, given, strict=True)]


def write_artefact(job: Job, kind: str, on_bytes: BytesWritten = ignore_bytes) -> Artefact:
    """As `fastft.exports.job.write`, also for the kind that needs torch."""
    if kind == MERGED_4BIT:
        from fastft.engine.quantize import write_merged_4bit

        return write_merged_4bit(job, kind, on_bytes)
    return write(job, kind, on_bytes)


def compare(job: Job, artefact: Artefact, reference: Reference | None) -> Verdict:
    """The artefact in its own runtime against the trained model, and its tensors against base + adapter."""
    path, kind = artefact.path, artefact.kind
    # Another converter's names and types are not known here.
    by_checkout = job.llama_cpp is not None and kind not in FOLDER_FORMATS
    tensors = TensorCheck(()) if by_checkout else check_tensors(job.base, job.adapter, path, kind)
    if reference is None:
        verdict = Verdict(path.name, kind, ())
    elif path.is_dir():
        verdict = check_folder(path, kind, reference, job.base if kind == ADAPTER else None)
    else:
        verdict = check_gguf(path, kind, reference)
    reasons = (*tensors.reasons, *verdict.reasons)
    return dataclasses.replace(verdict, reasons=reasons, tensors=tensors.tensors, rows=tensors.rows)


def _in_words(kind: str, verdict: Verdict) -> str:
    """The comparison in one line."""
    state = "proven" if verdict.passed else "FAILED"
    if not verdict.prompts:
        state = state if verdict.tensors or not verdict.passed else "not compared"
        return f"{kind} {state}: {verdict.rows} rows of {verdict.tensors} tensors computed again"
    return (
        f"{kind} {state}: the same likeliest token at {verdict.top1_agreement:.1%} of {verdict.positions} answer tokens"
        f" ({verdict.agreement:.1%} with near ties, {verdict.bar:.0%} needed), mean KL divergence {verdict.mean_kl:.1e}"
        f"; {verdict.rows} rows of {verdict.tensors} tensors computed again"
    )
