"""GPUs by the name that `--device` takes: memory as the driver reports it, and the rates of their data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fastft.errors import Problem, UsageError, Where, nearest
from fastft.probe.device import GIB, Device, processor

MIB = 1024**2


@dataclass(frozen=True)
class Sheet:
    """One GPU: memory in bytes, dense 16-bit matrix rate in FLOP/s, memory bandwidth in bytes/s.

    `option` is what `--device` calls it, `pattern` finds it in the driver's name of a GPU, and in no other's.
    Rates are those of the maker's data sheet without sparsity; memory is what nvidia-smi reports as total.
    """

    option: str
    name: str
    pattern: str
    memory_bytes: int
    flops: float
    bandwidth: float
    computes_bfloat16: bool = True


_ROWS = (
    Sheet("a100-40gb", "NVIDIA A100 40 GB", r"A100(?!.*80 ?GB)", 40_960 * MIB, 312e12, 1.555e12),
    Sheet("a100-80gb", "NVIDIA A100 80 GB", r"A100.*80 ?GB", 81_920 * MIB, 312e12, 2.039e12),
    Sheet("h100", "NVIDIA H100 80 GB", r"H100", 81_559 * MIB, 989e12, 3.35e12),
    Sheet("h200", "NVIDIA H200", r"H200", 143_771 * MIB, 989e12, 4.8e12),
    Sheet("l40s", "NVIDIA L40S", r"\bL40S\b", 46_068 * MIB, 362e12, 0.864e12),
    # Whole words: an L40S is no L4.
    Sheet("l4", "NVIDIA L4", r"\bL4\b", 23_034 * MIB, 121e12, 0.3e12),
    Sheet("t4", "NVIDIA T4", r"\bT4\b", 15_360 * MIB, 65e12, 0.32e12, computes_bfloat16=False),
    Sheet("rtx4090", "NVIDIA GeForce RTX 4090", r"RTX 4090(?! D| Laptop)", 24_564 * MIB, 165.2e12, 1.008e12),
)
SHEETS = {row.option: row for row in _ROWS}


def named_device(name: str | None, memory: str | None, found: Device) -> Device:
    """The device to forecast for: `name` of `--device`, with the memory of `--memory`; else the one that was found.

    Raises:
        UsageError: there is no device of that name, or the memory is no size.
    """
    device = found
    if name is not None and name.lower() != "cpu":
        sheet = SHEETS.get(name.lower())
        if sheet is None:
            variants = [option for option in SHEETS if option.startswith(f"{name.lower()}-")]
            close = " or ".join(variants) or nearest(name.lower(), [*SHEETS, "cpu"])
            known = f"did you mean {close}?" if close else f"known: {', '.join([*SHEETS, 'cpu'])}"
            raise UsageError(Problem(Where("--device"), "", "there is no such device", known, name))
        device = Device("cuda", sheet.name, sheet.memory_bytes, 1, sheet.computes_bfloat16)
    elif name is not None and found.is_gpu:
        device = processor()
    return device if memory is None else replace(device, memory_bytes=_bytes(memory))


def sheet_of(device: Device) -> Sheet | None:
    """The data sheet of a GPU by its name, None for an unlisted one and for a CPU."""
    if not device.is_gpu:
        return None
    return next((sheet for sheet in SHEETS.values() if re.search(sheet.pattern, device.name)), None)


def _bytes(text: str) -> int:
    """`24GB`, `16 GiB` or `8000MB` in bytes; a GPU's "24 GB" is meant in the binary sense, as drivers count it."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB|G|MB|MiB|M)\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UsageError(Problem(Where("--memory"), "", "is not a size of memory", "write --memory 24GB", text))
    return int(float(match[1]) * (GIB if match[2].lower().startswith("g") else MIB))
