"""Unsloth's CUDA branch on a processor: what it asks of a GPU is answered, its Triton kernels are their torch forms.

UNSLOTH_ALLOW_CPU makes Unsloth take its CUDA paths without a GPU (unsloth/device_type.py), and its own stub stands for
Triton. What Unsloth skips under that variable is done here, so that UnslothSFTTrainer is generated and becomes the base
of RunTrainer, as on a GPU. What remains out of reach: 4-bit weights, offloading, memory and time.
"""

from __future__ import annotations

import os
import sys
import types
import warnings
from typing import Any

import torch

GIB = 1024**3


def answer_as_a_gpu() -> None:
    """Make torch.cuda answer what Unsloth asks of it; `is_available` stays False, so that tensors stay here.

    Called before Unsloth is imported.
    """
    h100 = types.SimpleNamespace(name="NVIDIA H100", total_memory=80 * GIB, major=9, minor=0, multi_processor_count=132)
    answers: dict[str, Any] = {
        "get_device_properties": h100,
        "get_device_capability": (9, 0),
        "current_device": 0,
        "mem_get_info": (70 * GIB, 80 * GIB),
        **dict.fromkeys(("empty_cache", "synchronize", "reset_peak_memory_stats")),
        **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), 0),
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)


def finish_the_branch() -> None:
    """Do what Unsloth leaves out on a processor, and keep everything on it. Called after Unsloth is imported."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    from transformers import training_args
    from unsloth.context_parallel import patch_sft_trainer
    from unsloth.models import llama, rl
    from unsloth.trainer import _patch_trl_trainer

    torch.cuda.is_bf16_supported = training_args.is_torch_bf16_gpu_available = lambda *_, **__: True
    rl.PatchFastRL(FastLanguageModel=llama.FastLlamaModel)
    _patch_trl_trainer()
    patch_sft_trainer()
    here = {
        "get_current_device": lambda: torch.device("cpu"),
        "DEVICE_COUNT": _Count(1),
        "SUPPORTS_BFLOAT16": True,
    }
    for name, module in list(sys.modules.items()):
        if name.startswith("unsloth"):
            known = vars(module)
            known |= {key: value for key, value in here.items() if key in known}
    llama._LazyDeviceScratch = lambda _, make: _OneDevice({"cpu": make(torch.device("cpu"))})
    # For heads of 512, which no model here has; it can be imported with a driver alone.
    sys.modules["unsloth.kernels.large_head_attention"] = types.ModuleType("large_head_attention")
    vars(sys.modules["unsloth.kernels.large_head_attention"])["patch_large_head_attention"] = lambda _: None
    _replace_kernels()


class _OneDevice(dict[object, Any]):
    """What Unsloth keeps for each device in a list, for the only one that there is: its index is None."""

    def __getitem__(self, key: object) -> Any:
        return self.get("cpu")

    def __setitem__(self, key: object, value: Any) -> None:
        super().__setitem__("cpu", value)


class _Count(int):
    """`[None] * DEVICE_COUNT` becomes a _OneDevice."""

    def __rmul__(self, other: Any) -> Any:
        return _OneDevice()


def _replace_kernels() -> None:
    """Each launch of a Triton kernel becomes the same sum in torch; what is around it stays Unsloth's."""
    from unsloth.kernels import cross_entropy_loss, fast_lora, rms_layernorm, rope_embedding

    rms_layernorm.Fast_RMS_Layernorm = types.SimpleNamespace(apply=_rms_norm)
    rope_embedding._fast_rope_embedding_eager = _rope
    cross_entropy_loss.Fast_CrossEntropyLoss = types.SimpleNamespace(apply=_cross_entropy)
    fast_lora.swiglu_fg_kernel = _swiglu
    fast_lora.swiglu_DWf_DW_dfg_kernel = _swiglu_backward


def _rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float, *_: bool) -> torch.Tensor:
    wide = states.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(weight.dtype) * weight


def _rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`query` and `key`: (batch, heads, length, width); `cos` and `sin`: (positions, width)."""
    batch, _, length, _ = query.shape
    at = torch.arange(length).expand(batch, length) if positions is None else positions.reshape(batch, length).long()
    cos, sin = (table.squeeze()[at].unsqueeze(1).to(query.dtype) for table in (cos, sin))

    def rotate(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    return rotate(query), rotate(key)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, softcapping: float, scaling: float) -> torch.Tensor:
    assert softcapping == scaling == 0
    return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="none")


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate.float()).to(up.dtype) * up


def _swiglu_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Product, its gradient times the gate, gradient of the gate, as the kernel writes them over its arguments."""
    from unsloth.kernels.swiglu import _DWf_DW_dfg_traced

    results = _DWf_DW_dfg_traced(gradient, gate, up)
    for place, value in zip((gradient, gate, up), results, strict=True):
        place.copy_(value)
    return gradient, gate, up


def bring_up() -> None:
    """Import Unsloth as if a GPU were there; nothing of transformers, trl and peft may be imported before."""
    os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    answer_as_a_gpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fastft.engine  # noqa: F401
    finish_the_branch()


bring_up()
