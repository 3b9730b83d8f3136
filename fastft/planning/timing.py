"""How long a run takes: operations by tokens, the rate of the device, and the share of it that training reaches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastft.planning.batching import Padding
from fastft.planning.devices import sheet_of
from fastft.planning.products import Product
from fastft.planning.throughput import Kind, Share, published_share
from fastft.planning.work import Work, expand_seconds
from fastft.probe.architecture import Architecture
from fastft.probe.device import Device

# What training reaches of a processor's peak: the quickstart took 0.31 of it beside other work, 0.52 on a free machine.
CPU_SHARE = Share(0.31, 0.52, "the quickstart's on two processors")
# The same of what it was measured to multiply: 134 tokens/s of 574 MFLOP in bfloat16 beside other work, at 191 GFLOP/s,
# and 94 in float32 on a free core, at 93 GFLOP/s, with 5 % padding.
PRODUCT_SHARE = Share(0.42, 0.61, "the quickstart's in float32 and bfloat16")
# What a micro-batch costs a processor besides its tokens, in tokens: reading the weights and starting small operations.
# Measured in whole passes of the quickstart's shape on two threads: benchmarks/micro_batches.json. Reading the weights
# alone can take more, where memory is slow.
CPU_READING_TOKENS = 32.0
# The same in bfloat16: as many seconds, in which 2.5 times the tokens are computed.
CPU_READING_TOKENS_BFLOAT16 = 80.0
# Runs of one kind on one machine differ by less, and other rows of the same length hardly matter.
MEASURED_MARGIN = 0.1
# A GPU waits for its kernels to be started where a micro-batch is small: some 300 a layer, forward and backward, at 4
# to 12 microseconds each. Estimated, not measured.
LAUNCH_SECONDS_PER_LAYER = 0.002
# Bits a second of a fast and of a slow line to the Hub, for the download of the weights.
LINES = (1000e6, 100e6)


@dataclass(frozen=True)
class Interval:
    """A figure that is not known exactly: its likely value between `low` and `high`."""

    low: float
    likely: float
    high: float

    def times(self, factor: float, digits: int) -> Interval:
        """Each figure times `factor`, rounded."""
        return Interval(*(round(value * factor, digits) for value in (self.low, self.likely, self.high)))


@dataclass(frozen=True)
class Rate:
    """What a device computes: its peak in FLOP/s, the share of it that training reaches, its memory's bytes/s if known.

    `source`: where the peak comes from. `reading_tokens`: see CPU_READING_TOKENS.
    """

    peak: float
    share: Share
    bandwidth: float | None
    source: str
    reading_tokens: float = 0.0

    def flops(self, share: float | None = None) -> float:
        """FLOP/s at the likely share of the peak, or at another one."""
        return self.peak * (self.share.middle if share is None else share)

    @property
    def assumption(self) -> str:
        return f"{self.source}, {self.share.low:.0%} to {self.share.high:.0%} of it reached: {self.share.source}"

    def as_json(self) -> dict[str, Any]:
        """The peak in FLOP/s, and the share of it that is reached."""
        low, high = round(self.share.low, 4), round(self.share.high, 4)
        return {
            "peak_flops": self.peak,
            "utilisation": round(self.share.middle, 4),
            "utilisation_low": low,
            "utilisation_high": high,
        }


@dataclass(frozen=True)
class Time:
    """The time forecast of the training itself; loading, evaluation and export come on top.

    `tokens`: of all epochs, padding not counted. `download`: seconds before it on a fast and on a slow line, None where
    the model is here. `price`: of both, None where no price of an hour is given.
    """

    work: Work
    rate: Rate
    tokens: int
    tokens_per_second: float
    seconds: Interval
    download: tuple[float, float] | None
    price: Interval | None

    def as_json(self) -> dict[str, Any]:
        """Every figure, and the assumption behind the rate."""
        return {
            **self.work.as_json(),
            **self.rate.as_json(),
            "assumption": self.rate.assumption,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            **_of_interval("seconds", self.seconds),
            "download_seconds": self.download,
            **_of_interval("price", self.price),
        }


@dataclass(frozen=True)
class UnknownTime:
    """Why there is no forecast of time, and what is known without it.

    `full_step`: seconds of an optimizer step whose rows all have max_seq_length tokens, the most that a step can take.
    """

    missing: str
    work: Work | None
    rate: Rate | None
    tokens: int | None
    full_step: Interval | None = None

    def as_json(self) -> dict[str, Any]:
        """What is known under the names of `Time.as_json`, null for the rest."""
        work = self.work.as_json() if self.work else {"flops_per_token": None, "attention_share": None}
        shares = ("peak_flops", "utilisation", "utilisation_low", "utilisation_high")
        rate = self.rate.as_json() if self.rate else dict.fromkeys(shares)
        unknown: dict[str, float | None] = dict.fromkeys(("tokens_per_second", "download_seconds"))
        unknown |= {**_of_interval("seconds", None), **_of_interval("price", None)}
        return {**work, **rate, "assumption": self.missing, "tokens": self.tokens, **unknown}


def _of_interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    keys = (name, f"{name}_low", f"{name}_high")
    values = (None,) * 3 if interval is None else (interval.likely, interval.low, interval.high)
    return dict(zip(keys, values, strict=True))


def device_rate(
    device: Device,
    model: Architecture | None,
    kind: Kind,
    engine: str,
    tokens: float,
    measured: Sequence[float],
    product: Product | None,
    *,
    dtype: str = "float32",
) -> Rate | None:
    """The rate of a device: a GPU by its data sheet; a processor by `product`, what it was measured to multiply, or
    else by cores, clock and vector width; None if unknown.

    The share of it is that of earlier runs of this kind here where there are any (`measured`), else a published one,
    for `tokens` in a micro-batch.
    """
    own = None
    if measured:
        low, high = min(measured) * (1 - MEASURED_MARGIN), max(measured) * (1 + MEASURED_MARGIN)
        own = Share(low, high, f"measured here in {len(measured)} run{'s' * (len(measured) > 1)}")
    sheet = sheet_of(device)
    if sheet is not None and model is not None:
        share = own or published_share(sheet, model, kind, engine, tokens)
        return Rate(sheet.flops, share, sheet.bandwidth, f"{sheet.flops / 1e12:g} TFLOP/s of its data sheet")
    if device.is_gpu:
        return None
    reading = CPU_READING_TOKENS_BFLOAT16 if dtype == "bfloat16" else CPU_READING_TOKENS
    if product is not None:
        source = f"{product.flops / 1e9:.0f} GFLOP/s (products measured here)"
        return Rate(product.flops, own or PRODUCT_SHARE, None, source, max(reading, product.reading_tokens))
    rate = _processor_rate(own or CPU_SHARE, device)
    return None if rate is None else replace(rate, reading_tokens=reading)


def _processor_rate(share: Share, device: Device) -> Rate | None:
    """Cores x clock x float32 operations a cycle: two fused multiply-adds on 8 (AVX2) or 16 (AVX-512) numbers."""
    cores = re.search(r"(\d+) cores?\)", device.name)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    clock = re.search(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)
    if cores is None or clock is None:
        return None
    flags = set(text[text.find("flags") :].split("\n", 1)[0].split())
    width = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    peak = int(cores[1]) * float(clock[1]) * 1e6 * width * 4
    vectors = f"{cores[1]} x {float(clock[1]) / 1000:.1f} GHz x {width * 4} operations"
    return Rate(peak, share, None, f"{peak / 1e9:.0f} GFLOP/s ({vectors})")


def seconds_per_epoch(
    row: Padding, tokens: int, work: Work, rate: Rate, model: Architecture, *, load_in_4bit: bool, share: float | None
) -> float:
    """What `tokens` real tokens take in one mode: their share of padded work, and expanding weights per micro-batch.

    `share`: of the device's peak that is reached, None for the likely one.
    """
    micro_batches = tokens / row.useful_tokens
    computed = tokens / (1 - row.padding_share) + micro_batches * rate.reading_tokens
    seconds = computed * work.total / rate.flops(share)
    if rate.bandwidth is None:
        return seconds
    if load_in_4bit:
        seconds += micro_batches * expand_seconds(model, work, rate.bandwidth)
    # As uncertain as the share is.
    wider = rate.share.middle / (rate.share.middle if share is None else share)
    return max(seconds, micro_batches * model.layers * LAUNCH_SECONDS_PER_LAYER * wider)


def download_seconds(count: int) -> tuple[float, float]:
    """What a download of `count` bytes takes on a fast and on a slow line."""
    fast, slow = LINES
    return round(8 * count / fast, 1), round(8 * count / slow, 1)
