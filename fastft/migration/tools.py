"""The tools whose arguments fastft reads, by name."""

from __future__ import annotations

from fastft.migration.arguments import Tool
from fastft.migration.tables.axolotl import AXOLOTL
from fastft.migration.tables.others import LLAMA_FACTORY, SCRIPT, SWIFT, TRL
from fastft.migration.tables.unsloth import UNSLOTH

TOOLS: dict[str, Tool] = {tool.name: tool for tool in (AXOLOTL, LLAMA_FACTORY, TRL, SWIFT, SCRIPT, UNSLOTH)}
