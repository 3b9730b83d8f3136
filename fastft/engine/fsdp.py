"""A model whose weights, gradients and optimizer state are split among the ranks by torch's `fully_shard` (FSDP2).

accelerate 1.15 makes DDP of FSDP2 without a GPU, and PEFT 0.21 and transformers 5.17 write no adapter and no optimizer
state of split tensors: so the model is split here, before a trainer sees it, and checkpoints hold whole tensors, in the
form that one process writes. Any number of processes continues from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fastft.errors import Problem, TrainingError, Where
from fastft.planning.calls import Calls


def split_model(calls: Calls, model: Any) -> Any:
    """`model`; where `calls` split it, each rank keeps its part of every weight, and a layer is gathered to compute.

    Raises:
        TrainingError: a weight stayed whole.
    """
    if calls.shard is None:
        return model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    kinds = set(base._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in kinds:
            fully_shard(module, **calls.shard.kwargs)
    fully_shard(model, **calls.shard.kwargs)
    dist.fsdp.register_fsdp_forward_method(model, "generate")
    whole = [name for name, weight in model.named_parameters() if not isinstance(weight, DTensor)]
    if whole:
        wrong = f"FSDP2 was asked for, and {whole[0]} is not split among the ranks"
        raise TrainingError(Problem(Where("training"), "", wrong, "this is a bug of fastft or of a library"))
    # Otherwise accelerate would make DDP of it (prepare_model).
    model._is_accelerate_prepared = True
    return model


def is_split(model: Any) -> bool:
    """Whether `split_model` made it."""
    return isinstance(model, FSDPModule)


def whole(value: Any) -> Any:
    """The whole of a tensor that may be split; all ranks must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share_later(model: Any, *, now: bool) -> None:
    """Whether the next backward pass shares the gradients among the ranks; else they add up, whole, on each."""
    model.set_requires_gradient_sync(now)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The state of the optimizer in whole tensors on the processor, as one process has it; all ranks must ask."""
    state: dict[str, Any] = optimizer.state_dict()

    def on_processor(value: Any) -> Any:
        return whole(value).cpu() if torch.is_tensor(value) else value

    kept = {key: {name: on_processor(value) for name, value in one.items()} for key, one in state["state"].items()}
    return {**state, "state": kept}


def load_optimizer_state(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Give each rank its part of a state that `optimizer_state` made."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    split = {
        key: {name: _like(value, weights[key]) if torch.is_tensor(value) else value for name, value in one.items()}
        for key, one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": split})


def load_weights(model: Any, folder: Path) -> None:
    """Give each rank its part of the trained weights in the safetensors files of a checkpoint.

    Raises:
        TrainingError: a file holds other weights than the model trains.
    """
    weights = dict(model.named_parameters())
    if isinstance(model, PeftModel):
        trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        weights = get_peft_model_state_dict(model, trained, save_embedding_layers=False)
    read = set()
    for name, value in _stored(folder):
        if name not in weights or weights[name].shape != value.shape:
            wrong = f"holds {name} of {tuple(value.shape)}, which the model does not train"
            raise TrainingError(Problem(Where(str(folder)), "", wrong, "begin anew with --fresh"))
        with torch.no_grad():
            weights[name].copy_(_like(value, weights[name]))
        read.add(name)
    if missing := weights.keys() - read:
        wrong = f"does not hold {min(missing)}"
        raise TrainingError(Problem(Where(str(folder)), "", wrong, "begin anew with --fresh"))


def _stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 -- no mapping
                yield name, file.get_tensor(name)


def _like(value: torch.Tensor, weight: Any) -> torch.Tensor:
    """`value`, which every rank has, as `weight` is split; what is no part for part of it, such as a step, stays."""
    value = value.to(weight.device)
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    split: torch.Tensor = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
    return split
