"""How long a run takes: operations by tokens, the rate of the device, and what share of it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.planning.batching import Padding
from fastft.planning.devices import GPU_UTILISATION, sheet_of
from fastft.probe.architecture import Architecture
from fastft.probe.device import Device

# Each micro-batch expands the 4-bit weights once in each pass: reads 0.516 bytes a weight, writes 2.
EXPANDED_BYTES_PER_WEIGHT = 2.516
# What training reaches of a processor's peak: the quickstart took 0.31 of it beside other work, 0.52 on a free machine.
CPU_UTILISATION = 0.4


@dataclass(frozen=True)
class Work:
    """Floating-point operations per token. `recompute`: what checkpointing adds; `attention`: a part of the rest."""

    forward: float
    backward: float
    recompute: float
    attention: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute

    @property
    def attention_share(self) -> float:
        return self.attention / self.total

    def as_json(self) -> dict[str, Any]:
        """Operations per token, and the share of attention in them."""
        return {"flops_per_token": self.total, "attention_share": round(self.attention_share, 4)}


@dataclass(frozen=True)
class Rate:
    """What a device computes: its peak in FLOP/s, the share assumed to be reached, its memory's bytes/s if known."""

    peak: float
    utilisation: float
    bandwidth: float | None
    source: str

    @property
    def flops(self) -> float:
        return self.peak * self.utilisation

    def as_json(self) -> dict[str, Any]:
        """The peak in FLOP/s, and the share assumed to be reached."""
        return {"peak_flops": self.peak, "utilisation": self.utilisation}


@dataclass(frozen=True)
class Time:
    """The time forecast of the training itself; loading, evaluation and export come on top.

    `tokens`: of all epochs, padding not counted. `price`: None where no price of an hour is given.
    """

    work: Work
    rate: Rate
    tokens: int
    tokens_per_second: float
    seconds: float
    price: float | None

    def as_json(self) -> dict[str, Any]:
        """Every figure, and the assumption behind the rate."""
        return {
            **self.work.as_json(),
            **self.rate.as_json(),
            "assumption": self.rate.source,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "price": self.price,
        }


@dataclass(frozen=True)
class UnknownTime:
    """Why there is no forecast of time, and what is known all the same."""

    missing: str
    work: Work | None
    rate: Rate | None
    tokens: int | None

    def as_json(self) -> dict[str, Any]:
        """What is known under the names of `Time.as_json`, null for the rest."""
        work = self.work.as_json() if self.work else {"flops_per_token": None, "attention_share": None}
        rate = self.rate.as_json() if self.rate else {"peak_flops": None, "utilisation": None}
        unknown = dict.fromkeys(("tokens_per_second", "seconds", "price"))
        return {**work, **rate, "assumption": self.missing, "tokens": self.tokens, **unknown}


def work_per_token(
    model: Architecture, *, adapter_weights: int, full_finetuning: bool, recomputes: bool, span: float
) -> Work:
    """Operations for one token that attends to `span` / 2 others on average (causal).

    Forward: two operations a weight, 2 T q for scores and values in each layer over half the span. Backward with LoRA:
    only input gradients of the frozen base (2 a weight) and both of the adapter (4 a weight); with full fine-tuning 4 a
    weight; attention twice its forward. Checkpointing computes the layers' forward pass once more; the output layer is
    not recomputed (Kaplan et al. 2020, section 2.1; Chen et al. 2016; NVIDIA's Megatron-Bridge counts 3.94 N for
    Llama-3-70B LoRA).
    """
    base = model.body_weights + model.embedding_weights
    adapter = 0 if full_finetuning else adapter_weights
    attention = 2.0 * span * model.query_width * model.layers
    forward = 2.0 * (base + adapter) + attention
    backward = (4.0 if full_finetuning else 2.0) * base + 4.0 * adapter + 2 * attention
    recompute = 2.0 * (model.body_weights + adapter) + attention if recomputes else 0.0
    return Work(forward, backward, recompute, attention * (4 if recomputes else 3))


def device_rate(device: Device) -> Rate | None:
    """The rate of a device: a GPU by its data sheet, a processor by cores, clock and vector width; None if unknown."""
    sheet = sheet_of(device)
    if sheet is not None:
        source = f"{sheet.flops / 1e12:g} TFLOP/s of its data sheet, {GPU_UTILISATION:.0%} of it assumed"
        return Rate(sheet.flops, GPU_UTILISATION, sheet.bandwidth, source)
    return None if device.is_gpu else _processor_rate(device)


def _processor_rate(device: Device) -> Rate | None:
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
    source = f"{peak / 1e9:.0f} GFLOP/s ({vectors}), {CPU_UTILISATION:.0%} of it assumed"
    return Rate(peak, CPU_UTILISATION, None, source)


def seconds_per_epoch(
    row: Padding, tokens: int, work: Work, rate: Rate, model: Architecture, *, load_in_4bit: bool
) -> float:
    """What `tokens` real tokens take in one mode: their share of padded work, and expanding weights per micro-batch."""
    computed = tokens / (1 - row.padding_share)
    seconds = computed * work.total / rate.flops
    if load_in_4bit and rate.bandwidth is not None:
        passes = 3 if work.recompute else 2
        expand = passes * model.body_weights * EXPANDED_BYTES_PER_WEIGHT / rate.bandwidth
        seconds += tokens / row.useful_tokens * expand
    return seconds
