"""The formats that `data.format` can name, each with the columns that it cannot do without."""

from __future__ import annotations

# Detection takes the first format whose columns are there: those that say more stand first. How a row of each becomes
# messages: fastft.data.formats.
DATA_FORMATS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "belle": ("instruction", "output"),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "text": ("text",),
}
# Those of task = "preference", by its loss; "auto" detects none of them. How they are read: fastft.data.preferences.
PREFERENCE_FORMATS = {"preference": ("chosen", "rejected"), "kto": ("label",)}
ALL_FORMATS = {**DATA_FORMATS, **PREFERENCE_FORMATS}

# The columns that each format reads besides. Any other is refused or counted: fastft.data.unused.
_OF_TURNS = frozenset({"system", "tools"})
_OF_ONE_ANSWER = _OF_TURNS | {"history", "reasoning_content", "reasoning", "thinking"}
_PROMPTS = frozenset({"prompt", "messages", "conversations", "instruction", "input"})
OPTIONAL_COLUMNS = {
    "messages": _OF_TURNS,
    "sharegpt": _OF_TURNS,
    "belle": _OF_TURNS,
    "alpaca": _OF_ONE_ANSWER | {"input"},
    "prompt_completion": _OF_ONE_ANSWER,
    "classification": _OF_TURNS,
    "text": frozenset[str](),
    "preference": _OF_TURNS | _PROMPTS,
    "kto": _OF_TURNS | _PROMPTS | {"completion", "output"},
}

# The date that Llama 3.1 and 3.2 write where no other is given.
TEMPLATE_DATE = "2024-07-26"
