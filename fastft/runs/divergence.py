"""A watch on a run that gets worse although all its numbers are finite."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from dataclasses import dataclass, field

# The share of the newest line in the smoothed loss: it then varies by 0.4 of the noise of one line.
NEW_SHARE = 0.25
# Lines before anything is said, and how many in a row must be bad.
FIRST_LINES, BAD_LINES = 8, 4
# The losses of the last lines, whose spread is the noise.
NOISE_LINES = 64
# How far above its lowest point a smoothed loss may be, in its own value, in nats and in noise of one line.
RISE, RISE_NATS, RISE_NOISE = 0.3, 0.3, 5.0
# How often the median a gradient norm may be.
NORM_RISE = 50.0
# What is left of the first gradient norm where nothing is learnt any more, while this much of the first loss is left.
NO_NORM, LOSS_LEFT = 1e-3, 0.5
# A held-out loss this many times that of the untrained model is no drift any more.
HELD_OUT_RISE = 1.5


@dataclass(frozen=True)
class Alarm:
    """What went wrong: a drift, or a blow-up that left the model worse than it was before training."""

    blew_up: bool
    words: str


@dataclass
class DivergenceWatch:
    """Takes the figures of a run in their order, and says what is wrong once for each kind of it."""

    untrained: float | None = None
    """The held-out loss before training."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=NOISE_LINES))
    _norms: list[float] = field(default_factory=list)
    _first: float = 0.0
    _smooth: float = 0.0
    _lowest: float = 0.0
    _bad: int = 0
    _bad_norms: int = 0
    _no_norms: int = 0
    _said: set[str] = field(default_factory=set)

    def step(self, loss: float, grad_norm: float | None) -> Alarm | None:
        """The alarm of a logged step, if it gives one."""
        return self._loss(loss) or (None if grad_norm is None else self._norm(grad_norm))

    def evaluation(self, loss: float) -> Alarm | None:
        """The alarm of a held-out loss, if it gives one."""
        if self.untrained is None or loss <= self.untrained:
            return None
        words = f"the held-out loss is {loss:.4f}, {self.untrained:.4f} before training: the model gets worse"
        if loss > HELD_OUT_RISE * self.untrained + RISE_NATS:
            return self._once("held-out blow-up", Alarm(True, words))
        return self._once("held-out", Alarm(False, words))

    def _loss(self, loss: float) -> Alarm | None:
        if not self._losses:  # made before the optimizer's first step
            self._first = self._smooth = self._lowest = loss
        self._smooth += NEW_SHARE * (loss - self._smooth)
        self._losses.append(loss)
        if len(self._losses) < FIRST_LINES:
            self._lowest = min(self._lowest, self._smooth)
            return None
        self._bad = self._bad + 1 if self._is_above(self._lowest) else 0
        # While it is bad, the lowest point stays; before that it follows the loss down.
        self._lowest = min(self._lowest, self._smooth)
        if self._bad < BAD_LINES:
            return None
        # One line of easy rows is no sign of how good the untrained model was.
        start = max(self._first, self.untrained or 0.0)
        if self._is_above(start):
            words = f"the smoothed loss rose from {start:.4f} at the start to {self._smooth:.4f}: the run blew up"
            return self._once("blow-up", Alarm(True, words))
        words = f"the smoothed loss rose from {self._lowest:.4f} to {self._smooth:.4f} and stays there"
        return self._once("drift", Alarm(False, words))

    def _is_above(self, level: float) -> bool:
        above = self._smooth - level
        # A run that swings wildly is no excuse: two and a half times the loss is never noise.
        return above > max(RISE * level, RISE_NATS) and above > min(RISE_NOISE * self._noise(), 1.5 * level + 1)

    def _norm(self, norm: float) -> Alarm | None:
        usual = statistics.median(self._norms[-NOISE_LINES:]) if len(self._norms) >= 2 * FIRST_LINES else float("inf")
        self._bad_norms = self._bad_norms + 1 if norm > NORM_RISE * max(usual, 1e-3) else 0
        if not self._bad_norms:
            self._norms.append(norm)
        lost = bool(self._norms) and norm < NO_NORM * self._norms[0] and self._losses[-1] > LOSS_LEFT * self._first
        self._no_norms = self._no_norms + 1 if lost else 0
        if self._no_norms >= BAD_LINES:
            words = (
                f"the loss stays at {self._smooth:.4f} and the gradient norm is {norm:.3g}: nothing is learnt any more"
            )
            return self._once("no norm", Alarm(False, words))
        if self._bad_norms < BAD_LINES:
            return None
        return self._once("norm", Alarm(False, f"the gradient norm is {norm:.3g}, {usual:.3g} was usual"))

    def _noise(self) -> float:
        """The standard deviation of a loss around its neighbours, from the median of the differences of lines."""
        losses = list(self._losses)
        steps = [abs(after - before) for before, after in itertools.pairwise(losses)]
        # The median of |a - b| of two normal values is 0.954 of their deviation.
        return statistics.median(steps) / 0.954

    def _once(self, kind: str, alarm: Alarm) -> Alarm | None:
        if kind in self._said:
            return None
        self._said.add(kind)
        return alarm
