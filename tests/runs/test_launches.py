"""Whatever the variables of a launcher say, its processes are one run, or end; none trains beside the others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.probe.world import OUTER, TORCH, Launcher, World, find_world
from fastft.runs import ranks

Variables = dict[str, str]
LAUNCHERS = {launcher.name: launcher for launcher in (TORCH, *OUTER)}
# Set by a launcher beside its own names.
BESIDE: dict[str, Variables] = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "GROUP_RANK": "0"},
    "accelerate": {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no", "TORCHELASTIC_RUN_ID": "x"},
    "deepspeed": {"CROSS_RANK": "0", "CROSS_SIZE": "1"},
    "srun": {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"},
}
NAMES = ("torchrun", "accelerate", "deepspeed", "srun", "mpirun", "mpiexec", "mpirun_rsh")


def variables_of(name: str) -> Launcher:
    """accelerate starts torchrun; deepspeed has another word for the processes of a host."""
    if name == "deepspeed":
        return Launcher(name, TORCH.size, TORCH.rank, TORCH.local_rank, "LOCAL_SIZE")
    return LAUNCHERS["torchrun" if name == "accelerate" else name]


def sound(name: str, port: int) -> list[Variables]:
    """The variables of two processes as the launcher sets them."""
    launcher, beside = variables_of(name), BESIDE.get(name, {})
    meet = {"SLURM_JOB_ID": str(port)} if name == "srun" else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        {
            **beside,
            **meet,
            launcher.size: "2",
            launcher.rank: str(rank),
            launcher.local_rank: str(rank),
            launcher.local_size: "2",
        }
        for rank in range(2)
    ]


Change = Callable[[Launcher, list[Variables]], None]


def everywhere(field: str, value: str) -> Change:
    """The same value in both; "" stands for a variable that is not set."""

    def change(launcher: Launcher, both: list[Variables]) -> None:
        for one in both:
            one[getattr(launcher, field)] = value

    return change


def in_second(field: str, value: str) -> Change:
    def change(launcher: Launcher, both: list[Variables]) -> None:
        both[1][getattr(launcher, field)] = value

    return change


def beside_another(launcher: Launcher, both: list[Variables]) -> None:
    """Another launcher says that there are three."""
    other = LAUNCHERS["mpiexec" if launcher.name == "mpirun" else "mpirun"]
    for rank, one in enumerate(both):
        one |= {other.size: "3", other.rank: str(rank)}


# {what is wrong: (the change, how many processes then train)}.
FAULTS: dict[str, tuple[Change, int]] = {
    "nothing wrong": (everywhere("size", "2"), 2),
    "no size": (everywhere("size", ""), 0),
    "a garbled size": (everywhere("size", "two"), 0),
    "a size of three": (everywhere("size", "3"), 0),
    "a size that one does not know": (in_second("size", ""), 0),
    "a size of one for the second": (in_second("size", "1"), 0),
    "a size of one for both": (everywhere("size", "1"), 0),
    "another size for the second": (in_second("size", "4"), 0),
    "no rank": (everywhere("rank", ""), 0),
    "a garbled rank": (everywhere("rank", "0x1"), 0),
    "two of rank 0": (everywhere("rank", "0"), 0),
    "two of rank 1": (everywhere("rank", "1"), 0),
    "one local rank": (everywhere("local_rank", "0"), 0),
    "another launcher": (beside_another, 0),
}
# A task of srun without its number is what a batch script is, beside which nothing runs: rank 0 alone is one.
EXPECTED = {("srun", "no size"): 1}
CASES = [(name, fault) for name in NAMES for fault in FAULTS]


@dataclass(frozen=True)
class Met:
    """What became of the processes of one launch: the worlds of those that would train, what the others said."""

    worlds: list[World]
    refused: list[str]


def start(both: list[Variables]) -> Met:
    """The processes as threads: each finds its world and waits for the others, as `fastft run` does."""
    met, all_decided = Met([], []), threading.Barrier(2)

    def process(variables: Variables) -> None:
        try:
            with ranks.Ranks(find_world(variables)) as own:
                met.worlds.append(own.world)
                all_decided.wait(60)
        except MachineError as error:
            met.refused.append(str(error))
            all_decided.wait(60)

    threads = [threading.Thread(target=process, args=(variables,)) for variables in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return met


@pytest.fixture(scope="module")
def launches() -> Iterator[dict[tuple[str, str], Met]]:
    """All launches, side by side: most of their time is waiting for ranks that never come."""

    def launch(number: int) -> Met:
        name, fault = CASES[number]
        both = sound(name, 11_000 + 20 * number)
        FAULTS[fault][0](variables_of(name), both)
        return start(both)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(49) as pool:
        patch.setattr(ranks, "JOIN_SECONDS", 5.0)
        patch.setattr(ranks, "JOIN_SECONDS_OF_HOSTS", 5.0)
        yield dict(zip(CASES, pool.map(launch, range(len(CASES))), strict=True))


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_two_processes_are_one_run_or_none(launches: dict[tuple[str, str], Met], name: str, fault: str) -> None:
    met = launches[name, fault]

    assert len(met.worlds) == EXPECTED.get((name, fault), FAULTS[fault][1]), met
    assert len(met.worlds) + len(met.refused) == 2
    # The plan divides the batch by the size: as many processes as it counts, and one that makes the folder.
    assert all(world.size == len(met.worlds) for world in met.worlds)
    assert sorted(world.rank for world in met.worlds) == list(range(len(met.worlds)))
    assert all("; " in said for said in met.refused)


# Two hosts of one process each; rank 0 ends as the argument says while rank 1 waits for it.
ENDS = """
import os, sys
from fastft.errors import MachineError, Problem, Where
from fastft.probe.world import find_world
from fastft.runs.ranks import Ranks
with Ranks(find_world()) as ranks:
    if ranks.world.rank == 0 and sys.argv[1] == "killed":
        os._exit(9)
    if ranks.world.rank == 0:
        raise MachineError(Problem(Where("disk"), "", "is full", "free some space"))
    ranks.share("never", str)
"""


@pytest.mark.parametrize(("ends", "codes"), [("fails", ["4", "4"]), ("killed", [None, "4"])])
def test_the_launcher_of_every_host_gets_the_exit_code(tmp_path: Path, ends: str, codes: list[str | None]) -> None:
    started = []
    for rank in range(2):
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "15100" if ends == "fails" else "15200"}
        world = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(rank),
        }
        env = {**os.environ, **meet, **world, ranks.EXIT_CODE_VARIABLE: str(tmp_path / str(rank))}
        started.append(subprocess.Popen([sys.executable, "-c", ENDS, ends], env=env, text=True, stderr=subprocess.PIPE))
    said = [process.communicate(timeout=60)[1] for process in started]

    assert [path.read_text() if path.exists() else None for path in (tmp_path / "0", tmp_path / "1")] == codes
    assert started[1].returncode == 4
    assert ("rank 0 at 127.0.0.1 ended without a word" in said[1]) == (ends == "killed")
