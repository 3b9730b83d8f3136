"""A small model in one process, in two and four, and on two hosts: `PYTHONPATH=. python benchmarks/ranks.py`.

Writes ranks.json: how far losses, gradient norms and the adapter of each way to share the work are from those of one
process at the same batch of 8 rows; what becomes of a run on two hosts of two processes each when one dies, and of the
same command afterwards. The hosts are two loopback addresses in a host file, and two network namespaces (Linux, root)
whose link goes down in silence. Takes some 6 minutes of two cores; DeepSpeed is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

HERE = Path(__file__).parent
FASTFT = (sys.executable, "-m", "fastft")
CHANGES: dict[str, Any] = {
    "model.engine": "transformers",
    "data.eval": "eval.jsonl",
    "train.effective_batch_size": 8,
    "train.per_device_train_batch_size": 2,
    "train.eval_strategy": "epoch",
    "lora.lora_dropout": 0.0,
}
HOSTS = ("fastft-host-0", "fastft-host-1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def make_recipes(folder: Path) -> None:
    """A random model of 100,000 weights, 27 rows, and a recipe for each run."""
    from tests.engine.tiny import make_model, make_rows, write_recipe, write_rows

    model = make_model(folder / "model")
    write_rows(folder / "train.jsonl", make_rows(27))
    write_rows(folder / "eval.jsonl", make_rows(7, seed=5))
    names = ("one", *(f"{engine}_{ranks}" for engine in ENGINES for ranks in (2, 4)), "loopback", "namespaces")
    for name in names:
        write_recipe(folder, model, CHANGES, name)


ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def run(folder: Path, command: Sequence[str]) -> None:
    """Run a command of fastft to its end.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([*FASTFT, *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def steps(folder: Path, name: str) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each optimizer step of a run."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["loss"], line["grad_norm"]) for line in map(json.loads, lines) if line["event"] == "step"]


def distance(folder: Path, name: str) -> dict[str, float]:
    """The largest differences of a run from that of one process."""
    ours, theirs = steps(folder, name), steps(folder, "one")
    assert len(ours) == len(theirs)
    adapters = [load_file(folder / "runs" / each / "adapter" / "adapter_model.safetensors") for each in (name, "one")]
    assert adapters[0].keys() == adapters[1].keys()
    return {
        "steps": len(ours),
        "loss": max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)),
        "grad_norm": max(abs(a[1] - b[1]) for a, b in zip(ours, theirs, strict=True)),
        "adapter": max(float((adapters[0][key] - adapters[1][key]).abs().max()) for key in adapters[0]),
    }


def wait_for_step(log: Path, step: int) -> None:
    """Return when a run shows that it made the step."""
    deadline = time.monotonic() + 300
    while f"step {step}/" not in (log.read_text(encoding="utf-8") if log.exists() else ""):
        if time.monotonic() > deadline:
            sys.exit(f"no step {step} within 5 minutes:\n{log.read_text(encoding='utf-8')[-3000:]}")
        time.sleep(0.05)


def descendants(process: int) -> list[int]:
    """The processes that a process started, and theirs."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid for pid, parent in parents if parent == process]
    return found + [one for pid in found for one in descendants(pid)]


def on_loopback(folder: Path) -> dict[str, Any]:
    """A host file of two loopback addresses; the second host is killed whole, by SIGKILL."""
    (folder / "hosts").write_text("127.0.0.1 slots=2\n127.0.0.2 slots=2\n", encoding="utf-8")
    command, log = ["launch", "loopback.toml", "--hostfile", "hosts"], folder / "loopback.log"
    with log.open("wb") as out:
        launched = subprocess.Popen([*FASTFT, *command], cwd=folder, stderr=out, stdout=out)
        wait_for_step(log, 5)
        second = max(pid for pid in descendants(launched.pid) if "--node-rank=1" in arguments(pid))
        killed, began = [second, *descendants(second)], time.monotonic()
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = launched.wait(timeout=120)
        seconds = time.monotonic() - began
    run(folder, command)
    return {"command": command, **ended(log, code, seconds), "continued": distance(folder, "loopback")}


def arguments(process: int) -> str:
    """The command line of a process, empty where it ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def ended(log: Path, code: int, seconds: float) -> dict[str, Any]:
    """How a run ended, and the sentence that it said."""
    lines = log.read_text(encoding="utf-8").splitlines()
    said = [line for line in lines if "ended without a word" in line]
    return {"exit_code": code, "seconds_after_the_host_died": round(seconds, 1), "said": said[-1] if said else ""}


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a link between them."""
    for command in (
        *(f"netns add {host}" for host in HOSTS),
        f"link add veth0 netns {HOSTS[0]} type veth peer name veth1 netns {HOSTS[1]}",
        *(
            f"-n {host} addr add {address}/24 dev veth{n}"
            for n, (host, address) in enumerate(zip(HOSTS, ADDRESSES, strict=True))
        ),
        *(f"-n {host} link set {device} up" for n, host in enumerate(HOSTS) for device in ("lo", f"veth{n}")),
    ):
        subprocess.run(["ip", *command.split()], check=True)
    try:
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=True)


def start_host(folder: Path, number: int, log: Path) -> subprocess.Popen[bytes]:
    """`fastft launch` on one of the hosts."""
    command = ["launch", "namespaces.toml", "--nproc", "2", "--nnodes", "2", "--node-rank", str(number)]
    place = ["ip", "netns", "exec", HOSTS[number], *FASTFT, *command, "--master", ADDRESSES[0]]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": f"veth{number}"}
    with log.open("wb") as out:
        return subprocess.Popen(place, cwd=folder, env=env, stderr=out, stdout=out)


def in_namespaces(folder: Path) -> dict[str, Any]:
    """Two network namespaces; the link of the second goes down, and nobody says so."""
    logs = [folder / f"host-{number}.log" for number in range(2)]
    with two_hosts():
        started = [start_host(folder, number, log) for number, log in enumerate(logs)]
        wait_for_step(logs[0], 5)
        subprocess.run(["ip", "-n", HOSTS[1], "link", "set", "veth1", "down"], check=True)
        began = time.monotonic()
        code = started[0].wait(timeout=180)
        seconds = time.monotonic() - began
        other_code = started[1].wait(timeout=180)
        other_seconds = time.monotonic() - began
        found = ended(logs[0], code, seconds)
        found["other_host"] = ended(logs[1], other_code, other_seconds)
        subprocess.run(["ip", "-n", HOSTS[1], "link", "set", "veth1", "up"], check=True)
        again = [start_host(folder, number, log) for number, log in enumerate(logs)]
        codes = [process.wait(timeout=300) for process in again]
        if any(codes):
            sys.exit(f"continuing ended with {codes}:\n{logs[0].read_text(encoding='utf-8')[-3000:]}")
    return {**found, "continued": distance(folder, "namespaces")}


def main() -> None:
    """Measure all, print and write the figures."""
    folder = Path(tempfile.mkdtemp(prefix="fastft-ranks-"))
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(HERE.parent)}
    os.environ["FASTFT_ENGINE"] = "transformers"
    make_recipes(folder)
    del os.environ["FASTFT_ENGINE"]
    run(folder, ["run", "one.toml"])
    figures: dict[str, Any] = {"model": "a random Llama of 2 layers and width 64, LoRA of rank 4, 27 rows, 2 epochs"}
    for engine in ENGINES:
        for ranks in (2, 4):
            name = f"{engine}_{ranks}"
            run(folder, ["launch", f"{name}.toml", "--nproc", str(ranks), "--engine", engine])
            figures[f"{engine}, {ranks} processes"] = distance(folder, name)
    figures["two hosts in a host file (127.0.0.1, 127.0.0.2), one killed"] = on_loopback(folder)
    figures["two network namespaces, one link down"] = in_namespaces(folder)
    text = json.dumps(figures, indent=1)
    print(text)
    (HERE / "ranks.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
