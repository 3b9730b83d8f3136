"""The way on for an architecture that the GGUF writer does not know: llama.cpp's own converter, from a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastft.errors import MachineError, Problem, RecipeError, Where
from fastft.files.atomic import staged_file
from fastft.recipe.quantizations import QUANTIZATIONS

SCRIPT = "convert_hf_to_gguf.py"


def check_checkout(checkout: Path, quantization: str) -> Path:
    """The converter in `checkout`, after a look whether it writes this type.

    Raises:
        RecipeError: no converter in `checkout`, or a type it does not write.
    """
    script = checkout / SCRIPT
    if not script.is_file():
        raise RecipeError(Problem(Where(str(checkout)), "--llama-cpp", f"has no {SCRIPT}", "give a llama.cpp checkout"))
    if not QUANTIZATIONS[quantization].by_converter:
        written = ", ".join(row.name for row in QUANTIZATIONS.values() if row.by_converter)
        wrong = "llama.cpp's converter does not write this type"
        instead = f"write one of {written}, then run llama-quantize on it"
        raise RecipeError(Problem(Where(str(checkout)), "quantization", wrong, instead, got=quantization))
    return script


def convert_with_checkout(merged: Path, out_file: Path, quantization: str, checkout: Path) -> Path:
    """Run the converter of `checkout` on the merged folder; returns `out_file`.

    Raises:
        RecipeError: no converter in `checkout`, a type it does not write, or `out_file` exists.
        MachineError: the converter failed; the end of what it said is in the message.
    """
    script = check_checkout(checkout, quantization)
    needed = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    with staged_file(out_file, needed) as stage:
        command = [sys.executable, str(script), str(merged), "--outtype", quantization, "--outfile", str(stage)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not stage.is_file():
            wrong = f"ended with exit code {done.returncode}: {' '.join(done.stderr.split())[-500:]}"
            raise MachineError(Problem(Where(str(script)), "", wrong, "see llama.cpp's docs"))
    return out_file
