"""Collected only in a process without Unsloth: see tests/engine/test_plain.py."""

from __future__ import annotations

from fastft.engine_choice import selected

collect_ignore_glob = [] if selected() == "transformers" else ["test_*.py"]
