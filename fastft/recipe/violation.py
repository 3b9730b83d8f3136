"""What a rule between keys of a recipe says of a recipe that breaks it."""

from __future__ import annotations

from dataclasses import dataclass

Given = frozenset[str]


@dataclass(frozen=True)
class Violation:
    """A rule that a recipe breaks, at `field`; `reads` are the other keys that the rule reads.

    `got`: the value that the message shows; a rule leaves it out where it is the whole value of `field`.
    """

    field: str
    wrong: str
    instead: str
    reads: tuple[str, ...] = ()
    got: str | None = None
