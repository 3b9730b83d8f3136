"""Conditions of `[eval] fail_if`, such as "exact_match < 0.8" or "regression_drop > 0.05"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from fastft.errors import nearest
from fastft.recipe.measures import MEASURES

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# The value after training, how far it is below that before training, and how far above.
CHANGES = ("", "_drop", "_rise")
_FORM = re.compile(r"\s*(\w+)\s*([<>]=?)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """`measure` after training, or its `change` from before ("_drop" or "_rise"), compared with a number."""

    text: str
    measure: str
    change: str
    operator: str
    bound: float

    def is_met(self, before: float | None, after: float) -> bool | None:
        """Whether it is met; also where a value is no number. None where the value before training is needed and
        missing.
        """
        if self.change and before is None:
            return None
        value = after if before is None or not self.change else before - after
        value = -value if self.change == "_rise" else value
        return value != value or OPERATORS[self.operator](value, self.bound)


def parse_condition(text: str) -> Condition | tuple[str, str]:
    """The condition, or (what is wrong, what to write instead)."""
    found = _FORM.fullmatch(text)
    if found is None:
        return "is no condition", 'write a measure, one of < <= > >=, and a number, as in "exact_match < 0.8"'
    names = {f"{measure}{change}": (measure, change) for measure in MEASURES for change in CHANGES}
    if found[1] not in names:
        close = nearest(found[1], names)
        known = f"known are {', '.join(MEASURES)}, each also with _drop or _rise behind it"
        return "names no measure", f'did you mean "{close}"? {known}' if close else known
    measure, change = names[found[1]]
    return Condition(text.strip(), measure, change, found[2], float(found[3]))
