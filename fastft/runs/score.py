"""How right a forecast was: what the plan said beside what the run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def score(plan: Mapping[str, Any], result: Mapping[str, Any], weights_bytes: int | None) -> dict[str, dict[str, Any]]:
    """Forecast, actual and relative error of each figure that both sides know; 0.1 is forecast a tenth too high.

    `plan` and `result` are plan.json and result.json; `weights_bytes` is the size of the weights that were written. A
    run that stopped early is scored on the steps it was planned for, so its error shows it.
    """
    disk = plan["disk"]
    weights = disk["adapter_bytes"]
    pairs = {
        "optimizer_steps": (plan["schedule"]["optimizer_steps"], result.get("steps")),
        "tokens": (plan["time"]["tokens"], result.get("train_tokens_seen")),
        "peak_memory_bytes": (plan["memory"]["peak_bytes"], result.get("peak_memory_bytes")),
        "train_seconds": (plan["time"]["seconds"], result.get("train_seconds")),
        "weights_bytes": (weights, weights_bytes),
    }
    return {
        name: {"forecast": forecast, "actual": actual, "error": _error(forecast, actual)}
        for name, (forecast, actual) in pairs.items()
        if actual is not None
    }


def _error(forecast: float | None, actual: float) -> float | None:
    return None if forecast is None or not actual else round(forecast / actual - 1, 4)
