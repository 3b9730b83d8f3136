"""Start the processes of a run: the torchrun command of each host, signals to them, and their common exit code."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.probe.world import World
from fastft.runs.ranks import EXIT_CODE_VARIABLE, PORTS, Ranks
from fastft.stages.stopping import SIGNALS

PORT = 29500
# The others end by themselves within a minute after a host is lost.
AFTER_FIRST_SECONDS = 60.0


@dataclass(frozen=True)
class Host:
    """A host of the run, and how many processes it takes."""

    name: str
    processes: int

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, which needs no ssh."""
        return self.name in ("localhost", socket.gethostname()) or self.name.startswith("127.")


@dataclass(frozen=True)
class Node:
    """One torchrun: its host (None: this one), its number and the command."""

    host: Host | None
    command: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.started)

    @property
    def started(self) -> tuple[str, ...]:
        """The command as it is started here, through ssh on another host."""
        if self.host is None or self.host.is_here:
            return self.command
        remote = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(self.command)}"
        return ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", self.host.name, remote)


def read_hostfile(path: Path) -> list[Host]:
    """The hosts in a file of lines such as `node1 slots=8`, as DeepSpeed and Open MPI read it; # begins a comment.

    Raises:
        UsageError: it cannot be read, or a line is no host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            Problem(Where(str(path)), "--hostfile", f"cannot be read: {error}", "correct the path")
        ) from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"([A-Za-z0-9][\w.:-]*)\s+slots\s*=\s*([1-9]\d{0,3})", text)
        if found is None or any(host.name == found[1] for host in hosts):
            wrong = "is a host twice" if found else "is no host with its number of processes"
            raise UsageError(Problem(Where(str(path), number), "--hostfile", wrong, "write: node1 slots=8", text))
        hosts.append(Host(found[1], int(found[2])))
    if not hosts:
        raise UsageError(Problem(Where(str(path)), "--hostfile", "names no host", "write: node1 slots=8"))
    if len({host.processes for host in hosts}) > 1:
        wrong = "torchrun needs the same number of slots on every host"
        raise UsageError(Problem(Where(str(path)), "--hostfile", wrong, "write the smallest number everywhere"))
    return hosts


def torchrun(processes: int, arguments: Sequence[str], *, nodes: int, node: int, master: str | None) -> tuple[str, ...]:
    """The torchrun command of one host; `master`: ADDRESS or ADDRESS:PORT of the first host, None on one host."""
    if master is None:
        place = ["--standalone"]
    else:
        address, port = address_and_port(master)
        place = [
            f"--nnodes={nodes}",
            f"--node-rank={node}",
            f"--master-addr={address}",
            f"--master-port={port}",
        ]
    return (sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *place, *arguments)


def meet_hosts(node: int, nodes: int, master: str) -> None:
    """Wait until `fastft launch` has begun on every host: torchrun waits for ever, and names nobody.

    Raises:
        MachineError: a host did not come, by its number.
    """
    address, port = address_and_port(master)
    # After the ports on which the ranks meet.
    world = World(node, nodes, address=address, port=port + PORTS, name=f"hosts of {address}:{port}", group=node)
    with Ranks(world, "host", "start the same command on every host, each with its own --node-rank"):
        pass


def address_and_port(master: str) -> tuple[str, int]:
    """The parts of ADDRESS or ADDRESS:PORT."""
    address, _, port = master.rpartition(":") if re.search(r":\d+$", master) else (master, "", "")
    return address, int(port or PORT)


def run_nodes(nodes: Sequence[Node], say: Callable[[str], None]) -> int:
    """Start the nodes, pass signals on, and return the exit code of the run.

    Raises:
        MachineError: a program cannot be started.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        code = Path(folder) / "code"
        started: list[tuple[Node, subprocess.Popen[bytes]]] = []

        def forward(number: int, _: object) -> None:
            ranks = [pid for _, process in started for pid in _children(process.pid)]
            # One rank is enough: all stop after the same step. Without ranks torchrun itself is stopped.
            for pid in ranks[:1] or [process.pid for _, process in started]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if not ranks else number)

        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, forward))
        environment = {
            **os.environ,
            EXIT_CODE_VARIABLE: str(code),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        for node in nodes:
            try:
                # A session of its own: Ctrl-C of a terminal reaches the ranks through here alone.
                process = subprocess.Popen(node.started, env=environment, start_new_session=True)
            except OSError as error:
                wrong = f"cannot be started: {error.strerror}"
                raise MachineError(Problem(Where(node.started[0]), "", wrong, "install it")) from None
            started.append((node, process))
        codes = _wait(started, say)
        if any(codes) and code.is_file():
            return int(code.read_text(encoding="utf-8"))
        return max(codes) if any(codes) else 0


def _wait(started: Sequence[tuple[Node, subprocess.Popen[bytes]]], say: Callable[[str], None]) -> list[int]:
    """The exit codes of all; after the first one failed the others have a minute."""
    deadline = None
    while any(process.poll() is None for _, process in started):
        failed = [(node, process) for node, process in started if process.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + AFTER_FIRST_SECONDS
            node, process = failed[0]
            if node.host is not None:
                say(f"{node.host.name} ended with {process.returncode}: the other hosts end too")
        if deadline is not None and time.monotonic() > deadline:
            for _, process in started:
                if process.poll() is None:
                    process.terminate()
        time.sleep(0.2)
    return [abs(process.returncode) for _, process in started]


def _children(parent: int) -> list[int]:
    """The processes of fastft that a torchrun started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes().split(b"\0")
            if int(fields[1]) == parent and b"fastft" in command:
                found.append(int(stat.parent.name))
    return sorted(found)
