"""What a processor multiplies in a second: measured once by a run, kept in the cache folder, read by plans."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fastft.errors import MachineError
from fastft.files.cache import cache_folder
from fastft.files.records import read_record, write_record
from fastft.probe.architecture import Architecture
from fastft.probe.device import Device


@dataclass(frozen=True)
class Product:
    """Products of one type of numbers: FLOP/s with many tokens, and what reading the weights costs, in tokens."""

    flops: float
    reading_tokens: float


# By the type of numbers, such as "float32"; of one processor, at the sizes of one model.
Products = Mapping[str, Product]


@dataclass(frozen=True)
class KeptProducts:
    """products.json: by processor and sizes (`products_key`), what was measured."""

    SCHEMA: ClassVar[int] = 1

    measured: dict[str, dict[str, Product]] = field(default_factory=dict)


def products_file() -> Path:
    """Where the measurements are kept."""
    return cache_folder() / "products.json"


def kept_products(path: Path) -> Mapping[str, Products]:
    """The measurements in the file at `path`; none where it is missing or damaged, since a run can measure again."""
    try:
        found = read_record(path, KeptProducts)
    except MachineError:
        return {}
    return {} if found is None else found.measured


def keep_products(path: Path, key: str, products: Products) -> None:
    """Add a measurement to the file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {name: dict(each) for name, each in kept_products(path).items()}
    write_record(path, KeptProducts({**known, key: dict(products)}))


def forget_products(path: Path, key: str) -> None:
    """Take a measurement out of the file at `path`, so that the next run measures again."""
    known = kept_products(path)
    if key in known:
        write_record(path, KeptProducts({name: dict(each) for name, each in known.items() if name != key}))


def products_key(device: Device, model: Architecture, installed: Mapping[str, str]) -> str:
    """What two measurements must have in common to be one."""
    sizes = f"{model.layers}x{model.hidden}x{model.inner}"
    threads = f"threads {os.environ.get('OMP_NUM_THREADS', 'all')}"
    return " | ".join((device.name, _processor_name(), threads, sizes, f"torch {installed.get('torch', 'none')}"))


def _processor_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    parts = (re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE) for name in ("model name", "model"))
    return ", ".join(part[1].strip() for part in parts if part)
