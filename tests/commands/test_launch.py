"""`fastft launch` prints the torchrun commands that it runs, and refuses options that do not fit together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastft.commands.launch import LaunchRequest, commands, engine_override, launch_in_terminal
from fastft.errors import MachineError, UsageError
from fastft.runs import ranks
from fastft.stages.launch import meet_hosts, read_hostfile


def request(**changes: object) -> LaunchRequest:
    values = {"processes": None, "hostfile": None, "nodes": None, "node": None, "master": None, "engine": "ddp"}
    return LaunchRequest(**{**values, "arguments": (), **changes})  # type: ignore[arg-type]


def test_one_host(write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe()

    assert launch_in_terminal(recipe, ["train.seed=3"], request(processes=2), dry_run=True) == 0

    shown = capsys.readouterr().out.strip()
    wanted = "-m torch.distributed.run --nproc-per-node=2 --standalone -m fastft run"
    assert shown.endswith(f"{wanted} {recipe} --set train.seed=3")


def test_ddp_is_not_what_a_recipe_with_deepspeed_gets(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"--engine: the recipe shares the model in another way \(got ddp\); take"):
        launch_in_terminal(write_recipe(), ['train.deepspeed="zero2"'], request(processes=2), dry_run=True)


def test_a_host_file_is_one_command_a_host(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=2  # this machine\n\nnode2 slots=2\n", encoding="utf-8")

    here, there = commands(Path("a.toml"), [], request(hostfile=hosts, master="127.0.0.1:4000"))

    assert "--nnodes=2 --node-rank=0 --master-addr=127.0.0.1 --master-port=4000" in str(here)
    assert str(there).startswith("ssh -o BatchMode=yes -o ConnectTimeout=10 node2")
    assert "--node-rank=1" in str(there)


def test_one_host_of_a_file_needs_no_ssh(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=2\nnode2 slots=2\n", encoding="utf-8")

    (only,) = commands(Path("a.toml"), [], request(hostfile=hosts, node=1))

    assert "ssh" not in str(only)
    assert "--node-rank=1 --master-addr=node1 --master-port=29500" in str(only)


def test_each_engine_is_a_key_of_the_recipe(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    for engine, override in {
        "fsdp2": "'train.fsdp=\"full_shard\"'",
        "zero3": "'train.deepspeed=\"zero3\"'",
        "ddp": "",
    }.items():
        launch_in_terminal(recipe, [], request(processes=2, engine=engine), dry_run=True)
        assert capsys.readouterr().out.strip().endswith(f"{recipe}" + (f" --set {override}" if override else ""))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "zero9"}, r"--engine: is no way .* \(got zero9\); write ddp"),
        ({"engine": "fsdp"}, r"--engine: is no way .* \(got fsdp\); write ddp, fsdp2, zero1"),
        ({"nodes": 2}, "--nnodes: 2 hosts need --node-rank and --master too"),
        ({"nodes": 2, "node": 2, "master": "a"}, "--node-rank: is no host of 2"),
    ],
)
def test_options_that_do_not_fit_together(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        commands(Path("a.toml"), engine_override(str(changes.get("engine", "ddp"))), request(**changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node1", "1: --hostfile: is no host with its number of processes"),
        ("node1 slots=0", "is no host with its number of processes"),
        ("node1 slots=1\nnode1 slots=1", "2: --hostfile: is a host twice"),
        ("-oProxyCommand=x slots=1", "is no host with its number of processes"),
        ("a slots=1\nb slots=2", "the same number of slots"),
        ("# none", "names no host"),
    ],
)
def test_a_host_file_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(UsageError, match=words):
        read_hostfile(path)


def test_a_host_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "JOIN_SECONDS_OF_HOSTS", 0.5)

    with pytest.raises(MachineError, match=r"hosts 1, 2 of 3 did not come within 0 s; .* its own --node-rank"):
        meet_hosts(0, 3, "127.0.0.1:14100")
    with pytest.raises(MachineError, match=r"host 1: host 0 of 2 does not answer at 127\.0\.0\.1 .* --node-rank$"):
        meet_hosts(1, 2, "127.0.0.1:14200")


def test_hosts_that_come_late_meet() -> None:
    with ThreadPoolExecutor(3) as pool:
        met = [pool.submit(meet_hosts, number, 3, "127.0.0.1:14300") for number in (2, 1, 0)]

    assert [one.exception() for one in met] == [None, None, None]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--local_rank=1", "launch", "--help"],
        ["--local-rank=1", "run", "--help"],
        ["run", "--local_rank=1", "--help"],
        ["run", "--local-rank", "1", "--help"],
    ],
)
def test_launchers_say_the_local_rank_on_the_command_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "fastft", *arguments]

    assert "--set" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
