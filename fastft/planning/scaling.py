"""A run on several GPUs and hosts, on paper: memory of a rank, step time, efficiency and price by number of GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fastft.errors import Problem, UsageError, Where, nearest
from fastft.planning.batching import Batching, Padding, UnknownBatching
from fastft.planning.facts import Facts
from fastft.planning.fitting import memory_settings
from fastft.planning.forecast import UNKNOWN_MODEL
from fastft.planning.links import REACHED, Network, named_network
from fastft.planning.memory import MemorySettings, forecast_memory
from fastft.planning.plan import Plan
from fastft.planning.rank_memory import RankMemory, gathered_bytes, gradient_bytes, rank_memory
from fastft.planning.schedule import Schedule, UnknownSchedule
from fastft.planning.timing import LAUNCH_SECONDS_PER_LAYER, Interval, Time, UnknownTime
from fastft.planning.work import expand_seconds
from fastft.probe.architecture import Architecture, architecture_of
from fastft.recipe.model import Recipe
from fastft.recipe.shardings import SHARDINGS, Sharding

MOST_GPUS = 64
# GPUs of a host where --devices does not say.
PER_HOST = 8
# One more GPU pays while it adds at least this part of the work of one.
PAYS = 0.5


@dataclass(frozen=True)
class Layout:
    """What was asked: `per_host` GPUs on each of `hosts`, how they share the run, and their links."""

    per_host: int
    hosts: int
    sharding: Sharding
    network: Network

    @property
    def ranks(self) -> int:
        return self.per_host * self.hosts

    def of(self, ranks: int) -> tuple[int, int]:
        """GPUs a host and hosts of another number of ranks, on as few hosts as can be."""
        hosts = math.ceil(ranks / self.per_host)
        return math.ceil(ranks / hosts), hosts


@dataclass(frozen=True)
class Point:
    """The run on `ranks` GPUs, with the rows of an optimizer step unchanged.

    `batch`, `accumulation`: of each rank. `compute`, `communication`: seconds of an optimizer step. `seconds`, `price`:
    of the whole training. `speed_up`: against one GPU. `gain`: what each GPU since the row before adds, in GPUs.
    """

    ranks: int
    hosts: int
    batch: int
    accumulation: int
    memory: RankMemory
    compute: Interval
    communication: Interval
    seconds: Interval
    price: Interval | None
    speed_up: float
    gain: float

    @property
    def efficiency(self) -> float:
        return self.speed_up / self.ranks

    def as_json(self) -> dict[str, Any]:
        """Every figure, and the peak of a rank."""
        peak = {"peak_bytes": self.memory.peak_bytes, "fits": self.memory.fits}
        return asdict(self) | {"efficiency": round(self.efficiency, 4), "memory": asdict(self.memory) | peak}


@dataclass(frozen=True)
class Scaling:
    """The table of a run by number of GPUs. `rows_per_step`: the most ranks that can have work.

    `asked`: the row of the layout that was asked for. `best`: the last number of GPUs of which each more paid.
    """

    layout: Layout
    rows_per_step: int
    step_is_kept: bool
    points: tuple[Point, ...]
    asked: Point
    best: int

    def as_json(self) -> dict[str, Any]:
        """The layout, and every row."""
        network = self.layout.network
        return {
            "engine": self.layout.sharding.name,
            "per_host": self.layout.per_host,
            "hosts": self.layout.hosts,
            "links": str(network),
            "rows_per_step": self.rows_per_step,
            "best": self.best,
            "asked": self.asked.as_json(),
            "points": [point.as_json() for point in self.points],
        }


def make_layout(facts: Facts, devices: int | None, hosts: int | None, link: str | None, engine: str | None) -> Layout:
    """The layout of `--devices`, `--hosts`, `--link` and `--engine`.

    Raises:
        UsageError: one of them is not possible.
    """
    sharding = SHARDINGS.get((engine or "ddp").lower())
    if sharding is None:
        close = nearest(str(engine).lower(), SHARDINGS)
        instead = f"did you mean {close}?" if close else f"known: {', '.join(SHARDINGS)}"
        raise UsageError(Problem(Where("--engine"), "", "there is no such engine", instead, engine))
    if not facts.device.is_gpu:
        wrong, instead = "several devices are forecast for GPUs alone", "name one: --device h100"
        raise UsageError(Problem(Where("--devices"), "", wrong, instead, facts.device.name))
    return Layout(devices or PER_HOST, hosts or 1, sharding, named_network(link, facts.device))


def make_scaling(recipe: Recipe, facts: Facts, plan: Plan, layout: Layout, price_per_hour: float | None) -> Scaling:
    """The table, from the plan of one GPU.

    Raises:
        UsageError: that plan knows no time or memory, or the run has fewer rows a step than ranks were asked for.
    """
    model = architecture_of(recipe.model.id, facts.base_model.config)
    schedule, batching, time = plan.schedule, plan.batching, plan.time
    if isinstance(time, UnknownTime) or isinstance(batching, UnknownBatching) or isinstance(schedule, UnknownSchedule):
        missing = time.missing if isinstance(time, UnknownTime) else facts.rows_missing
        raise UsageError(Problem(Where("--devices"), "", f"nothing can be forecast: {missing}", "leave --devices out"))
    if model is None:
        raise UsageError(Problem(Where("--devices"), "", UNKNOWN_MODEL, "leave --devices out"))
    rows = min(schedule.per_device_train_batch_size * schedule.gradient_accumulation_steps, schedule.train_rows)
    if layout.ranks > rows:
        wrong = f"an optimizer step has {rows} rows, too few for {layout.ranks} GPUs"
        instead = f"ask for at most {rows}, or raise train.effective_batch_size"
        raise UsageError(Problem(Where("--devices"), "", wrong, instead, str(layout.ranks)))
    settings = memory_settings(recipe, facts.device, plan.choices)
    steps = _Steps(model, settings, schedule, batching, time, layout, rows, facts.device.memory_bytes)
    counts = sorted({*(2**power for power in range(7)), layout.ranks})
    points: list[Point] = []
    for ranks in (count for count in counts if count <= max(rows, 1)):
        points.append(steps.point(ranks, price_per_hour, points))
    asked = next(point for point in points if point.ranks == layout.ranks)
    kept = recipe.train.effective_batch_size is not None
    return Scaling(layout, rows, kept, tuple(points), asked, _best(points))


def _best(points: Iterable[Point]) -> int:
    """The last number of GPUs up to which each more paid, among the rows of the table."""
    best = 1
    for point in points:
        if point.gain < PAYS:
            break
        best = point.ranks
    return best


@dataclass(frozen=True)
class _Steps:
    """What every row of the table is made of."""

    model: Architecture
    settings: MemorySettings
    schedule: Schedule
    batching: Batching
    time: Time
    layout: Layout
    rows: int
    device_bytes: int

    def point(self, ranks: int, price_per_hour: float | None, before: list[Point]) -> Point:
        """The row of `ranks` GPUs, after the rows `before` it."""
        per_host, hosts = self.layout.of(ranks)
        padding, accumulation = self.split(ranks)
        compute = self.compute(padding, accumulation)
        communication = self.communication(per_host, hosts, accumulation)
        # Compute and communication overlap wholly at best, and not at all at worst and as is likely.
        low = max(compute.low, communication.low)
        step = Interval(low, compute.likely + communication.likely, compute.high + communication.high)
        # The plan of one GPU counts the short last step of each epoch, and its training is 1.0 in this table.
        alone = before[0] if before else None
        factor = self.time.seconds.likely / (compute if alone is None else alone.compute).likely
        seconds = step.times(factor, 1)
        price = None if price_per_hour is None else seconds.times(price_per_hour * ranks / 3600, 2)
        speed_up = 1.0 if alone is None else alone.compute.likely / step.likely
        last = before[-1] if before else None
        gain = 1.0 if last is None else (speed_up - last.speed_up) / (ranks - last.ranks)
        return Point(
            ranks=ranks,
            hosts=hosts,
            batch=padding.batch,
            accumulation=accumulation,
            memory=self.memory(padding, ranks, accumulation),
            compute=compute,
            communication=communication,
            seconds=seconds,
            price=price,
            speed_up=round(speed_up, 3),
            gain=round(gain, 3),
        )

    def split(self, ranks: int) -> tuple[Padding, int]:
        """Batch and accumulation of a rank: those that leave the fewest places empty, then the largest batch."""
        most = self.schedule.per_device_train_batch_size
        rows = [row for row in self.batching.table if row.mode == self.batching.active and row.batch <= most]
        counted = [(row, math.ceil(self.rows / (row.batch * ranks))) for row in rows]
        return min(counted, key=lambda one: (one[0].batch * one[1], -one[0].batch))

    def compute(self, padding: Padding, accumulation: int) -> Interval:
        """Seconds of a rank's micro-batches in a full optimizer step, as `seconds_per_epoch` counts them."""
        share = self.time.rate.share

        def seconds(reached: float) -> float:
            rate, work = self.time.rate, self.time.work
            took = padding.useful_tokens / (1 - padding.padding_share) * work.total / rate.flops(reached)
            if rate.bandwidth is not None:
                if self.settings.load_in_4bit:
                    took += expand_seconds(self.model, work, rate.bandwidth)
                took = max(took, self.model.layers * LAUNCH_SECONDS_PER_LAYER * share.middle / reached)
            return accumulation * took

        return Interval(seconds(share.high), seconds(share.middle), seconds(share.low))

    def communication(self, per_host: int, hosts: int, accumulation: int) -> Interval:
        """Seconds that the exchanges of an optimizer step take over the links.

        DDP: one all-reduce of the gradients. ZeRO-1/2: a reduce-scatter of them, at stage 2 after each micro-batch, and
        an all-gather of the new weights. ZeRO-3 and FSDP2: in each micro-batch two all-gathers of all weights, for the
        forward and for the backward pass (Rajbhandari et al. 2020, section 7), and the reduce-scatter.
        """
        sharding, network = self.layout.sharding, self.layout.network
        gradients = gradient_bytes(self.model, self.settings)
        if not sharding.splits_optimizer:
            seconds = network.reduce_seconds(gradients, per_host, hosts)
        else:
            seconds = network.gather_seconds(gradients, per_host, hosts)
            seconds *= accumulation if sharding.reduces_every_micro_batch else 1
            if sharding.splits_weights:
                everything = gathered_bytes(self.model, self.settings)
                seconds += 2 * accumulation * network.gather_seconds(everything, per_host, hosts)
            else:
                # As many weights as gradients.
                seconds += network.gather_seconds(gradients, per_host, hosts)
        low, high = REACHED
        return Interval(seconds / high, seconds / math.sqrt(low * high), seconds / low)

    def memory(self, padding: Padding, ranks: int, accumulation: int) -> RankMemory:
        """The peak of a rank in the largest micro-batch of the first epoch."""
        tokens = padding.most_tokens
        row_tokens = max(1, -(-tokens // padding.batch))
        peak = forecast_memory(self.model, self.settings, tokens, self.device_bytes, row_tokens)
        accumulates = accumulation > 1
        return rank_memory(self.model, self.settings, peak, self.layout.sharding, ranks, accumulates=accumulates)
