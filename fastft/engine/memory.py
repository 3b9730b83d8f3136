"""The memory of this process: its peak, and freeing what is no longer used."""

from __future__ import annotations

import gc
import resource
import sys

import torch

from fastft.engine_choice import selected


def peak_memory() -> int:
    """Peak bytes: allocated on the GPU, or resident in this process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> None:
    """Free the memory of models without references: trainers are reference cycles, and torch caches what is freed."""
    if selected() == "unsloth":
        from unsloth_zoo import gradient_checkpointing

        # Unsloth does it after a training that ends well. The buffers are there once one has moved activations.
        if "GPU_BUFFERS" in vars(gradient_checkpointing):
            gradient_checkpointing.reset_unsloth_gradient_checkpointing_buffers()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
