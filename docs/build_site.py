"""The documentation as a site of pages: `make site` writes build/site, and fails at a dead link.

Sphinx, MyST and furo do the work. The pages are those of docs/ with README.md as the first one; a link to a file that
is no page leads to the repository. Only links between the pages are checked: those to other hosts need a network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
REPOSITORY = "https://github.com/fastft/fastft/blob/main/"
SECTIONS = {
    "Start": ("csv_to_ollama", "from_other_tools", "recipes", "reference/costs", "loss"),
    "Use": (
        "runs",
        "evaluation",
        "exports",
        "classification",
        "preference",
        "optimizers",
        "launch",
        "scaling",
        "python",
    ),
    "Look up": ("installation", "reference/cli", "reference/recipe", "reference/tables"),
    "Inside": ("benchmarks", "reliability", "extending"),
}
CONF = """
project = "fastft"
html_title = "fastft"
extensions = ["myst_parser"]
html_theme = "furo"
html_static_path = []
myst_heading_anchors = 4
nitpicky = True
pygments_style = "default"
suppress_warnings = ["misc.highlighting_failure", "myst.header"]
"""
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)((?:#[^)]*)?)(?=\))")


def write_sources(folder: Path) -> None:
    """The pages for Sphinx, their links as links between them or into the repository."""
    pages = list((ROOT / "docs").rglob("*.md"))
    known = {path.resolve() for path in [*pages, *(ROOT / "docs").glob("*.svg")]}
    listed = {name for names in SECTIONS.values() for name in names}
    there = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in pages}
    if listed != there:
        sys.exit(f"SECTIONS of docs/build_site.py and the pages differ: {', '.join(sorted(listed ^ there))}")
    for path in pages:
        target = folder / path.relative_to(ROOT / "docs")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_linked(path, known), encoding="utf-8")
    for path in (ROOT / "docs").glob("*.svg"):
        shutil.copy(path, folder)
    trees = "".join(
        f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "".join(f"{name}\n" for name in names) + "```\n\n"
        for title, names in SECTIONS.items()
    )
    first = _linked(ROOT / "README.md", known).replace("](docs/", "](")
    (folder / "index.md").write_text(f"{first}\n{trees}", encoding="utf-8")
    (folder / "conf.py").write_text(CONF, encoding="utf-8")


def _linked(path: Path, known: set[Path]) -> str:
    def link(match: re.Match[str]) -> str:
        target = (path.parent / match[1]).resolve()
        if target in known:
            return match[0]
        if not target.exists():
            sys.exit(f"{path.relative_to(ROOT)}: dead link: {match[0]}")
        return REPOSITORY + str(target.relative_to(ROOT)) + match[2]

    return _LINK.sub(link, path.read_text(encoding="utf-8"))


def main() -> None:
    """Write the site, or fail at the first warning."""
    source, out = BUILD / "site-source", BUILD / "site"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    write_sources(source)
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--builder", "dirhtml"]
    subprocess.run([*sphinx, str(source), str(out)], check=True)
    print(f"{out}/index.html")


if __name__ == "__main__":
    main()
