from __future__ import annotations

import pytest

from fastft.runs.noise import noise_in_words


@pytest.mark.parametrize(
    ("scale", "examples", "says"),
    [
        ((210.0, 150.0, 300.0), 32, "4.0 times of it go with a learning rate 2.0 times as high (square-root rule)"),
        ((40.0, 36.0, 60.0), 16, "2.2 times of it go with a learning rate 1.5 times as high"),
        ((5.0, 3.0, 8.0), 16, "a smaller effective_batch_size learns more from the same rows"),
        ((20.0, 10.0, 40.0), 16, "about as many as pay"),
    ],
)
def test_advice_is_given_outside_of_the_interval_alone(
    scale: tuple[float, float, float], examples: float, says: str
) -> None:
    text = noise_in_words(scale, examples)

    assert says in text
    assert text.startswith(f"gradient noise scale {scale[0]:.0f} examples ({scale[1]:.0f} to {scale[2]:.0f});")
