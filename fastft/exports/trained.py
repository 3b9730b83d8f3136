"""The weights of the trained model, base plus adapter, computed block by block."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastft.errors import MachineError, Problem, RecipeError, TrainingError, Where
from fastft.exports.adapter import Adapter, LowRank, open_adapter
from fastft.exports.four_bit import open_four_bit
from fastft.files.tensors import FLOATING, Floats, TensorInfo, open_weights
from fastft.probe.model_config import read_model_config

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# 4 MiB of float32: the passes over one block then stay in a core's cache (fastest of 0.25 to 8 million, 2-core EPYC).
BLOCK_ELEMENTS = 1 << 20
# Enough lines to see the pattern of an adapter for another model.
SHOWN_PROBLEMS = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


class TrainedWeights:
    """Every tensor of base + adapter by name; `shapes` keeps the order of the base's files.

    Raises:
        MachineError: a file is missing, damaged or cut short.
        RecipeError: the adapter is for another model or cannot be merged, or the base is quantized.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.base = base
        self.config = read_config(base / "config.json")
        self.notes: tuple[str, ...] = ()
        """Notes for the user about the weights of the base."""
        quantization = self.config.pop("quantization_config", None)
        if quantization is None:
            self.weights = open_weights(base)
        elif quantization.get("quant_method") == "bitsandbytes" and quantization.get("load_in_4bit"):
            self.weights = open_four_bit(base)
            self.notes = ("the base has 4 bits a weight: its rounding stays; --base with its 16-bit model avoids that",)
        else:
            wrong = "the base is quantized; what was trained on it must be merged into its 16-bit weights"
            where, got = Where(str(base / "config.json")), str(quantization.get("quant_method", "unknown"))
            raise RecipeError(Problem(where, "quantization_config", wrong, "give the 16-bit model with --base", got))
        self.adapter: Adapter | None = None if adapter is None else open_adapter(adapter, self.weights.tensors)
        self.shapes = {name: info.shape for name, info in self.weights.tensors.items()}
        """The tensors of the trained model; without `lm_head.weight` where it is the embedding itself."""
        self._load = lru_cache(maxsize=8)(LowRank.load)
        self.tied = HEAD not in self.shapes or self.config.get("tie_word_embeddings") is True
        if self.tied:
            self.shapes.pop(HEAD, None)
        if self.adapter is not None:
            self._fit(self.adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.weights.__exit__(None, None, None)
        if self.adapter is not None:
            self.adapter.weights.__exit__(None, None, None)

    def stored(self, name: str) -> TensorInfo:
        """How the base stores the tensor."""
        return self.weights.tensors[EMBEDDING if name == HEAD and HEAD not in self.weights.tensors else name]

    def is_changed(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return self.adapter is not None and any(name in part for part in _parts(self.adapter))

    def raw(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows `begin:end` as the base stores them; only for tensors that the adapter does not change."""
        stored = self.stored(name)
        values = self.weights.rows(stored.name, begin, end)
        if stored.dtype in FLOATING:
            exponents = np.uint16(0x7F80)
            finite = (values & exponents) != exponents if stored.dtype == "BF16" else np.isfinite(values)
            if not finite.all():
                raise self._not_finite(name)
        return values

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> Floats:
        """Rows `begin:end` of the trained tensor in float32.

        Raises:
            TrainingError: a value is NaN or infinite.
        """
        adapter = self.adapter
        if adapter is not None and name in adapter.replaced:
            values = adapter.weights.floats(adapter.replaced[name], begin, end)
        else:
            values = self.weights.floats(self.stored(name).name, begin, end)
        # PEFT saves an embedding that it adapts as a copy of the base tensor and a low-rank part: then both apply.
        if adapter is not None and name in adapter.low_rank:
            values = _add(values, self._load(adapter.low_rank[name], adapter.weights), begin)
        if adapter is not None and name in adapter.tokens:
            adapter.tokens[name].place(values, begin, adapter.weights)
        # A sum is one pass and keeps NaN and infinity; only a suspicious sum needs the exact check.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum())
        if suspicious and not np.isfinite(values).all():
            raise self._not_finite(name)
        return values

    def _fit(self, adapter: Adapter) -> None:
        """Check the adapter's shapes against the base's, and add a tensor for a tied head that the adapter changes."""
        if self.tied and any(name in part for part in _parts(adapter) for name in (EMBEDDING, HEAD)):
            self._untie(adapter)
        self._fit_vocabulary(adapter)
        touched = sorted({name for part in _parts(adapter) for name in part})
        wrong = [text for name in touched if (text := self._misfit(adapter, name))]
        if wrong:
            shares = f"{len(wrong)} of {len(touched)} tensors do not fit ({'; '.join(wrong[:SHOWN_PROBLEMS])})"
            other = f"this adapter is for another model than {self.base}: {shares}"
            instead = "give the base model that it was trained on with --base"
            raise RecipeError(Problem(Where(str(adapter.folder)), "", other, instead))
        for name, source in adapter.replaced.items():
            self.shapes[name] = adapter.weights.tensors[source].shape

    def _fit_vocabulary(self, adapter: Adapter) -> None:
        """Check that embedding and head grew together."""
        rows = {
            name: adapter.weights.tensors[adapter.replaced[name]].shape[0] if name in adapter.replaced else shape[0]
            for name, shape in self.shapes.items()
            if name in (EMBEDDING, HEAD)
        }
        if len(set(rows.values())) > 1:
            wrong = f"the embedding has {rows[EMBEDDING]} rows with this adapter, the output head {rows[HEAD]}"
            instead = 'train with modules_to_save = ["embed_tokens", "lm_head"]'
            raise RecipeError(Problem(Where(str(adapter.folder)), "modules_to_save", wrong, instead))

    def _untie(self, adapter: Adapter) -> None:
        resized = [name for name in (EMBEDDING, HEAD) if name in adapter.replaced]
        rows = {name: adapter.weights.tensors[adapter.replaced[name]].shape[0] for name in resized}
        grown = [name for name in resized if rows[name] != self.shapes[EMBEDDING][0]]
        if len(grown) == 1 and len(resized) == 1 and not adapter.copied:
            # PEFT saved the one matrix of a resized model that is both.
            adapter.replaced[EMBEDDING] = adapter.replaced.pop(grown[0])
        elif _is_one_matrix(adapter):
            for part in (adapter.replaced, adapter.tokens):
                part.pop(HEAD, None)
        elif adapter.ensure_weight_tying:
            self._keep_tied(adapter)
        else:
            self.tied = False
            self.shapes[HEAD] = self.shapes[EMBEDDING]
            if EMBEDDING in adapter.tokens:  # PEFT has the output layer of a tied model take them too
                adapter.tokens.setdefault(HEAD, adapter.tokens[EMBEDDING])

    def _keep_tied(self, adapter: Adapter) -> None:
        if EMBEDDING in adapter.low_rank or HEAD in adapter.low_rank:
            where = Where(str(adapter.folder / "adapter_config.json"))
            wrong = "a low-rank change of an embedding that is also the output head cannot be merged"
            instead = "train the embedding in full (modules_to_save)"
            raise RecipeError(Problem(where, "ensure_weight_tying", wrong, instead))
        head = adapter.replaced.pop(HEAD, None)
        if head is not None:
            adapter.replaced.setdefault(EMBEDDING, head)

    def _misfit(self, adapter: Adapter, name: str) -> str | None:
        if name not in self.shapes:
            return f"{name} is not in the base"
        shape = base = self.shapes[name]
        if name in adapter.replaced:
            shape = adapter.weights.tensors[adapter.replaced[name]].shape
            # For a vocabulary that grew or shrank the adapter holds a whole new embedding.
            if name in (EMBEDDING, HEAD) and shape[1:] == base[1:]:
                base = shape
        if name in adapter.low_rank and shape == base:
            shape = adapter.low_rank[name].shape
        single = adapter.tokens.get(name)
        if single is not None and shape == base and (len(base) != 2 or max(single.rows, default=0) >= base[0]):
            return f"{name} has {base[0]} rows, the adapter trains row {max(single.rows)} and brings no larger one"
        return None if shape == base else f"{name} is {shape} in the adapter, {base} in the base"

    def _not_finite(self, name: str) -> TrainingError:
        source, folder = "the base model", self.base
        if self.adapter is not None and self.is_changed(name):
            source, folder = "the adapter", self.adapter.folder
        instead = f"use an earlier checkpoint of {source}"
        return TrainingError(Problem(Where(str(folder)), name, "holds NaN or infinite values", instead))


def _parts(adapter: Adapter) -> tuple[Mapping[str, object], ...]:
    """What an adapter changes, each by the name of the base tensor."""
    return adapter.low_rank, adapter.replaced, adapter.tokens


def _is_one_matrix(adapter: Adapter) -> bool:
    """Whether an adapter that trains single rows of an embedding leaves it the output layer, too.

    PEFT then has one set of rows for both, and may save the resized matrix and its rows under both names.
    """
    own, of_head = (adapter.tokens.get(name) for name in (EMBEDDING, HEAD))
    if own is None or adapter.copied or any(name in adapter.low_rank for name in (EMBEDDING, HEAD)):
        return False
    if of_head is not None and not (own.rows == of_head.rows and _equal(adapter, own.tensor, of_head.tensor)):
        return False
    head = adapter.replaced.get(HEAD)
    return head is None or _equal(adapter, adapter.replaced.get(EMBEDDING), head)


def _equal(adapter: Adapter, one: str | None, two: str) -> bool:
    """Whether two tensors of the adapter hold the same bytes."""
    if one is None or adapter.weights.tensors[one].shape != adapter.weights.tensors[two].shape:
        return False
    blocks = row_blocks(adapter.weights.tensors[two].shape)
    return all(
        np.array_equal(adapter.weights.floats(one, *block), adapter.weights.floats(two, *block)) for block in blocks
    )


def _add(values: Floats, change: tuple[Floats, Floats, Floats | None], begin: int) -> Floats:
    a, b, magnitude = change
    end = begin + values.shape[0]
    values += b[begin:end] @ a
    if magnitude is not None:
        length = np.sqrt(np.einsum("oi,oi->o", values, values, dtype=np.float32))
        values *= (magnitude[begin:end] / length)[:, None]
    return values


def read_config(file: Path, read: Callable[[Path], dict[str, Any]] = read_model_config) -> dict[str, Any]:
    """The JSON object in `file`, a file of a model; by default its config.json.

    Raises:
        MachineError: it is missing, not a JSON object, or has a value that no model has.
    """
    try:
        return read(file)
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
        raise MachineError(Problem(Where(str(file)), "", wrong, "give the base model's folder with --base")) from error
    except ValueError as error:
        raise MachineError(Problem(Where(str(file)), "", str(error), "download it again")) from error


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The (begin, end) of blocks of whole rows, each near BLOCK_ELEMENTS elements."""
    rows = shape[0] if shape else 1
    step = max(1, BLOCK_ELEMENTS // max(math.prod(shape[1:]), 1))
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """`function` of each item, computed by `threads` threads (default: one a core), in the order of the items.

    At most two results a thread wait for the reader, so a slow writer does not fill the memory.
    """
    from threadpoolctl import threadpool_limits

    workers = threads or os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    # BLAS threads inside these threads would wait in busy loops: 5 times the CPU time on 2 cores.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
