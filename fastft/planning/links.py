"""What GPUs and hosts are connected by, and what an exchange of all ranks takes over it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastft.errors import Problem, UsageError, Where, nearest
from fastft.planning.devices import sheet_of
from fastft.probe.device import Device


@dataclass(frozen=True)
class Link:
    """One kind of connection. `bandwidth`: bytes/s in one direction, of a GPU inside a host, of a host between them."""

    name: str
    bandwidth: float
    between_hosts: bool
    source: str


_LANES = "PCI-SIG: 16 lanes, 128b/130b"
_LINE = "the line rate / 8"
_ROWS = (
    Link("nvlink3", 300e9, False, "NVIDIA A100 data sheet: 600 GB/s, both directions together"),
    Link("nvlink4", 450e9, False, "NVIDIA H100 data sheet: 900 GB/s, both directions together"),
    Link("pcie3", 15.75e9, False, f"{_LANES} at 8 GT/s"),
    Link("pcie4", 31.5e9, False, f"{_LANES} at 16 GT/s"),
    Link("pcie5", 63.0e9, False, f"{_LANES} at 32 GT/s"),
    Link("10gbit", 1.25e9, True, _LINE),
    Link("25gbit", 3.125e9, True, _LINE),
    Link("100gbit", 12.5e9, True, _LINE),
    Link("200gbit", 25e9, True, _LINE),
    Link("400gbit", 50e9, True, _LINE),
)
LINKS = {row.name: row for row in _ROWS}
# The fastest that each listed card has: those with NVLink in their 8-GPU hosts, the others over PCIe.
BUILT_IN = {
    "a100-40gb": "nvlink3",
    "a100-80gb": "nvlink3",
    "h100": "nvlink4",
    "h200": "nvlink4",
    "l40s": "pcie4",
    "l4": "pcie4",
    "t4": "pcie3",
    "rtx4090": "pcie4",
}
# Where --link names none.
BETWEEN_HOSTS = "100gbit"
# The share of the bandwidth that NCCL reaches. High: its developers give 370 of NVLink's 450 GB/s (NVIDIA/nccl-tests,
# issue 212). Low: GPUs whose traffic crosses the processor reach half of PCIe or less (NVIDIA/nccl, issue 1530), and
# TCP without RDMA about half of a fast network: estimated.
REACHED = (0.5, 0.82)


@dataclass(frozen=True)
class Network:
    """The links of a run: `inside` a host and `between` hosts, each in a number of lines side by side."""

    inside: Link
    between: Link
    lines_inside: int = 1
    lines_between: int = 1

    def __str__(self) -> str:
        inside, between = (f"{lines}x" if lines > 1 else "" for lines in (self.lines_inside, self.lines_between))
        return f"{inside}{self.inside.name} inside a host, {between}{self.between.name} between hosts"

    def gather_seconds(self, count: float, per_host: int, hosts: int) -> float:
        """An all-gather or a reduce-scatter of `count` bytes, whole: (n - 1) / n of them pass each rank's link.

        Ring algorithms (Patarasuk and Yuan 2009), first among hosts, then inside each: all that other hosts hold comes
        once into a host, (h - 1) / h of it, and is handed on there. Without the time to start a transfer.
        """
        inside = (per_host - 1) / per_host * count / (self.inside.bandwidth * self.lines_inside)
        return inside + (hosts - 1) / hosts * count / (self.between.bandwidth * self.lines_between)

    def reduce_seconds(self, count: float, per_host: int, hosts: int) -> float:
        """An all-reduce: a reduce-scatter, then an all-gather, 2 (n - 1) / n of the bytes."""
        return 2 * self.gather_seconds(count, per_host, hosts)


def named_network(text: str | None, device: Device) -> Network:
    """The links of `--link`, such as `100gbit`, `8x400gbit` or `pcie4,25gbit`; what it leaves out is the card's own.

    Raises:
        UsageError: a link is unknown or named twice, or there are none known inside a host of `device`.
    """
    chosen: dict[bool, tuple[Link, int]] = {}
    for part in [] if text is None else text.lower().split(","):
        match = re.fullmatch(r"(?:([1-9]\d{0,2})x)?(\w+)", part.strip())
        link = None if match is None else LINKS.get(match[2])
        if match is None or link is None:
            close = nearest(part.strip(), LINKS)
            raise _wrong("there is no such link", f"did you mean {close}?" if close else _known(), text)
        if link.between_hosts in chosen:
            where = "between hosts" if link.between_hosts else "inside a host"
            raise _wrong(f"names two links {where}", "write one of each kind: --link nvlink4,100gbit", text)
        chosen[link.between_hosts] = (link, int(match[1] or 1))
    sheet = sheet_of(device)
    if False not in chosen and sheet is None:
        raise _wrong(f"the links inside a host of {device.name} are not known", "write --link pcie4,100gbit", text)
    inside, lines = chosen.get(False) or (LINKS[BUILT_IN[sheet.option if sheet else ""]], 1)
    between, lines_between = chosen.get(True) or (LINKS[BETWEEN_HOSTS], 1)
    return Network(inside, between, lines, lines_between)


def _known() -> str:
    return f"known: {', '.join(LINKS)}"


def _wrong(wrong: str, instead: str, got: str | None) -> UsageError:
    return UsageError(Problem(Where("--link"), "", wrong, instead, got))
