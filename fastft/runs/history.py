"""What metrics.jsonl must hold, by the result and the checkpoints of its run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from fastft.files.records import fault, read_bytes
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from fastft.runs.held_out import Untrained
from fastft.runs.metrics import History, MetricsFile, OutOfMemory


def read_history(run: RunDir) -> History:
    """All lines of metrics.jsonl.

    Raises:
        MachineError: one is damaged, or lines are missing that the result or the newest checkpoint was written after.
    """
    metrics, result = MetricsFile(run.metrics), run.result
    content = metrics.content()
    history = metrics.parse(content)
    if result is not None:
        is_whole = result.metrics_sha256 in (None, hashlib.sha256(content).hexdigest())
    else:
        kept = (read_bytes(_kept(path)) for _, path in checkpoints(run)[:1])
        is_whole = all(content.startswith(lines or b"") for lines in kept)
    if not is_whole:
        raise fault(run.metrics, "is damaged: its lines are not what was written", "restore it from a copy")
    return history


def keep_history(run: RunDir, checkpoint: Path) -> None:
    """Copy metrics.jsonl, as it is now, into the folder of a checkpoint."""
    _kept(checkpoint).write_bytes(b"")
    if run.metrics.is_file():
        shutil.copyfile(run.metrics, _kept(checkpoint))


def rewind(run: RunDir, checkpoint: Path | None, retries: Sequence[OutOfMemory] = ()) -> None:
    """Bring metrics.jsonl, and the evaluation before training, to where a run continues; `retries` are its last lines.

    Without a checkpoint, the evaluation before training stays where it is whole, and is made anew otherwise.

    Raises:
        MachineError: the checkpoint keeps no lines, or the evaluation before training is damaged or lost.
    """
    metrics = MetricsFile(run.metrics)
    if checkpoint is not None:
        run.require(Untrained)
        metrics.restore(_lines_at(checkpoint))
    else:
        untrained = run.read(Untrained)
        has_line = metrics.restart(known=untrained is not None)
        if untrained is not None and untrained.eval_loss is not None and not has_line:
            (run.path / Untrained.FILE).unlink()
    for retry in retries:
        if retry not in metrics.history().out_of_memory:
            metrics.append(retry)


def _lines_at(checkpoint: Path) -> bytes:
    content = read_bytes(_kept(checkpoint))
    if content is None:
        wrong = "keeps no metrics: an older fastft wrote it"
        raise fault(checkpoint, wrong, "start a new run with --fresh")
    return content


def _kept(checkpoint: Path) -> Path:
    return checkpoint / "metrics.jsonl"
