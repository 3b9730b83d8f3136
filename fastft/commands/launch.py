"""`fastft launch`: start a run as several processes, on this host or on several."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastft.console import say
from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.planning.check import check
from fastft.probe.device import find_device
from fastft.probe.software import installed
from fastft.recipe.loader import load
from fastft.recipe.shardings import FSDP2, SHARDINGS
from fastft.stages.launch import Node, meet_hosts, read_hostfile, run_nodes, torchrun


@dataclass(frozen=True)
class LaunchRequest:
    """The options of `fastft launch`; `arguments` go to `fastft run`."""

    processes: int | None
    hostfile: Path | None
    nodes: int | None
    node: int | None
    master: str | None
    engine: str | None
    arguments: tuple[str, ...]


def launch_in_terminal(recipe: Path, overrides: Sequence[str], request: LaunchRequest, *, dry_run: bool) -> int:
    """Print the commands and run them; returns the exit code of the run.

    Raises:
        FastftError: the recipe is wrong, or the options do not fit together.
    """
    overrides = [*overrides, *engine_override(request.engine)]
    loaded = load(recipe, overrides)
    check(loaded)
    if request.engine == "ddp" and loaded.recipe.train.shares_model:
        wrong, instead = "the recipe shares the model in another way", "take train.deepspeed or train.fsdp out of it"
        raise UsageError(Problem(Where("--engine"), "", wrong, instead, request.engine))
    nodes = commands(recipe, overrides, request)
    for node in nodes:
        print(node, file=sys.stdout if dry_run else sys.stderr, flush=True)
    if dry_run:
        return 0
    if "torch" not in installed():
        raise MachineError(Problem(Where("torch"), "", "is not installed", "see `fastft doctor`"))
    hosts = len(read_hostfile(request.hostfile)) if request.hostfile else request.nodes or 1
    if request.node is not None and hosts > 1:
        say(f"waiting for all {hosts} hosts at {_master(request)}")
        meet_hosts(request.node, hosts, _master(request))
    return run_nodes(nodes, say)


def engine_override(engine: str | None) -> list[str]:
    """What --engine sets in the recipe; nothing for DDP, which needs no key.

    Raises:
        UsageError: there is no such engine.
    """
    row = SHARDINGS.get(engine or "ddp")
    if row is None and not str(engine).endswith(".json"):
        wrong = "is no way to share the work"
        instead = f"write {', '.join(SHARDINGS)} or a DeepSpeed configuration FILE.json"
        raise UsageError(Problem(Where("--engine"), "", wrong, instead, engine))
    if row is not None and row.name == FSDP2:
        return ['train.fsdp="full_shard"']
    if row is not None:
        return [f'train.deepspeed="{row.name}"'] if row.zero_stage else []
    return [f"train.deepspeed={json.dumps(str(Path(str(engine)).absolute()))}"]


def commands(recipe: Path, overrides: Sequence[str], request: LaunchRequest) -> list[Node]:
    """What is started here: one torchrun, or with a host file and no --node-rank one for each host.

    Raises:
        UsageError: the options do not fit together.
    """
    arguments = ["-m", "fastft", "run", str(recipe), *(part for text in overrides for part in ("--set", text))]
    arguments += request.arguments
    return _of_hostfile(request.hostfile, request, arguments) if request.hostfile else [_here(request, arguments)]


def _of_hostfile(hostfile: Path, request: LaunchRequest, arguments: Sequence[str]) -> list[Node]:
    if request.nodes is not None or request.processes is not None:
        wrong = "is given together with --nnodes or --nproc"
        raise UsageError(Problem(Where("--hostfile"), "", wrong, "write one: the file says both"))
    hosts = read_hostfile(hostfile)
    _refuse_node_beyond(request.node, len(hosts))
    master = _master(request)
    nodes = [
        Node(host, torchrun(host.processes, arguments, nodes=len(hosts), node=number, master=master))
        for number, host in enumerate(hosts)
    ]
    return nodes if request.node is None else [Node(None, nodes[request.node].command)]


def _master(request: LaunchRequest) -> str:
    """Where the first host is."""
    if request.master is None and request.hostfile is not None:
        return read_hostfile(request.hostfile)[0].name
    return str(request.master)


def _here(request: LaunchRequest, arguments: Sequence[str]) -> Node:
    """The torchrun of this host, one of --nnodes."""
    count = request.nodes or 1
    if count > 1 and (request.node is None or request.master is None):
        wrong = f"{count} hosts need --node-rank and --master too"
        raise UsageError(Problem(Where("--nnodes"), "", wrong, "run the command on each host with its own --node-rank"))
    _refuse_node_beyond(request.node, count)
    processes = request.processes
    if processes is None:
        device = find_device()
        processes = device.count if device.is_gpu else 1
    master = request.master if count > 1 else None
    return Node(None, torchrun(processes, arguments, nodes=count, node=request.node or 0, master=master))


def _refuse_node_beyond(node: int | None, count: int) -> None:
    if node is not None and node >= count:
        wrong = f"is no host of {count}"
        raise UsageError(Problem(Where("--node-rank"), "", wrong, "count from 0", str(node)))
