"""The form of a Hub id."""

from __future__ import annotations

import re


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form of a Hub id, `name` or `organisation/name`, by the rules of huggingface_hub."""
    shaped = re.fullmatch(r"(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", text, re.ASCII) is not None
    return shaped and "--" not in text and ".." not in text and not text.endswith(".git")
