"""The device of this machine: NVIDIA GPUs as the driver reports them, or the CPU; without importing torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.probe.software import version

GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """What a run computes on. `memory_bytes`: of one GPU, or main memory. `missing`: why a present GPU is unusable."""

    kind: str
    name: str
    memory_bytes: int
    count: int
    computes_bfloat16: bool
    missing: str | None = None

    @property
    def is_gpu(self) -> bool:
        return self.kind == "cuda"

    def __str__(self) -> str:
        number = f"{self.count} x " if self.is_gpu and self.count > 1 else ""
        return f"{number}{self.name}, {self.memory_bytes / GIB:.1f} GiB"


def find_device() -> Device:
    """The device that a run would use: the GPUs that are visible to this process, else the processor.

    A CPU build of PyTorch cannot use a GPU: then it is the processor, and `missing` says why.
    """
    gpus = _visible(_nvidia_gpus())
    torch = version("torch")
    if not gpus:
        return processor()
    if torch is not None and "+cpu" in torch:
        return processor(f"there is a {gpus[0].name}, but torch {torch} is a build without CUDA")
    return Device("cuda", gpus[0].name, min(gpu.memory_bytes for gpu in gpus), len(gpus), gpus[0].computes_bfloat16)


def _nvidia_gpus() -> list[Device]:
    """Each GPU that the driver reports, or none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in done.stdout.splitlines():
        if line.count(",") < 2:  # "No devices were found"
            continue
        name, memory_mib, capability = (part.strip() for part in line.rsplit(",", 2))
        # "[N/A]" where GPU and processor share one memory (GH200, GB10).
        memory = int(memory_mib) * 1024**2 if memory_mib.isdigit() else _memory_bytes()
        # bfloat16 matrix products need compute capability 8.0 (Ampere).
        gpus.append(Device("cuda", name, memory, 1, capability.partition(".")[0].isdigit() and float(capability) >= 8))
    return gpus


def _visible(gpus: list[Device]) -> list[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves. With entries that are not numbers: as many, in the driver's order."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    entries = [entry.strip() for entry in chosen.split(",") if entry.strip()]
    if all(entry.isdigit() for entry in entries):
        return [gpus[int(entry)] for entry in entries if int(entry) < len(gpus)]
    return [] if "-1" in entries else gpus[: len(entries)]


def processor(missing: str | None = None) -> Device:
    """The processor and main memory of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"CPU ({platform.machine()}, {cores} {'core' if cores == 1 else 'cores'})"
    return Device("cpu", name, _memory_bytes(), 1, _cpu_computes_bfloat16(), missing)


def _memory_bytes() -> int:
    """Main memory, or the container's limit where that is lower."""
    if sys.platform == "win32":
        return _windows_memory_bytes()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(limit_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(physical, int(limit))
    return physical


def _windows_memory_bytes() -> int:
    """Main memory, of GlobalMemoryStatusEx: MEMORYSTATUSEX is two 32-bit and seven 64-bit numbers, total first."""
    import ctypes

    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    windll: Any = getattr(ctypes, "windll")  # noqa: B009  other systems' type stubs lack it
    windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status[1])


def _cpu_computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware: AMX or AVX512-BF16 on x86, the BF16 extension on Arm.

    The same test as in Unsloth's CPU backend (unsloth_zoo/cpu/runtime.py), so that the plan makes the same choice.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & {"amx_bf16", "avx512_bf16"}) if platform.machine() == "x86_64" else "bf16" in flags
