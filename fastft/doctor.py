"""The whole path of `fastft doctor --train`: bring the engine up and let it prove itself, offline."""

from __future__ import annotations

import importlib
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from fastft.engine_choice import ENGINE_VARIABLE, select, selected
from fastft.probe.base_model import cache_folder
from fastft.probe.doctor import Finding
from fastft.probe.software import blamed, mend, version
from fastft.rows import library_output_to


def prove(say: Callable[[str], None]) -> list[Finding]:
    """A finding for each promise of training: a tiny made-up model is trained, resumed and exported.

    With Unsloth where it is installed, or with what FASTFT_ENGINE names. What the libraries print goes to doctor.log in
    fastft's cache.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if ENGINE_VARIABLE not in os.environ:
        select("unsloth" if version("unsloth") else "transformers")
    say(f"starting {selected()}")
    log = cache_folder() / "doctor.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder, library_output_to(log):
        try:
            engine = importlib.import_module("fastft.engine.selftest")
        except Exception as error:  # a broken package breaks its import in any way there is
            traceback.print_exc()
            detail = f"{selected()} cannot be started: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return [Finding("engine", "broken", detail, mend([blamed(error) or selected()]))]
        findings: list[Finding] = engine.examine(Path(folder), selected(), say)
    return findings
