"""How right a forecast was: what the plan said beside what the run measured."""

from __future__ import annotations

from dataclasses import dataclass

from fastft.planning.fitting import UnknownMemory
from fastft.planning.plan import Plan
from fastft.planning.timing import UnknownTime


@dataclass(frozen=True)
class Score:
    """Forecast, actual and relative error of one figure; 0.1 is forecast a tenth too high, None is unknown."""

    forecast: float | None
    actual: float
    error: float | None


@dataclass(frozen=True)
class Measured:
    """What a run measured of the figures that its plan forecasts; None where it did not."""

    optimizer_steps: int
    tokens: int
    peak_memory_bytes: int
    train_seconds: float
    weights_bytes: int | None


def score(plan: Plan, measured: Measured) -> dict[str, Score]:
    """The score of each figure that was measured.

    A run that stopped early is scored on the steps it was planned for, so its error shows it.
    """
    peak = None if isinstance(plan.memory, UnknownMemory) else plan.memory.peak.peak_bytes
    seconds = None if isinstance(plan.time, UnknownTime) else plan.time.seconds.likely
    pairs: dict[str, tuple[float | None, float | None]] = {
        "optimizer_steps": (plan.schedule.optimizer_steps, measured.optimizer_steps),
        "tokens": (plan.time.tokens, measured.tokens),
        "peak_memory_bytes": (peak, measured.peak_memory_bytes),
        "train_seconds": (seconds, measured.train_seconds),
        "weights_bytes": (plan.disk.adapter_bytes, measured.weights_bytes),
    }
    return {
        name: Score(forecast, actual, _error(forecast, actual))
        for name, (forecast, actual) in pairs.items()
        if actual is not None
    }


def _error(forecast: float | None, actual: float) -> float | None:
    return None if forecast is None or not actual else round(forecast / actual - 1, 4)
