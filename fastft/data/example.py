"""What one row becomes, whatever its format was: a list of messages, or plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastft.errors import Where


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (`system`, `user`, `assistant` or `tool`), and what is said."""

    role: str
    content: str
    # What a chat template may ask for besides: tool_calls, tool_call_id, name, reasoning_content.
    extra: Mapping[str, Any] = field(default_factory=dict)
    # False where the row says `"weight": 0` (OpenAI's way to keep an answer out of the loss).
    trained: bool = True

    def as_template_value(self) -> dict[str, Any]:
        """The dict that chat templates are written for."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True)
class Example:
    """One row, understood: a conversation with at least one answer, or (`text`) plain text without turns."""

    where: Where
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None

    @property
    def characters(self) -> int:
        """How much is said, control tokens and tools aside."""
        return len(self.text) if self.text is not None else sum([len(message.content) for message in self.messages])
