"""torch.compile in training: what was compiled, how long that took, and what is left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch._dynamo.utils as dynamo
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True)
class Compiled:
    """What torch has compiled in this process: graphs, those of them for other shapes or settings, and seconds."""

    graphs: int
    again: int
    seconds: float

    @classmethod
    def now(cls) -> Compiled:
        """Since the process began; torch keeps the times of the last compilations alone."""
        kept = dynamo.get_compilation_metrics()
        again = {one.compile_id for one in kept if one.recompile_reason}
        seconds = sum(one.duration_us or 0 for one in kept) / 1e6
        return cls(int(dynamo.counters["stats"]["unique_graphs"]), len(again), seconds)

    def since(self, before: Compiled) -> Compiled:
        return Compiled(self.graphs - before.graphs, self.again - before.again, self.seconds - before.seconds)

    def __str__(self) -> str:
        again = f", {self.again} of them anew for other shapes" if self.again else ""
        return f"torch.compile made {self.graphs} graph{'s' * (self.graphs != 1)} in {self.seconds:.0f} s{again}"


@contextlib.contextmanager
def uncompiled(accelerator: Accelerator) -> Iterator[None]:
    """Models that are prepared in here are left as they are: an evaluation would compile graphs of its own."""
    plugin = accelerator.state.dynamo_plugin
    backend, plugin.backend = plugin.backend, DynamoBackend.NO
    try:
        yield
    finally:
        plugin.backend = backend


class Compiling(TrainerCallback):
    """Says what training compiled.

    A stop is obeyed after the first step, as always: an exception that is raised from outside within the compiler's own
    C++ code ends the process with SIGABRT now and then (seen with torch 2.13). A second signal still ends it at once.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._before = Compiled.now()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._before = Compiled.now()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._note(str(Compiled.now().since(self._before)))
