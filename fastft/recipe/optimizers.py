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
    packages: tuple[str, ...] = ()
    """What must be installed besides torch and transformers, as pip names it."""
    paged: bool = False
    """Its state moves to main memory when the GPU is full; a processor has nothing to move it from."""
    on_cpu: str | None = None
    """The row that a processor takes where the recipe leaves the choice open; None: this one."""
    takes_betas: bool = False
    """`adam_beta1` and `adam_beta2` reach it."""
    takes_epsilon: bool = False
    """`adam_epsilon` reaches it."""


_BITSANDBYTES = ("bitsandbytes",)
_FUSED = "adamw_torch_fused"


def _adamw(name: str, state_bytes: float, packages: tuple[str, ...] = (), on_cpu: str | None = None) -> Optimizer:
    paged = name.startswith("paged_")
    return Optimizer(name, name, "AdamW", state_bytes, packages, paged, on_cpu, takes_betas=True, takes_epsilon=True)


def _lion(name: str, state_bytes: float) -> Optimizer:
    paged = name.startswith("paged_")
    return Optimizer(name, name, "Lion", state_bytes, _BITSANDBYTES, paged, takes_betas=True)


# AdamW keeps two moments, Lion one; in 8 bits each takes a byte and its share of block constants (bitsandbytes: one
# float32 for 256 values).
_ROWS = (
    _adamw("adamw_torch", 8.0, on_cpu=_FUSED),
    _adamw(_FUSED, 8.0),
    _adamw("adamw_8bit", 2.03, _BITSANDBYTES, on_cpu=_FUSED),
    _adamw("paged_adamw_8bit", 2.03, _BITSANDBYTES),
    _adamw("paged_adamw_32bit", 8.0, _BITSANDBYTES),
    _lion("lion_32bit", 4.0),
    _lion("lion_8bit", 1.02),
    _lion("paged_lion_32bit", 4.0),
    _lion("paged_lion_8bit", 1.02),
    # Row and column sums instead of squares (Shazeer and Stern 2018): next to nothing for a matrix.
    Optimizer("adafactor", "adafactor", "Adafactor", 0.02),
    Optimizer("rmsprop", "rmsprop", "RMSprop", 4.0),
    Optimizer("sgd", "sgd", "SGD", 0.0),
)
OPTIMIZERS = {row.name: row for row in _ROWS}
