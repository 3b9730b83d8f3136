"""The losses of preferences, of log-probabilities alone. Each is the loss of every row, (rows,)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from fastft.recipe.model import PreferenceSection

# A mean log-probability of 0 would have infinite odds.
CERTAIN = -1e-6


@dataclass(frozen=True)
class Judged:
    """Log-probabilities of the answers of some rows: `first` of the chosen or the only one, `second` of the rejected.

    `first`, `second`: (rows,) sums over the tokens of an answer; with "kto", `second` is that of an answer to another
    question. `first_tokens`, `second_tokens`: (rows,) how many these are. `reference`: (rows, 2) the same sums of the
    model before training; None where the loss has none. `good`: (rows,) the verdicts of "kto".
    """

    first: torch.Tensor
    second: torch.Tensor
    first_tokens: torch.Tensor
    second_tokens: torch.Tensor
    reference: torch.Tensor | None
    good: torch.Tensor

    def rewards(self, own: PreferenceSection) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) the rewards of the first and the second answers, as TRL defines them for each loss."""
        if self.reference is None:
            return own.beta * self.first / self.first_tokens, own.beta * self.second / self.second_tokens
        return own.beta * (self.first - self.reference[:, 0]), own.beta * (self.second - self.reference[:, 1])

    def margins(self, own: PreferenceSection) -> torch.Tensor:
        """(rows,) how far rewards are on the right side: chosen minus rejected, or of one answer by its verdict."""
        first, second = self.rewards(own)
        return first - second if own.in_pairs else torch.where(self.good, first, -first)

    def drift(self) -> torch.Tensor:
        """(rows,) how far the model moved from the one before training on answers to other questions, in nats."""
        assert self.reference is not None  # noqa: S101 -- only "kto" asks, which has one
        return self.second - self.reference[:, 1]


def losses(judged: Judged, own: PreferenceSection, drift: torch.Tensor | float = 0.0) -> torch.Tensor:
    """(rows,) the loss of each row; `drift`: with "kto", the mean of `Judged.drift` over all rows of the step."""
    if own.loss == "orpo":
        return _orpo(judged, own.beta)
    first, second = judged.rewards(own)
    if own.loss == "kto":
        return _kto(first, own.beta * drift, judged.good, own)
    return _dpo(first - second, own.label_smoothing)


def _dpo(margins: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Rafailov et al. 2023 (Direct Preference Optimization), equation 7; with smoothing, Mitchell 2023 (cDPO)."""
    return -(1 - smoothing) * functional.logsigmoid(margins) - smoothing * functional.logsigmoid(-margins)


def _orpo(judged: Judged, weight: float) -> torch.Tensor:
    """Hong et al. 2024 (ORPO), equations 6 and 7: the chosen answer's mean loss, and the odds of one over the other."""
    chosen = (judged.first / judged.first_tokens).clamp(max=CERTAIN)
    rejected = (judged.second / judged.second_tokens).clamp(max=CERTAIN)
    odds = chosen - rejected - (torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected)))
    return -chosen - weight * functional.logsigmoid(odds)


def _kto(rewards: torch.Tensor, zero: torch.Tensor | float, good: torch.Tensor, own: PreferenceSection) -> torch.Tensor:
    """Ethayarajh et al. 2024 (KTO), equation 8; `zero` is their reference point, which is not below 0."""
    zero = torch.as_tensor(zero, dtype=rewards.dtype, device=rewards.device).clamp(min=0)
    gain = torch.where(good, rewards - zero, zero - rewards)
    weight = torch.where(good, own.desirable_weight, own.undesirable_weight)
    return weight * (1 - torch.sigmoid(gain))
