"""fastft fine-tunes language models fast, from one TOML recipe, and hands back weights that were proven to work.

These functions do what the commands of the same names do, and raise the errors of `fastft.errors`. Progress goes to
standard error. `import fastft` loads none of the program: each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastft import errors

if TYPE_CHECKING:
    from fastft.data.inspect import Inspection
    from fastft.engine.export import Exported
    from fastft.planning.plan import Plan
    from fastft.recipe.loader import LoadedRecipe
    from fastft.runs.directory import RunDir

__version__ = "0.1.0"
__all__ = ["check", "errors", "export", "load", "plan", "run"]


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The checked recipe in a file; `overrides` are the texts that `--set` takes: `"train.learning_rate=1e-4"`.

    Raises:
        RecipeError: the recipe or an override asks for something that cannot be; all problems at once.
    """
    from fastft.recipe.loader import load

    return load(Path(recipe), overrides)


def check(recipe: str | Path, overrides: Sequence[str] = ()) -> Inspection:
    """What the first rows of each data source of a sound recipe show.

    Raises:
        RecipeError: the recipe asks for something that cannot be; problems of the data are listed with it.
        DataError: only the data has problems.
    """
    from fastft.commands.check import check

    return check(Path(recipe), overrides)


def plan(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
    memory: str | None = None,
    price_per_hour: float | None = None,
    runs_dir: str | Path = "runs",
) -> Plan:
    """What a run will do and need: steps, padding, memory, time, disk, choices with their reasons, upstream calls.

    `device`: a name such as "h100", None for this machine's; `memory`: of that device, such as "24GB".

    Raises:
        FastftError: the recipe, the device, the data, the template or the base model cannot be used.
    """
    from fastft.commands.plan import Question, plan

    return plan(Path(recipe), overrides, Question(Path(runs_dir), device, memory, price_per_hour))


def run(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    runs_dir: str | Path = "runs",
    resume: bool = False,
    fresh: bool = False,
) -> RunDir:
    """Train, evaluate, save and export: the folder of the finished run.

    The newest unfinished run of the same recipe is continued, unless `fresh` asks for a new one. With `resume` a
    finished one is returned as it is, and not run again.

    Raises:
        FastftError: anything that a user can correct, before or during training.
        Interrupted: somebody asked the run to stop; the same call continues.
    """
    from fastft.commands.run import run_with_progress
    from fastft.stages.attempt import Start

    return run_with_progress(Path(recipe), overrides, Path(runs_dir), Start(resume, fresh))


def export(
    path: str | Path,
    formats: Sequence[str] = ("gguf",),
    quantization: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    base: str | Path | None = None,
) -> Exported:
    """Write the weights of a run, an adapter or a model folder in other formats, each compared with what was trained.

    `out`: None is the `exports/` folder beside the weights; `base`: the 16-bit base of an adapter that names none.

    Raises:
        UsageError: there are no weights, or a format or quantization that cannot be.
        ExportError: a file does not say what the trained model says; it is kept, marked FAILED.
        FastftError: a file cannot be written, or its base cannot be had.
    """
    from fastft.probe.software import NEEDED_TO_EXPORT, require

    require(NEEDED_TO_EXPORT, "fastft.export")
    from fastft.commands.export import ExportRequest, export_with_progress

    folder, model = None if out is None else Path(out), None if base is None else str(base)
    return export_with_progress(Path(path), ExportRequest(tuple(formats), tuple(quantization), folder, model))
