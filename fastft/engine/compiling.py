"""torch.compile in training: what was compiled and how long that took, what is left alone, and a stop meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch._dynamo.utils as dynamo
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# How often a stop is looked for while the first step compiles.
LOOK_SECONDS = 0.5


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
    """Says what training compiled, and lets a stop end the first step, in which nothing is trained yet.

    The first step compiles for seconds or minutes, and a stop is only looked for between steps: meanwhile a thread
    looks for one, and interrupts the compiler by the signal that the run knows.
    """

    def __init__(self, note: Callable[[str], None], stop_asked: Callable[[], bool]) -> None:
        self._note, self._stop_asked = note, stop_asked
        self._before = Compiled.now()
        self._steps_done = threading.Event()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._before = Compiled.now()
        self._steps_done.clear()
        # Python lets only the main thread be interrupted; and weights of an earlier checkpoint are saved there already.
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True).start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._steps_done.set()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._steps_done.set()
        self._note(str(Compiled.now().since(self._before)))

    def _look(self, thread: int) -> None:
        while not self._steps_done.wait(LOOK_SECONDS):
            if self._stop_asked():
                signal.pthread_kill(thread, signal.SIGINT)
                return
