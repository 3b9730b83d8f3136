"""The memory of this process: its peak, and freeing what is no longer used."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

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


def limit_memory(limit_bytes: int, device_bytes: int) -> None:
    """Let this process hold at most `limit_bytes`, of the GPU's `device_bytes` or of main memory.

    More is refused, as when there is no more: torch then says that memory ran out. What is held already stays. In main
    memory only Linux can: elsewhere such a limit does not count memory that is mapped.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / device_bytes))
    elif sys.platform == "linux":
        # RLIMIT_DATA counts all that may be written, weights that are mapped from a file and never written included.
        held, counted = _status_bytes("VmRSS"), _status_bytes("VmData")
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (counted + max(0, limit_bytes - held), most))


def lift_limit() -> None:
    """Undo `limit_memory`, to load another model."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
    elif sys.platform == "linux":
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def begin_peak() -> None:
    """Begin a new peak (`peak_held`); where the system cannot, it stays that of the whole process: never too low."""
    free_memory()
    if sys.platform == "linux" and not torch.cuda.is_available():
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)  # what was freed would count as held
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_held() -> int:
    """Peak bytes since `begin_peak`; of a GPU with all that its memory allocator and the driver hold."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
    return _status_bytes("VmHWM") if sys.platform == "linux" else peak_memory()


def _status_bytes(name: str) -> int:
    """A size in /proc/self/status, which Linux alone has."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
