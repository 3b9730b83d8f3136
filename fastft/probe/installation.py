"""Check whether this installation can train: each finding with its state and the command that fixes it."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastft.probe.base_model import cache_folder
from fastft.probe.device import GIB, Device, find_device
from fastft.probe.software import CEILINGS, FLOORS, INSTALL, NEEDED, TESTED, release, version

LOW_DISK_BYTES = 5 * GIB


@dataclass(frozen=True)
class Diagnosis:
    """The state of one checked part. "note" is worth knowing, "broken" prevents training; `fix` says what to do."""

    name: str
    state: Literal["ok", "note", "broken"]
    detail: str
    fix: str = ""


def examine(folder: Path) -> list[Diagnosis]:
    """Every finding about Python, device, packages, disk and cache; `folder` is where runs are written."""
    device = find_device()
    return [
        Diagnosis("python", "ok", sys.version.split()[0]),
        _device(device),
        *_packages(),
        *_quantization(device),
        *_kernels(device),
        _disk(folder),
        _cache(),
    ]


def _device(device: Device) -> Diagnosis:
    if device.missing:
        return Diagnosis("device", "broken", device.missing, "install a CUDA build of torch: see requirements/gpu.txt")
    if device.is_gpu:
        kind = "bfloat16" if device.computes_bfloat16 else "float16, no bfloat16"
        return Diagnosis("device", "ok", f"{device}, {kind}")
    return Diagnosis("device", "note", f"no GPU: {device}", "small models train here; larger ones need an NVIDIA GPU")


def _packages() -> Iterator[Diagnosis]:
    for name, tested in TESTED.items():
        found = version(name)
        if found is None:
            state: Literal["broken", "note"] = "broken" if name in NEEDED else "note"
            yield Diagnosis(name, state, f"not installed; {tested} was tested", INSTALL)
        elif release(found) < FLOORS.get(name, ()):
            floor = ".".join(map(str, FLOORS[name]))
            yield Diagnosis(name, "broken", f"{found} has published vulnerabilities", f"pip install '{name}>={floor}'")
        elif release(found) >= CEILINGS.get(name, (math.inf,)):
            detail = f"{found} is too new for Unsloth {TESTED['unsloth']}; {tested} was tested"
            yield Diagnosis(name, "broken", detail, f"pip install {name}=={tested}")
        elif release(found) != release(tested):
            yield Diagnosis(name, "note", f"{found}; {tested} was tested", f"pip install {name}=={tested}")
        else:
            yield Diagnosis(name, "ok", found)


def _quantization(device: Device) -> Iterator[Diagnosis]:
    """bitsandbytes needs a library for the CUDA version that torch was built for."""
    if not device.is_gpu or version("bitsandbytes") is None:
        return
    cuda = (version("torch") or "").partition("+cu")[2]
    spec = importlib.util.find_spec("bitsandbytes")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if not cuda or folder is None:
        return
    if (folder / f"libbitsandbytes_cuda{cuda}.so").is_file():
        yield Diagnosis("4-bit weights", "ok", f"bitsandbytes has its library for CUDA {cuda}")
    else:
        fix = "pip install -U bitsandbytes, or install a torch build for a CUDA version that bitsandbytes supports"
        yield Diagnosis("4-bit weights", "broken", f"bitsandbytes has no library for CUDA {cuda}", fix)


def _kernels(device: Device) -> Iterator[Diagnosis]:
    """Triton compiles a small C file at start."""
    if not device.is_gpu:
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        yield Diagnosis("C compiler", "broken", "none found; Triton needs one", "apt-get install gcc libc6-dev")
    else:
        yield Diagnosis("C compiler", "ok", compiler)


def _disk(folder: Path) -> Diagnosis:
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free in {folder.resolve()}"
    if free < LOW_DISK_BYTES:
        return Diagnosis("disk", "note", detail, "free some space, or use another --runs-dir")
    return Diagnosis("disk", "ok", detail)


def _cache() -> Diagnosis:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Diagnosis("cache", "broken", f"{folder} cannot be written: {error.strerror}", "set XDG_CACHE_HOME")
    return Diagnosis("cache", "ok", str(folder))
