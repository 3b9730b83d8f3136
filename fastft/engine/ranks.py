"""The process group of a run of several processes: made before the model is loaded, and compared with the world."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from fastft.errors import MachineError, Problem, Where
from fastft.probe.world import World

# A lost rank is noticed by fastft.runs.ranks within a minute; a collective may wait for whatever rank 0 still does.
PATIENCE = timedelta(days=1)


def join_group(world: World) -> None:
    """Make the process group of `world`, nccl on GPUs and gloo on processors; this rank takes its own GPU.

    Raises:
        MachineError: there is no GPU for this rank, or the group is not the world that the launcher described.
    """
    if world.size == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        if world.local_rank >= torch.cuda.device_count():
            wrong = f"{world.local_size} processes on this host, and {torch.cuda.device_count()} GPUs"
            raise MachineError(
                Problem(Where("LOCAL_RANK"), "", wrong, "start one process a GPU", str(world.local_rank))
            )
        torch.cuda.set_device(world.local_rank)
        dist.init_process_group("cuda:nccl,cpu:gloo", timeout=PATIENCE)
    else:
        # accelerate's own "cpu:0" is a place that torch.load cannot restore an optimizer to (torch 2.13).
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        dist.init_process_group("gloo", timeout=PATIENCE)
    refuse_another_group(world)


def refuse_another_group(world: World) -> None:
    """Stop where libraries made another group than the launcher described.

    Raises:
        MachineError: they did.
    """
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if (size, rank) != (world.size, world.rank):
        wrong = f"the process group has rank {rank} of {size}, the launcher said rank {world.rank} of {world.size}"
        raise MachineError(Problem(Where("process group"), "", wrong, "start the run with one launcher alone"))


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. Every rank must ask."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor([flag], dtype=torch.int32)  # on the processor: no GPU waits for it
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def total(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The sums of the counts of all ranks. Every rank must ask."""
    if not dist.is_initialized():
        return counts
    sums = torch.tensor(counts, dtype=torch.int64)
    dist.all_reduce(sums)
    return tuple(sums.tolist())


def sums(values: tuple[float, ...]) -> tuple[float, ...]:
    """The sums of the numbers of all ranks. Every rank must ask."""
    if not dist.is_initialized():
        return values
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    return tuple(summed.tolist())


def mean_of_all(values: torch.Tensor) -> torch.Tensor:
    """The mean of the values that all ranks have, as many as they may be. Every rank must ask."""
    if not dist.is_initialized():
        return values.mean()
    summed, count = sums((float(values.double().sum()), len(values)))
    return torch.tensor(summed / count, dtype=values.dtype, device=values.device)


def mean(value: float) -> float:
    """The mean of a number over all ranks. Every rank must ask."""
    if not dist.is_initialized():
        return value
    summed = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(summed)
    return float(summed.item() / dist.get_world_size())


def all_equal(value: float) -> bool:
    """Whether every rank has the same number. Every rank must ask."""
    if not dist.is_initialized():
        return True
    ends = torch.tensor([value, -value], dtype=torch.float64)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if dist.is_initialized():
        any_rank(False)


def leave_group() -> None:
    """End the process group; no collective follows."""
    if dist.is_initialized():
        dist.destroy_process_group()
