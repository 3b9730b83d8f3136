"""The optimizers that `train.optim` can name: one row says all that any module asks of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """One optimizer: check, plan, memory forecast, `explain` and the docs read it here."""

    name: str
    """What the recipe calls it."""
    upstream: str
    """What transformers calls it (`OptimizerNames`)."""
    family: str
    """The algorithm: the same one may come fused, in 8 bits or paged."""
    state_bytes: float
    """Bytes of state a trained weight."""
    needs_gpu: bool = False
    """Its kernels or its state live on a GPU (bitsandbytes)."""
    paged: bool = False
    """Its state moves to main memory when the GPU is full."""
    on_cpu: str | None = None
    """The row that does the same sums on a processor; None: the optimizer itself, or none where it needs a GPU."""
    takes_betas: bool = False
    """`adam_beta1` and `adam_beta2` reach it."""
    takes_epsilon: bool = False
    """`adam_epsilon` reaches it."""


def _adamw(name: str, state_bytes: float, *, needs_gpu: bool = True, paged: bool = False) -> Optimizer:
    on_cpu = None if name == "adamw_torch_fused" else "adamw_torch_fused"
    return Optimizer(name, name, "AdamW", state_bytes, needs_gpu, paged, on_cpu, takes_betas=True, takes_epsilon=True)


def _lion(name: str, state_bytes: float, *, paged: bool = False) -> Optimizer:
    return Optimizer(name, name, "Lion", state_bytes, needs_gpu=True, paged=paged, takes_betas=True)


# AdamW keeps two moments, Lion one; in 8 bits each takes a byte and its share of block constants (bitsandbytes: one
# float32 for 256 values).
_ROWS = (
    _adamw("adamw_torch", 8.0, needs_gpu=False),
    _adamw("adamw_torch_fused", 8.0, needs_gpu=False),
    _adamw("adamw_8bit", 2.03),
    _adamw("paged_adamw_8bit", 2.03, paged=True),
    _adamw("paged_adamw_32bit", 8.0, paged=True),
    _lion("lion_32bit", 4.0),
    _lion("lion_8bit", 1.02),
    _lion("paged_lion_8bit", 1.02, paged=True),
    # Row and column sums instead of squares (Shazeer and Stern 2018): next to nothing for a matrix.
    Optimizer("adafactor", "adafactor", "Adafactor", 0.02),
    Optimizer("rmsprop", "rmsprop", "RMSprop", 4.0),
    Optimizer("sgd", "sgd", "SGD", 0.0),
)
OPTIMIZERS = {row.name: row for row in _ROWS}
