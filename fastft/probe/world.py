"""The processes that a run is made of, from the variables that launchers set: ranks, their number, where they meet."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastft.errors import MachineError, Problem, Where

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Launcher:
    """The variables of one launcher: number of processes, this one's rank, both on this host."""

    name: str
    size: str
    rank: str
    local_rank: str
    local_size: str


# `WORLD_SIZE` comes from torchrun, accelerate, deepspeed and from people; the others say how many tasks were started.
TORCH = Launcher("torchrun", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OUTER = (
    Launcher(
        "mpirun",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher("mpiexec", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher(
        "mpirun_rsh",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)
# What deepspeed calls LOCAL_WORLD_SIZE.
DEEPSPEED_LOCAL_SIZE = "LOCAL_SIZE"
# What accelerate asks the trainer for beside DDP, of one process too.
OTHER_ENGINES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
# Settings of accelerate that would change what the plan says, behind its back, and what to write instead.
OTHER_SETTINGS = {
    "ACCELERATE_MIXED_PRECISION": "write train.bf16 or train.fp16 in the recipe, and start with --mixed_precision no",
    "ACCELERATE_DYNAMO_BACKEND": "take --dynamo_backend out: the plan compiles nothing",
}
VARIABLES = tuple(launcher.size for launcher in (TORCH, *OUTER))


@dataclass(frozen=True)
class World:
    """The processes of one run. `rank` of `size`; `local_rank` of `local_size` on this host; rank 0 is at `address`.

    `name` tells one run from another at the same address; `group` the hosts of torchrun, whatever their names.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = LOOPBACK
    port: int = 0
    name: str = ""
    group: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's folder and talks to the user."""
        return self.rank == 0

    @property
    def on_one_host(self) -> bool:
        return self.local_size == self.size

    def variables(self) -> dict[str, str]:
        """The same in the variables that torch reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def find_world(variables: Mapping[str, str] | None = None) -> World:
    """The world of this process, from `variables` (the environment); of one process without a launcher.

    Raises:
        MachineError: a variable is no number, two launchers disagree, or one says too little.
    """
    env = os.environ if variables is None else variables
    # In a program that trained before, it was transformers or Unsloth that set them, for that training.
    if variables is not None or "transformers" not in sys.modules:
        _refuse_settings(env)
    size = _number(env, TORCH.size, least=1)
    outer = [launcher for launcher in OUTER if _sized(env, launcher) > 1]
    _refuse_rank_without_size(env, size is not None or bool(outer))
    if size is None:
        if not outer:
            return World()
        launcher, size = outer[0], _sized(env, outer[0])
    else:
        launcher = outer[0] if outer and not env.get(TORCH.rank, "").strip() else TORCH
    for other in outer:
        _refuse_other_size(env, launcher, other, size)
    if size == 1:
        _refuse_part_of_one(env)
        return World()
    return _checked(env, launcher, size)


def _sized(env: Mapping[str, str], launcher: Launcher) -> int:
    return _number(env, launcher.size, least=1) or 1


def _refuse_settings(env: Mapping[str, str]) -> None:
    for name in OTHER_ENGINES:
        if env.get(name, "").strip().lower() in ("1", "true", "yes", "y", "on", "t"):
            wrong = "asks for another way to share the work than DDP, the one that accelerate may start here"
            instead = "take it out of the configuration of accelerate; `fastft launch --engine zero2` shares a model"
            raise MachineError(Problem(Where(name), "", wrong, instead))
    for name, instead in OTHER_SETTINGS.items():
        text = env.get(name, "").strip()
        if text.lower() not in ("", "no"):
            raise MachineError(Problem(Where(name), "", "changes what the plan says", instead, text))


def _refuse_rank_without_size(env: Mapping[str, str], is_sized: bool) -> None:
    """Stop a process that is one of several whose number nobody says: it would train alone, and so would the others."""
    for name in () if is_sized else (TORCH.rank, TORCH.local_rank):
        if (rank := _number(env, name)) is not None:
            _refuse(name, "is set, and WORLD_SIZE does not say of how many processes", str(rank))
    for launcher in OUTER:
        rank, size = _number(env, launcher.rank), _number(env, launcher.size, least=1)
        # Slurm sets SLURM_PROCID=0 in a batch script too, beside which nothing runs.
        if size is None and (rank or (rank == 0 and launcher.name != "srun")):
            _refuse(launcher.rank, f"is set, and {launcher.size} does not say of how many", env[launcher.rank])
        if size == 1 and (rank or _number(env, launcher.local_rank)):
            _refuse(launcher.size, f"is 1, and {launcher.rank} says rank {rank}", env[launcher.size])
        here = env.get(launcher.local_size, "").strip()
        if size == 1 and here not in ("", "1"):
            _refuse(launcher.size, f"is 1, and {launcher.local_size} says {here}", env[launcher.size])


def _refuse_part_of_one(env: Mapping[str, str]) -> None:
    """Stop a process that some variable takes for one of several, and WORLD_SIZE for all of one."""
    for name in (TORCH.rank, TORCH.local_rank):
        if _number(env, name):
            _refuse(name, f"is rank {env[name].strip()} of a WORLD_SIZE of 1", env[name])
    for name in (TORCH.local_size, DEEPSPEED_LOCAL_SIZE):
        if (_number(env, name, least=1) or 1) > 1:
            _refuse(name, "is more than the WORLD_SIZE of 1", env[name])


def _refuse_other_size(env: Mapping[str, str], launcher: Launcher, other: Launcher, size: int) -> None:
    """Tasks of mpirun or srun may each start a torchrun, whose world then is larger, never smaller."""
    tasks, nested = _sized(env, other), "TORCHELASTIC_RUN_ID" in env
    if nested and size >= tasks and size % tasks == 0:
        return  # torchrun numbers its processes as it likes
    said, instead = launcher.size, "start the processes with one launcher"
    if TORCH.size in env:
        said, instead = TORCH.size, f"unset WORLD_SIZE, or {instead}"
    if tasks != size:
        wrong = f"{other.name} started {tasks} processes ({other.size}), and {said} says {size}"
        raise MachineError(Problem(Where(said), "", wrong, instead))
    ranks = _number(env, launcher.rank), _number(env, other.rank)
    if None not in ranks and ranks[0] != ranks[1]:
        wrong = f"{launcher.rank} says rank {ranks[0]}, and {other.rank} rank {ranks[1]}"
        raise MachineError(Problem(Where(launcher.rank), "", wrong, "start the processes with one launcher"))


def _checked(env: Mapping[str, str], launcher: Launcher, size: int) -> World:
    """The world of `size` processes, with the ranks that `launcher` gave."""
    rank = _number(env, launcher.rank)
    if rank is None:
        wrong = f"{launcher.size} says {size} processes, and {launcher.rank} does not say which one this is"
        instead = "start them with torchrun or `fastft launch`, or unset it"
        raise MachineError(Problem(Where(launcher.rank), "", wrong, instead))
    if rank >= size:
        _refuse(launcher.rank, f"is no rank of {size} processes (0 to {size - 1})", env[launcher.rank])
    local_size, local_rank = _local_size(env, launcher, size), _number(env, launcher.local_rank)
    if local_rank is None:
        local_rank = rank if local_size == size else 0
        local_size = local_size or 1
    local_size = local_size or size
    if local_rank >= local_size or local_size > size:
        wrong = f"is no local rank of {local_size} of {size} processes on this host"
        _refuse(launcher.local_rank, wrong, str(local_rank))
    address, port = _meeting_place(env, launcher, everyone_is_here=local_size == size)
    job = env.get("TORCHELASTIC_RUN_ID", "") + env.get("TORCHELASTIC_RESTART_COUNT", "")
    return World(
        rank, size, local_rank, local_size, address, port, f"{address}:{port}/{job}", _number(env, "GROUP_RANK") or 0
    )


def _local_size(env: Mapping[str, str], launcher: Launcher, size: int) -> int | None:
    """Processes on this host; None where no variable says it."""
    if launcher.name == "srun":
        nodes = _number(env, "SLURM_STEP_NUM_NODES", least=1)
        text = env.get(launcher.local_size, "").strip()
        if nodes == 1:
            return size
        if re.fullmatch(r"[1-9]\d*(\(x\d+\))?", text):  # the same on every node: 4(x2)
            return int(text.partition("(")[0])
        return _nth_node(text, _number(env, "SLURM_NODEID") or 0)
    found = _number(env, launcher.local_size, least=1)
    return found or (_number(env, DEEPSPEED_LOCAL_SIZE, least=1) if launcher is TORCH else None)


def _nth_node(text: str, node: int) -> int | None:
    """The tasks of a node in Slurm's words: 4,2(x3) is 4, 2, 2, 2."""
    counts = [int(match[1]) for match in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(match[2] or 1))]
    return counts[node] if node < len(counts) else None


def _meeting_place(env: Mapping[str, str], launcher: Launcher, *, everyone_is_here: bool) -> tuple[str, int]:
    """(address, port) where the processes meet: as set, or one that all of them derive from their job.

    Raises:
        MachineError: nothing says where.
    """
    address, port = env.get("MASTER_ADDR", "").strip(), _number(env, "MASTER_PORT", least=1)
    if port is not None and port > 65535:
        _refuse("MASTER_PORT", "is no port (1 to 65535)", str(port))
    if not address and everyone_is_here:
        address = LOOPBACK
    if not address and launcher.name == "srun":
        address = first_node(env.get("SLURM_STEP_NODELIST", ""))
    if not address:
        wrong = "is not set, and the processes are on several hosts"
        raise MachineError(Problem(Where("MASTER_ADDR"), "", wrong, "export the address of rank 0's host"))
    if port is None:
        jobs = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")
        job = "/".join(env[name] for name in jobs if env.get(name))
        if not job:
            wrong = "is not set: the processes cannot meet"
            raise MachineError(Problem(Where("MASTER_PORT"), "", wrong, "export a free port, the same for all"))
        port = 20_000 + zlib.crc32(job.encode()) % 10_000
    return address, port


def first_node(nodes: str) -> str:
    """The first host of a Slurm list: node[03-08,11],login1 begins with node03."""
    found = re.match(r"([^,\[]+)(?:\[([^\]\-,]+)[^\]]*\])?([^,\[]*)", nodes)
    return "" if found is None else found[1] + (found[2] or "") + found[3]


def world_size() -> int:
    """The number of processes; 1 without a launcher.

    Raises:
        MachineError: the variables of a launcher are wrong.
    """
    return find_world().size


def take_local_rank(rank: int) -> None:
    """Take the `--local_rank` that deepspeed and torch.distributed.launch add to the command.

    Raises:
        MachineError: LOCAL_RANK says another one.
    """
    known = os.environ.get(TORCH.local_rank, "").strip()
    if known not in ("", str(rank)):
        _refuse(TORCH.local_rank, f"is not the --local_rank={rank} of the command", known)
    os.environ[TORCH.local_rank] = str(rank)


@contextlib.contextmanager
def libraries_see(world: World) -> Iterator[None]:
    """Within: the variables that torch and accelerate read say `world` and nothing else; afterwards they are as before.

    Of one process they say nothing: with a LOCAL_RANK that a launcher of one process set, accelerate makes a group.
    What an earlier training in this process left there, such as its precision, is not for this one.
    """
    settings = (*OTHER_ENGINES, *OTHER_SETTINGS)
    names = (*World().variables(), *settings)
    before = {name: os.environ[name] for name in names if name in os.environ}
    for name in names if world.size == 1 else settings:
        os.environ.pop(name, None)
    if world.size > 1:
        os.environ |= world.variables()
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ |= before


def _number(env: Mapping[str, str], name: str, least: int = 0) -> int | None:
    """The number in a variable, None where it is not set.

    Raises:
        MachineError: it is none.
    """
    text = env.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) < 10**6:
        kind = "number of processes" if name in VARIABLES else "number"
        _refuse(name, f"is not a {kind}", text)
    return int(text)


def _refuse(name: str, wrong: str, got: str) -> None:
    raise MachineError(Problem(Where(name), "", wrong, "unset it, or let the launcher set it", got))


def wrong_ranks(worlds: Mapping[int, tuple[str, World]]) -> Iterator[str]:
    """What does not fit together in the worlds of all processes, {rank: (host, world)}."""
    sizes = {world.size for _, world in worlds.values()}
    if len(sizes) > 1:
        yield f"they disagree about their number: {', '.join(map(str, sorted(sizes)))}"
    seen: dict[tuple[str, int, int], int] = {}
    for rank, (host, world) in sorted(worlds.items()):
        other = seen.setdefault((host, world.group, world.local_rank), rank)
        if other != rank:
            yield f"ranks {other} and {rank} on {host} both have the local rank {world.local_rank}"
