"""A trained classifier: loading it, its logits, and exports that were reloaded and compared with it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastft.console import Say
from fastft.data.labels import Labeller, Labels
from fastft.data.tokenizer import load_tokenizer
from fastft.engine.export import Exported
from fastft.engine.memory import free_memory
from fastft.engine.model import Model, Tokenizer
from fastft.errors import ExportError, MachineError, Problem, Where
from fastft.exports.card import CardFacts
from fastft.exports.job import ADAPTER, Artefact, Job, is_kept, kept, publish, write
from fastft.exports.kept import exporting_alone
from fastft.exports.merged import tokenizer_folder
from fastft.exports.record import FILE
from fastft.files.atomic import staged_folder
from fastft.files.records import write_record
from fastft.runs.classification import Classifier, predicted

# How far apart two probabilities of a row must be so that rounding to 16 bits swaps no label.
NEAR_TIE = 0.02
# The largest difference of a reloaded adapter's logits from the trained model's, as a share of the largest logit:
# the same sums in float32; on a GPU in 16 bits another kernel may add them in another order.
SAME_SUMS, ROUNDED_SUMS = 1e-4, 2e-2
# Rows that are compared, and what a run without held-out rows is compared on.
COMPARED = 512
TEXTS = ("Where is my parcel?", "I love this film.", "The meeting is at nine, in room 4.", "No.")


def collate(rows: Sequence[dict[str, Any]], pad_id: int, several: int = 0) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids and attention_mask (rows, longest); labels (rows,), or (rows, several)."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [pad_id] * (width - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if "labels" in rows[0]:
        given = torch.tensor([row["labels"] for row in rows])
        batch["labels"] = (given[:, None] >> torch.arange(several) & 1).float() if several else given
    return batch


def probabilities(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    """The probability of each label (rows, labels)."""
    return logits.float().sigmoid() if several else logits.float().softmax(dim=-1)


def pad_id_of(tokenizer: Tokenizer) -> int:
    """The token that fills up batches: the tokenizer's own, else its end token, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def logits_of(
    model: Model, ids: Sequence[Sequence[int]], pad_id: int, batch: int, *, sort: bool = True
) -> torch.Tensor:
    """(texts, labels) the logits of each text, in the order of `ids`; batches are of like length."""
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index])) if sort else list(range(len(ids)))
    found: list[torch.Tensor] = []
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch):
            inputs = collate([{"input_ids": list(ids[index])} for index in order[start : start + batch]], pad_id)
            with torch.inference_mode():
                logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
            found.append(logits.float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(found)[torch.tensor(order).argsort()]


def load_classifier(base: Path, adapter: Path | None, known: Classifier) -> tuple[Model, int]:
    """A trained classifier and the token that fills up its batches: base and adapter, or a whole model in `base`.

    Raises:
        MachineError: transformers or PEFT cannot load it; the message quotes them.
    """
    try:
        pad = pad_id_of(AutoTokenizer.from_pretrained(tokenizer_folder(base, adapter)))
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=len(known.labels),
            id2label=dict(enumerate(known.labels)),
            label2id={name: number for number, name in enumerate(known.labels)},
            pad_token_id=pad,
            dtype="auto" if torch.cuda.is_available() else torch.float32,
        )
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        wrong = f"cannot be loaded: {' '.join(str(error).split())[:300]}"
        instead = "give the base it was trained on: --base"
        raise MachineError(Problem(Where(str(adapter or base)), "", wrong, instead)) from error
    return Model(model.to("cuda" if torch.cuda.is_available() else "cpu").eval()), pad


def predict(
    base: Path, adapter: Path | None, known: Classifier, windows: Iterator[list[Sequence[int]]], batch: int
) -> Iterator[list[list[float]]]:
    """The probabilities of each window of texts, in its order."""
    model, pad = load_classifier(base, adapter, known)
    for ids in windows:
        rows: list[list[float]] = probabilities(logits_of(model, ids, pad, batch), several=known.several).tolist()
        yield rows


@dataclasses.dataclass(frozen=True)
class Compared:
    """What exports are compared with: the token ids of some texts, and the logits (texts, labels) of the model."""

    ids: Sequence[Sequence[int]]
    logits: torch.Tensor


def compared(
    base: Path, adapter: Path | None, known: Classifier, conversations: Sequence[Sequence[dict[str, str]]]
) -> Compared:
    """The logits of the saved classifier on the texts of held-out `conversations`, else on TEXTS."""
    texts = [[turn["content"] for turn in messages[:-1]] for messages in conversations] or [[text] for text in TEXTS]
    labeller = Labeller(
        load_tokenizer(tokenizer_folder(base, adapter)), Labels(known.labels, known.several), known.truncation
    )
    ids = [labeller.cut_ids(row, known.max_seq_length).tolist() for row in labeller.encode(texts)]
    model, pad = load_classifier(base, adapter, known)
    return Compared(ids, logits_of(model, ids, pad, 16))


def export_classifier(job: Job, known: Classifier, trained: Compared, card: CardFacts, say: Say) -> Exported:
    """Write each artefact of `job`, reload it, compare its logits with `trained`, then seal and record it.

    What an earlier export of the same weights left, proven and unchanged, is not made again.

    Raises:
        ExportError: a reloaded artefact is not the trained model; nothing of it is kept.
        FastftError: an artefact cannot be written or loaded.
    """
    made, source = [], job.source
    with exporting_alone(job.out):
        for kind in job.kinds:
            if is_kept(job, kind, source):
                artefact, _ = kept(job, kind)
                say(f"{kind} is there already, proven: {artefact.path}")
            else:
                say(f"writing {kind} to {job.place(kind)}")
                free_memory()
                artefact = _write(job.staging, kind, known)
                note = _prove(job, artefact, known, trained)
                say(f"{kind} proven: {note}")
                artefact = dataclasses.replace(artefact, notes=(*artefact.notes, note))
                artefact = publish(job, artefact, None, dataclasses.replace(card, proof=note), source)
            made.append(artefact)
    return Exported(job.out / FILE, tuple(made), ())


def _write(job: Job, kind: str, known: Classifier) -> Artefact:
    """The adapter, or the whole model in 16 bits, each with classifier.json."""
    place, began = job.place(kind), time.monotonic()
    if kind == ADAPTER:
        artefact = write(job, kind)
        write_record(place / Classifier.FILE, known)
        return artefact
    model: Any = load_classifier(job.base, job.adapter, known)[0]
    merged = model.merge_and_unload()
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    half = torch.bfloat16 if config.get("dtype", config.get("torch_dtype")) == "bfloat16" else torch.float16
    with staged_folder(place, 2 * sum(weight.numel() for weight in merged.parameters())) as stage:
        merged.to(half).save_pretrained(stage)
        AutoTokenizer.from_pretrained(tokenizer_folder(job.base, job.adapter)).save_pretrained(stage)
        write_record(stage / Classifier.FILE, known)
    size = sum(path.stat().st_size for path in place.iterdir())
    return Artefact(kind, place, size, time.monotonic() - began, (str(half).removeprefix("torch."),))


def _prove(job: Job, artefact: Artefact, known: Classifier, trained: Compared) -> str:
    """Reload an artefact and compare its logits; returns what was found in words.

    Raises:
        ExportError: it gives another label, near ties aside, or as an adapter other logits.
    """
    whole = artefact.kind != ADAPTER
    base, adapter = (artefact.path, None) if whole else (job.base, artefact.path)
    model, pad = load_classifier(base, adapter, known)
    logits = logits_of(model, trained.ids, pad, 16)
    apart = float((logits - trained.logits).abs().max())
    scale = float(trained.logits.abs().max()) or 1.0
    rows = zip(*(probabilities(each, several=known.several).tolist() for each in (trained.logits, logits)), strict=True)
    other = sum(
        predicted(one, several=known.several) != predicted(two, several=known.several)
        and max(abs(a - b) for a, b in zip(one, two, strict=True)) > NEAR_TIE
        for one, two in rows
    )
    bound = scale * (ROUNDED_SUMS if model.dtype in (torch.float16, torch.bfloat16) else SAME_SUMS)
    if other or not (whole or apart <= bound):
        wrong = (
            f"gives {other} of {len(trained.ids)} rows another label than the trained model (logits {apart:.1e} apart)"
        )
        instead = "keep the run's adapter; see the log of this attempt"
        raise ExportError(Problem(Where(str(job.place(artefact.kind))), artefact.kind, wrong, instead))
    return f"reloaded, the same label for {len(trained.ids)} rows, logits at most {apart:.1e} apart"
