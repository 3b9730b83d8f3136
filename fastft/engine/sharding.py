"""A model whose weights or optimizer state are split among the ranks, by DeepSpeed's ZeRO or FSDP2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from fastft.engine import fsdp
from fastft.errors import Problem, TrainingError, Where
from fastft.planning.plan import Plan


def zero_stage(plan: Plan) -> int:
    """DeepSpeed's stage in a plan, 0 without DeepSpeed."""
    deepspeed = plan.calls.trainer.kwargs.get("deepspeed")
    return 0 if deepspeed is None else int(deepspeed["zero_optimization"]["stage"])


def zero_stage_of(trainer: Any) -> int:
    """DeepSpeed's stage in the arguments of a trainer, 0 without DeepSpeed."""
    plugin = trainer.args.deepspeed_plugin
    return 0 if plugin is None else int(plugin.zero_stage)


def splits_weights(plan: Plan) -> bool:
    """Whether no rank holds the whole model."""
    return zero_stage(plan) == 3 or plan.calls.shard is not None


@contextlib.contextmanager
def sharded_loading(plan: Plan) -> Iterator[None]:
    """Load a model as its trainer will hold it: with ZeRO-3 each rank keeps its part of every weight at once."""
    if not zero_stage(plan):
        yield
        return
    import deepspeed

    # Its operators would be compiled at first use, for minutes; gloo and torch's optimizers do without them.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=dist.get_backend())  # takes the group that is there
    if zero_stage(plan) < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(plan.calls.trainer.kwargs["deepspeed"])  # transformers looks while it lives
    yield
    del config


def refuse_if_whole(trainer: Any) -> None:
    """Stop where DeepSpeed was asked to split the model among the ranks and did not.

    Raises:
        TrainingError: a trained weight is whole on this rank.
    """
    stage = zero_stage_of(trainer)
    made = trainer.model_wrapped.zero_optimization_stage() if trainer.deepspeed is not None else 0
    weights = [(name, weight) for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    whole = [name for name, weight in weights if made != stage or (stage == 3 and not hasattr(weight, "ds_id"))]
    if whole:
        wrong = f"ZeRO-{stage} was asked for, and {whole[0]} is not split among the ranks"
        raise TrainingError(Problem(Where("training"), "", wrong, "this is a bug of fastft or of a library"))


def own_part(weight: Any) -> torch.Tensor:
    """What this rank holds of a weight: all of it, unless it is split."""
    if isinstance(weight, DTensor):
        local: torch.Tensor = weight.to_local()
        return local
    part: torch.Tensor = getattr(weight, "ds_tensor", weight)
    return part


def whole_weights(model: Any, *, trained_alone: bool) -> dict[str, torch.Tensor]:
    """The weights of a split model by name, on the processor, for rank 0; none on the others, which must ask too.

    `trained_alone`: without those that are frozen.
    """
    first = dist.get_rank() == 0
    found = {}
    for name, weight in model.named_parameters():
        if trained_alone and not weight.requires_grad:
            continue
        with _gathered(weight) as whole:
            if first:
                found[name] = whole.detach().cpu().clone()
    return found


@contextlib.contextmanager
def _gathered(weight: Any) -> Iterator[torch.Tensor]:
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            yield weight
    else:
        yield fsdp.whole(weight)


@contextlib.contextmanager
def pickles_as_weights() -> Iterator[None]:
    """Read checkpoints without running code that a pickle could hold: DeepSpeed's own reader would run it."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(_pickled_by_deepspeed()):
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _pickled_by_deepspeed() -> list[Any]:
    """The types besides tensors that DeepSpeed 0.19 writes."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]


def forget_sharding() -> None:
    """After training: models that are loaded from here on are whole."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
