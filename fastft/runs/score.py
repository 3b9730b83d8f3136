"""How right a forecast was: the figures of the plan beside those of the run."""

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


def score(
    plan: Plan,
    *,
    optimizer_steps: int,
    tokens: int,
    peak_memory_bytes: int,
    train_seconds: float,
    weights_bytes: int | None,
) -> dict[str, Score]:
    """The score of each measured figure; `weights_bytes` None was not measured.

    A run that stopped early is scored on its planned steps, so its error shows the early stop.
    """
    peak = None if isinstance(plan.memory, UnknownMemory) else plan.memory.peak.peak_bytes
    seconds = None if isinstance(plan.time, UnknownTime) else plan.time.seconds.likely
    pairs: dict[str, tuple[float | None, float | None]] = {
        "optimizer_steps": (plan.schedule.optimizer_steps, optimizer_steps),
        "tokens": (plan.time.tokens, tokens),
        "peak_memory_bytes": (peak, peak_memory_bytes),
        "train_seconds": (seconds, train_seconds),
        "weights_bytes": (plan.disk.adapter_bytes, weights_bytes),
    }
    scores = {}
    for name, (forecast, actual) in pairs.items():
        if actual is not None:
            error = None if forecast is None or not actual else round(forecast / actual - 1, 4)
            scores[name] = Score(forecast, actual, error)
    return scores
