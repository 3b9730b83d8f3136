"""The state of every random number generator that training draws from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """Python's, NumPy's and torch's generators; those of all GPUs, none on a processor."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    gpus: tuple[torch.Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """The present state."""
        gpus = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else ()
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus)

    def restore(self) -> None:
        """Make this the present state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(list(self.gpus))
