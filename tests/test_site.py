"""`make site` has every page, and no page links to what is not there."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from benchmarks.installations import Installation, table

ROOT = Path(__file__).parents[1]


def test_every_page_is_listed_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    """A page that is not listed or a link into nothing ends the program."""
    site = runpy.run_path(str(ROOT / "docs/build_site.py"))

    site["write_sources"](tmp_path)

    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert index.count("toctree") == len(site["SECTIONS"])
    assert "](docs/" not in index
    assert (tmp_path / "csv_to_ollama.md").is_file()
    assert (tmp_path / "quickstart.svg").is_file()


def test_the_page_of_installations_has_the_table_that_was_measured() -> None:
    rows = [Installation(**row) for row in json.loads((ROOT / "benchmarks/installations.json").read_text())]

    assert table(rows) in (ROOT / "docs/installation.md").read_text(encoding="utf-8")
