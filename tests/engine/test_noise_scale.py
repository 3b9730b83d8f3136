"""The gradient noise scale from micro-batches, compared with that of all gradients of single examples."""

from __future__ import annotations

import pytest
import torch

from fastft.engine.noise_scale import LEAST_STEPS, NoiseMeter, noise_scale

ROWS, MICRO, EACH = 512, 8, 4


class Small(torch.nn.Module):
    """A network with two layers and a loss for each of `rows` examples of fixed inputs and noisy targets."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(ROWS, 6, generator=generator)
        self.targets = self.inputs.sum(dim=1, keepdim=True) + 2.0 * torch.randn(ROWS, 1, generator=generator)
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def losses(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.layers(self.inputs[rows]) - self.targets[rows]).square().mean(dim=1)


def gradient(model: Small, rows: torch.Tensor) -> torch.Tensor:
    grads = torch.autograd.grad(model.losses(rows).mean(), list(model.parameters()))
    return torch.cat([each.flatten() for each in grads])


def exact(model: Small) -> float:
    """The trace of the covariance over the squared mean, from one gradient an example."""
    each = torch.stack([gradient(model, torch.tensor([row])) for row in range(ROWS)])
    return float(each.var(dim=0, correction=0).sum() / each.mean(dim=0).square().sum())


def measured(model: Small, steps: int, sizes: list[int]) -> list[tuple[float, float]]:
    """What the meter keeps of `steps` steps with micro-batches of `sizes` rows, drawn with replacement."""
    meter, generator = NoiseMeter(list(model.parameters())), torch.Generator().manual_seed(2)
    found = []
    for _ in range(steps):
        model.zero_grad()
        for size in sizes:
            rows = torch.randint(ROWS, (size,), generator=generator)
            (model.losses(rows).sum() / sum(sizes)).backward()
            meter.add(size, size)
        meter.end_step()
        found += meter.read()[-1:]
    return found


@pytest.mark.parametrize("sizes", [[EACH] * MICRO, [2, 3, 3, 4, 5, 6, 4, 5], [1, 1, 1, 1]])
def test_the_estimate_is_within_a_quarter_of_the_exact_value(sizes: list[int]) -> None:
    model = Small()
    truth = exact(model)

    found = noise_scale(measured(model, 400, sizes))

    assert found is not None
    likely, low, high = found
    assert likely == pytest.approx(truth, rel=0.25)
    assert low < likely < high
    # 400 steps leave an interval of some tenths either way.
    assert low == pytest.approx(truth, rel=0.5)
    assert high == pytest.approx(truth, rel=0.6)


def test_few_micro_batches_or_steps_say_nothing() -> None:
    model = Small()

    assert measured(model, 3, [4, 4]) == []
    assert noise_scale(measured(model, LEAST_STEPS - 1, [4] * 4)) is None


def test_a_mean_gradient_that_drowns_in_noise_gives_no_figure() -> None:
    assert noise_scale([(1.0, -0.5), (1.0, 0.2), (1.0, -0.1), (1.0, 0.1)]) is None
