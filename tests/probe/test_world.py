"""The world is what the launcher says, or the run ends with a sentence before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fastft.commands.run import run
from fastft.errors import MachineError
from fastft.probe.world import (
    DEEPSPEED_LOCAL_SIZE,
    OTHER_ENGINES,
    OTHER_SETTINGS,
    OUTER,
    TORCH,
    VARIABLES,
    World,
    find_world,
    first_node,
    libraries_see,
    take_local_rank,
    world_size,
    wrong_ranks,
)
from fastft.stages.attempt import Start

MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ONE = (0, 1, 0, 1, "127.0.0.1")
TORCHRUN = {
    **MEET,
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x",
}
SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[03-04],login",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-77",
}
MPIEXEC = {**MEET, "PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
DEEPSPEED = {**MEET, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
WORLDS: dict[str, tuple[dict[str, str], tuple[int, int, int, int, str]]] = {
    "no launcher": ({}, ONE),
    "a size of one": ({"WORLD_SIZE": "1"}, ONE),
    "torchrun of one": ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, ONE),
    "a size with spaces": ({"WORLD_SIZE": " 1 "}, ONE),
    "an empty size": ({"WORLD_SIZE": ""}, ONE),
    "torchrun": (TORCHRUN, (1, 4, 1, 2, "127.0.0.1")),
    "deepspeed": (DEEPSPEED, (1, 2, 1, 2, "127.0.0.1")),
    "a pod of Kubernetes": ({**MEET, "RANK": "2", "WORLD_SIZE": "3"}, (2, 3, 0, 1, "127.0.0.1")),
    "srun": (SRUN, (3, 4, 1, 2, "node03")),
    "srun on one node": ({**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "3"}, (3, 4, 3, 4, "127.0.0.1")),
    "srun with its world written": ({**SRUN, **MEET, "WORLD_SIZE": "4"}, (3, 4, 1, 2, "127.0.0.1")),
    "mpirun": (MPIRUN, (1, 2, 1, 2, "127.0.0.1")),
    "mpiexec": (MPIEXEC, (1, 2, 0, 1, "127.0.0.1")),
    "torchrun on each node of srun": ({**SRUN, **TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}, (1, 4, 1, 2, "127.0.0.1")),
    "accelerate": (
        {**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        (1, 4, 1, 2, "127.0.0.1"),
    ),
    "deepspeed of one": ({**DEEPSPEED, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}, ONE),
    "a batch script without srun": ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ONE),
}
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "a size and no rank": ({"WORLD_SIZE": "2"}, "RANK does not say which one this is"),
    "a rank beyond": ({**TORCHRUN, "RANK": "4"}, "is no rank of 4 processes"),
    "a rank of one": ({"WORLD_SIZE": "1", "RANK": "1"}, "is rank 1 of a WORLD_SIZE of 1"),
    "a negative rank": ({**TORCHRUN, "RANK": "-1"}, "is not a number"),
    "a rank in words": ({**TORCHRUN, "RANK": "first"}, "is not a number"),
    "a local rank beyond": ({**TORCHRUN, "LOCAL_RANK": "2"}, "is no local rank of 2"),
    "a local rank in words": ({**TORCHRUN, "LOCAL_RANK": "x"}, "is not a number"),
    "more here than anywhere": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "is no local rank of 8 of 4"),
    "no process here": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "is not a number"),
    "a port in words": ({**TORCHRUN, "MASTER_PORT": "http"}, "is not a number"),
    "a port beyond": ({**TORCHRUN, "MASTER_PORT": "70000"}, "is no port"),
    "no port": ({**TORCHRUN, "MASTER_PORT": ""}, "the processes cannot meet"),
    "no address of hosts": ({**TORCHRUN, "MASTER_ADDR": ""}, "the processes are on several hosts"),
    "srun and another size": ({**SRUN, **MEET, "WORLD_SIZE": "2", "RANK": "1"}, "srun started 4 processes"),
    "srun of torchruns of one": ({**SRUN, **TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, "srun started 4 processes"),
    "srun of lone runs": ({**SRUN, "WORLD_SIZE": "1"}, "srun started 4 processes"),
    "srun of odd torchruns": ({**SRUN, **TORCHRUN, "WORLD_SIZE": "6"}, "srun started 4 processes"),
    "mpirun and another size": ({**MPIRUN, **MEET, "WORLD_SIZE": "3", "RANK": "1"}, "mpirun started 2 processes"),
    "mpirun without its rank": ({**MPIRUN, "OMPI_COMM_WORLD_RANK": ""}, "does not say which one this is"),
    "srun without its rank": ({**SRUN, "SLURM_PROCID": ""}, "does not say which one this is"),
    "srun on unknown nodes": ({**SRUN, "SLURM_STEP_NODELIST": ""}, "the processes are on several hosts"),
    "a rank and no size": ({**MEET, "RANK": "0"}, "WORLD_SIZE does not say of how many processes"),
    "a local rank and no size": ({**MEET, "LOCAL_RANK": "1"}, "WORLD_SIZE does not say of how many processes"),
    "a local rank of one": ({"WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "is rank 1 of a WORLD_SIZE of 1"),
    "two here of one": ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"}, "is more than the WORLD_SIZE of 1"),
    "mpirun without its size": (
        {**MPIRUN, "OMPI_COMM_WORLD_SIZE": ""},
        "OMPI_COMM_WORLD_SIZE does not say of how many",
    ),
    "mpirun of one and a rank beyond": (
        {**MPIRUN, "OMPI_COMM_WORLD_SIZE": "1"},
        "is 1, and OMPI_COMM_WORLD_RANK says rank 1",
    ),
    "mpirun within srun": ({**SRUN, **MPIRUN}, "srun started 4 processes .* OMPI_COMM_WORLD_SIZE says 2"),
    "mpirun and another rank": ({**MPIRUN, **MEET, "WORLD_SIZE": "2", "RANK": "0"}, "RANK says rank 0, and OMPI"),
    "FSDP of accelerate": ({**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, "another way to share the work than DDP"),
    "FSDP of accelerate alone": ({"ACCELERATE_USE_FSDP": "true"}, "another way to share the work than DDP"),
    "bfloat16 of accelerate": ({"ACCELERATE_MIXED_PRECISION": "bf16"}, r"changes what the plan says \(got bf16\)"),
    "a compiler of accelerate": ({**TORCHRUN, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "changes what the plan says"),
    "DeepSpeed of accelerate": ({**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "1"}, "another way to share the work"),
    "a huge size": ({"WORLD_SIZE": "99999999"}, "is not a number of processes"),
    "a size in other digits": ({"WORLD_SIZE": "\u0662"}, "is not a number of processes"),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for launcher in (TORCH, *OUTER):
        for name in (launcher.size, launcher.rank, launcher.local_rank, launcher.local_size):
            monkeypatch.delenv(name, raising=False)
    for name in (
        *OTHER_ENGINES,
        *OTHER_SETTINGS,
        DEEPSPEED_LOCAL_SIZE,
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", WORLDS)
def test_the_world_of_a_launcher(name: str) -> None:
    variables, expected = WORLDS[name]

    world = find_world(variables)

    assert (world.rank, world.size, world.local_rank, world.local_size, world.address) == expected


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_refused_and_makes_no_folder(
    monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    variables, words = WRONG[name]
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)  # a program that has just been started

    with pytest.raises(MachineError, match=words) as refused:
        run(write_recipe(), [], tmp_path / "runs", Start(), Console())

    assert refused.value.exit_code == 4
    assert not (tmp_path / "runs").exists()


def test_libraries_see_the_world_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)

    with libraries_see(find_world()):
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # as Unsloth does
        assert {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
            "RANK": "3",
            "WORLD_SIZE": "4",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "2",
        }
    assert dict(os.environ) == before


def test_what_an_earlier_training_left_is_not_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    with pytest.raises(MachineError, match="ACCELERATE_MIXED_PRECISION"):
        find_world()
    monkeypatch.setitem(sys.modules, "transformers", sys)

    with libraries_see(find_world()):
        assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_a_launcher_of_one_process_makes_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**DEEPSPEED, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)

    with libraries_see(find_world()):
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & os.environ.keys()


def test_a_local_rank_on_the_command_line_is_that_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "")
    take_local_rank(1)
    assert os.environ["LOCAL_RANK"] == "1"

    with pytest.raises(MachineError, match=r"LOCAL_RANK: is not the --local_rank=0 of the command \(got 1\)"):
        take_local_rank(0)


def test_every_task_of_srun_derives_the_same_port() -> None:
    ports = {find_world({**SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)}).port for rank in range(4)}

    assert len(ports) == 1
    assert 20_000 <= ports.pop() < 30_000


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("text", ["abc", "0", "-2", "1.5", "2,2"])
def test_what_is_no_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)

    with pytest.raises(MachineError, match=rf"{name}: is not a number of processes \(got {text}\)"):
        world_size()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[03-08,11],login1", "node03"), ("gpu7", "gpu7"), ("a1,a2", "a1"), ("n[1,5]x,m", "n1x"), ("", "")],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_two_processes_with_one_local_rank_are_named() -> None:
    worlds = {0: ("a", World(0, 2, 0, 2)), 1: ("a", World(1, 2, 0, 2))}

    assert list(wrong_ranks(worlds)) == ["ranks 0 and 1 on a both have the local rank 0"]


@pytest.mark.slow
def test_a_lone_rank_ends_in_seconds_with_a_sentence(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Only waiting shows that it does not wait for ever for ranks that nobody started: rank 0 of 2, and rank 1 of 2."""
    lone = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "fastft", "run", str(write_recipe()), "--runs-dir", str(tmp_path / "runs")]
    started = []
    for rank, port in (("0", "24100"), ("1", "24300")):
        env = {**os.environ, **lone, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        started.append(subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    first, second = (process.communicate(timeout=120)[1] for process in started)

    assert [process.returncode for process in started] == [4, 4]
    assert "rank 1 of 2 did not come within 30 s" in first
    assert "rank 0 of 2 does not answer at 127.0.0.1 within 30 s" in second
    assert not (tmp_path / "runs").exists()
