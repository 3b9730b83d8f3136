"""How several GPUs share a run, by the name that `--engine` takes: one row says all that any module asks of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sharding:
    """One way to share a run: launch, plan, memory forecast and the docs read it here."""

    name: str
    """What `--engine` calls it."""
    zero_stage: int = 0
    """The stage of DeepSpeed's ZeRO; 0 where DeepSpeed has no part in it."""
    splits_optimizer: bool = False
    """Each rank keeps the optimizer states of its part of the trained weights alone."""
    splits_gradients: bool = False
    """Each rank keeps the gradients of its part alone."""
    splits_weights: bool = False
    """Each rank keeps its part of all weights, frozen ones too; a layer is gathered when it computes."""
    reduces_every_micro_batch: bool = False
    """Gradients are reduced after each micro-batch, not only after the last one of an optimizer step."""


FSDP2 = "fsdp2"
# ZeRO: Rajbhandari et al. 2020, figure 1. DeepSpeed reduces at the end of accumulation only where gradients are not
# split (deepspeed/runtime/engine.py, allreduce_gradients). The Trainer defers the reduction of DDP and FSDP2
# (accelerate/accelerator.py, no_sync): until then FSDP2 keeps gradients whole.
_ROWS = (
    Sharding("ddp"),
    Sharding(FSDP2, splits_optimizer=True, splits_gradients=True, splits_weights=True),
    Sharding("zero1", 1, splits_optimizer=True),
    Sharding("zero2", 2, splits_optimizer=True, splits_gradients=True, reduces_every_micro_batch=True),
    Sharding(
        "zero3",
        3,
        splits_optimizer=True,
        splits_gradients=True,
        splits_weights=True,
        reduces_every_micro_batch=True,
    ),
)
SHARDINGS = {row.name: row for row in _ROWS}
# What `train.deepspeed` may name instead of a file.
ZERO_STAGES = {row.name: row.zero_stage for row in _ROWS if row.zero_stage}
