"""What the gradient noise scale of a run says about the examples of an optimizer step."""

from __future__ import annotations

import math


def noise_in_words(scale: tuple[float, float, float], examples: float) -> str:
    """The noise scale (estimate, low, high) in examples, beside the `examples` of a step, and what follows from it.

    A step of B examples learns as much as B / (1 + B / scale) noiseless ones (McCandlish et al. 2018, equation 2.7).
    """
    likely, low, high = scale
    text = f"gradient noise scale {likely:.0f} examples ({low:.0f} to {high:.0f}); a step has {examples:.0f}"
    if examples < low:
        times = min(low / examples, 4.0)
        return (
            f"{text}: a larger effective_batch_size loses little for each example; {times:.1f} times of it go with a"
            f" learning rate {math.sqrt(times):.1f} times as high (square-root rule)"
        )
    if examples > high:
        return f"{text}: a smaller effective_batch_size learns more from the same rows, in more steps"
    return f"{text}: about as many as pay"
