"""How many processes a run is made of, from the variables that launchers set."""

from __future__ import annotations

import os

from fastft.errors import MachineError, Problem, Where

# torchrun, accelerate and deepspeed; Open MPI; MPICH; srun.
VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def world_size() -> int:
    """The number of processes; 1 without a launcher.

    Raises:
        MachineError: a launcher's variable is no number of processes.
    """
    for name in VARIABLES:
        text = os.environ.get(name, "").strip()
        if text and not (text.isdecimal() and int(text) > 0):
            wrong = "is not a number of processes"
            raise MachineError(Problem(Where(name), "", wrong, "unset it, or let the launcher set it", text))
        if text and int(text) > 1:
            return int(text)
    return 1


def refuse_several_processes() -> None:
    """Stop where each of several processes would train the whole run by itself.

    Raises:
        MachineError: a launcher started more than one process.
    """
    name = next((name for name in VARIABLES if os.environ.get(name, "").strip() not in ("", "1")), "")
    size = world_size()
    if size > 1:
        wrong = f"{size} processes were started, and each would train the whole run by itself"
        instead = "start `fastft run` alone: a run is one process on one GPU"
        raise MachineError(Problem(Where(name), "", wrong, instead))
