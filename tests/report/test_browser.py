"""report.html in a real browser: it asks for nothing and says nothing, with scripts on and off."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastft.report.page import write_page
from tests.report.made_up import RESULT, hostile_answers, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A frame: with a bare `sandbox`, the page in it runs no script (HTML, 4.8.5).
FRAME = '<!doctype html><iframe {sandbox} width=780 height=1900 src="{page}"></iframe>'
SCRIPT = "<script>console.error('oh'); document.body.append('written by a script')</script>"
NOISY = f"<!doctype html><body><p>x<img src='http://127.0.0.1:9/x.png'>{SCRIPT}"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@dataclass(frozen=True)
class Seen:
    """What Chromium showed of a page, its console, and the addresses that it asked for beside the page's own."""

    picture: bytes
    console: list[str]
    requests: set[str]


def load(page: Path, folder: Path, *, scripts: bool) -> Seen:
    folder.mkdir()
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(sandbox="" if scripts else "sandbox", page=page.as_uri()))
    log, picture = folder / "net.json", folder / "page.png"
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--disable-dev-shm-usage"]
    quiet = ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    # Until then all that the page names is asked for, on a busy machine too.
    shown = ["--virtual-time-budget=5000", "--window-size=800,2000", f"--screenshot={picture}", f"--log-net-log={log}"]
    command = [str(CHROMIUM), *fixed, *quiet, *shown, frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    # The browser itself looks for updates of its own: only addresses that the pages name count.
    own = {url for url in asked if "127.0.0.1" in url or "example.org" in url}
    return Seen(picture.read_bytes(), [line for line in done.stderr.splitlines() if "CONSOLE" in line], own)


@pytest.mark.slow
def test_the_page_asks_for_nothing_and_says_nothing(tmp_path: Path) -> None:
    """Only a browser shows what a page loads and reports; the control page shows that this test would see it."""
    result = dataclasses.replace(RESULT, exact_match=hostile_answers())
    page = write_page(make_run(tmp_path / "hostile", result=result))
    noisy = tmp_path / "noisy.html"
    noisy.write_text(NOISY)

    control = load(noisy, tmp_path / "control", scripts=True)
    silent = load(noisy, tmp_path / "silent", scripts=False)
    with_scripts = load(page, tmp_path / "on", scripts=True)
    without = load(page, tmp_path / "off", scripts=False)

    assert control.console
    assert control.requests
    assert control.picture != silent.picture, "scripts are really off"
    for seen in (with_scripts, without):
        assert (seen.console, seen.requests) == ([], set())
    assert with_scripts.picture == without.picture
