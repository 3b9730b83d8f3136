"""`fastft doctor`: what is installed, and with `--train` whether it trains, offline."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import traceback
from pathlib import Path

from fastft.console import Say, library_output_to, private_console
from fastft.engine_choice import ENGINE_VARIABLE, select, selected
from fastft.errors import MachineError
from fastft.files.cache import cache_folder
from fastft.probe.installation import Diagnosis, examine
from fastft.probe.software import fix_command, guilty_package, version
from fastft.report.installation import print_diagnoses


def prove(say: Say) -> list[Diagnosis]:
    """A diagnosis for each promise of training: a tiny made-up model is trained, resumed and exported.

    With Unsloth if it is installed, or with the engine in FASTFT_ENGINE. The output of libraries goes to doctor.log in
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
            from fastft.engine.selftest import checks
        except Exception as error:  # a broken package may raise anything
            traceback.print_exc()
            detail = f"{selected()} cannot be started: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return [Diagnosis("engine", "broken", detail, fix_command([guilty_package(error) or selected()]))]
        return checks.examine(Path(folder), selected(), say)


def doctor_in_terminal(*, train: bool, as_json: bool) -> int:
    """Print every diagnosis; 4 when something is broken, else 0."""
    found = examine(Path())
    if train and not _any_broken(found):
        with private_console() as console:
            found += prove(lambda text: console.print(f"• {text}"))
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        print_diagnoses(found)
    return MachineError.exit_code if _any_broken(found) else 0


def _any_broken(found: list[Diagnosis]) -> bool:
    return any(one.state == "broken" for one in found)
