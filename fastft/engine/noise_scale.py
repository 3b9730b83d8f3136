"""The gradient noise scale: how many examples a step could hold before a larger one gains little.

McCandlish et al. 2018 (arXiv 1812.06162), section 2.2 and appendix A.1: S / |G|^2, the trace of the covariance of the
gradient of one example over the square of the true gradient. Both are estimated from the gradients of micro-batches,
which are computed anyway, and of the whole step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch.nn.utils import get_total_norm

# Fewer micro-batches say too little about how gradients differ.
LEAST_MICRO_BATCHES = 4
# Each micro-batch copies the gradients once: next to nothing for an adapter, much for a whole model.
MOST_WEIGHTS = 50_000_000
# Optimizer steps of which the estimate is made, and how many it takes at least.
WINDOW, LEAST_STEPS = 50, 4


class NoiseMeter:
    """Estimates the noise scale of one process's micro-batches, with figures that stay on the device until asked for.

    `steps`: (S, |G|^2) of the last optimizer steps, newest last.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        self._weights = weights
        self._before: list[torch.Tensor] = []
        self._micro: list[torch.Tensor] = []
        self._pending: list[torch.Tensor] = []
        self.steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, units: torch.Tensor | int, examples: torch.Tensor | int) -> None:
        """After the backward pass of a micro-batch of so many `examples`; `units`: what its loss is a mean over."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        own = [now - before for now, before in zip(gradients, self._before, strict=True)] if self._before else gradients
        figures = (get_total_norm(own).double().square(), units, examples)
        device = gradients[0].device
        self._micro.append(torch.stack([torch.as_tensor(each, device=device).double() for each in figures]))
        if self._before:
            for before, now in zip(self._before, gradients, strict=True):
                before.copy_(now)
        else:
            self._before = [now.clone() for now in gradients]

    def end_step(self) -> None:
        """After the last micro-batch of a step, before gradients are clipped."""
        if len(self._micro) >= LEAST_MICRO_BATCHES:
            whole = get_total_norm(self._before).double().square()
            squares, units, examples = torch.stack(self._micro).unbind(dim=1)
            share = units / units.sum()
            # The loss of a step is a mean over all its units: a micro-batch's gradient is that of its own mean, times
            # share.
            inverse, of_step = (1 / examples).mean(), (share.square() / examples).sum()
            noise = ((squares / share.square()).mean() - whole) / (inverse - of_step)
            self._pending.append(torch.stack([noise, whole - of_step * noise]))
        self._before, self._micro = [], []

    def read(self) -> list[tuple[float, float]]:
        """`steps`, with those that were on the device."""
        if self._pending:
            values = torch.stack(self._pending).tolist()
            self.steps.extend((noise, signal) for noise, signal in values if math.isfinite(noise + signal))
            self._pending = []
        return list(self.steps)


def noise_scale(steps: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """(estimate, low, high) in examples from (S, |G|^2) of some steps, the interval of 95 %; None while unknown.

    A ratio of means, because each |G|^2 alone may be below 0; the interval is that of the jackknife.
    """
    if len(steps) < LEAST_STEPS:
        return None
    noise, signal = (sum(values) for values in zip(*steps, strict=True))
    without = [(noise - own_noise, signal - own_signal) for own_noise, own_signal in steps]
    if noise <= 0 or signal <= 0 or any(rest <= 0 for _, rest in without):
        return None
    ratios = [rest_noise / rest for rest_noise, rest in without]
    count, middle = len(ratios), sum(ratios) / len(ratios)
    error = math.sqrt((count - 1) / count * sum((ratio - middle) ** 2 for ratio in ratios))
    scale = noise / signal
    return scale, max(0.0, scale - 1.96 * error), scale + 1.96 * error
