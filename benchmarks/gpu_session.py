"""All that waits for the first GPU, in the order of its value: `make gpu`, again and again, until nothing is left.

    WHEELS=wheels make gpu                     install from carried wheels first; without WHEELS the host has all
    python -m benchmarks.gpu_session --list    what there is to do, and what is done

Each call begins no step that cannot end within --budget seconds (540), and at least one. A step writes NAME.json and
NAME.log to --out (benchmarks/gpu) when it ends, however it ends; one whose NAME.json is there is not run again, unless
--again names it. The host needs one GPU, PyTorch, 64 GB of disk for --work (build/gpu), and neither a network nor a
package registry. Imports nothing but the standard library: before the first step nothing else may be installed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Under the ten minutes after which many hosts cut a command off.
BUDGET_SECONDS = 540
# Packages that a GPU host brings in its own builds.
OF_THE_HOST = ("torch-", "triton-", "nvidia_")
LIBRARIES = """
import unsloth, torch, bitsandbytes
from bitsandbytes.functional import lib
import unsloth.utils.attention_dispatch as attention
print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.cuda.get_device_name())
print("bitsandbytes computes 4-bit:", hasattr(lib.cdequantize_blockwise_bf16_nf4, "restype"))
print("flash", attention.HAS_FLASH_ATTENTION, "xformers", attention.HAS_XFORMERS, "torch's own",
      getattr(attention, "_NATIVE_BEATS_XFORMERS", None))
"""


@dataclass(frozen=True)
class Step:
    """One thing to do: `command` ends within `seconds`. `stop_at`: SIGTERM once it has printed this."""

    name: str
    why: str
    command: tuple[str, ...]
    seconds: int
    stop_at: str | None = None


def steps(out: Path, work: Path, wheels: Path | None) -> list[Step]:
    """Every step, the most valuable first."""
    python = sys.executable
    fastft = (python, "-m", "fastft")
    model = f"model.id={work / 'model-8b'}"
    changes = (model, "train.save_strategy=steps", "train.save_steps=5", "train.logging_steps=1")
    overrides = (word for change in changes for word in ("--set", change))
    tuned = (*fastft, "run", "recipes/llama31_sft_tuned.toml", "--runs-dir", str(work / "runs"), *overrides)
    gpu = (python, "benchmarks/gpu.py", "--keep-logs", "--work", str(work))
    # Where the host has pytest-benchmark, it warns under xdist, and a warning ends our tests.
    tests = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark")
    job = (python, "-m", "benchmarks.gpu_session", "--work", str(work), "--job")
    made = ("--model-folder", str(work / "model-8b"))
    install: list[Step] = []
    if wheels is not None:
        chosen = [str(path) for path in sorted(wheels.glob("*.whl")) if not path.name.startswith(OF_THE_HOST)]
        flags = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(work / "site"))
        install = [Step("install", "the carried wheels", (python, "-m", "pip", "install", *flags, *chosen), 180)]
    return [
        *install,
        Step("doctor", "do versions, device and libraries fit", (*fastft, "doctor"), 60),
        Step("doctor-train", "do they train, resume and export", (*fastft, "doctor", "--train"), 300),
        Step("libraries", "4-bit kernels and the attention in use", (python, "-c", LIBRARIES), 120),
        Step("tests-training", "masks, packing, resume, merge, memory", (*tests, "tests/gpu/test_training.py"), 530),
        Step("tests-memory", "forecast and allocated", (*tests, "-s", "tests/gpu/test_memory.py"), 530),
        Step(
            "table-1b",
            "the four contenders on the shape of Llama-3.2-1B",
            (*gpu, "--model", "1b", "--accumulation", "4", "--out", str(out / "1b"), "--budget", "490"),
            530,
        ),
        Step("model-1b", "random weights for the profile", (*job, "model-1b"), 120),
        Step("profile", "how often three packed steps wait for the GPU", (*job, "profile"), 300),
        Step("model-8b", "random weights of Llama-3.1-8B", (*job, "model-8b"), 300),
        Step("tuned-stopped", "SIGTERM in the tuned recipe", tuned, 530, stop_at="step 6/"),
        Step("tuned-again", "the same command continues, to merged and GGUF weights", tuned, 530),
        Step(
            "table-8b",
            "the four contenders on Llama-3.1-8B",
            (*gpu, *made, "--steps", "3", "--accumulation", "4", "--out", str(out / "8b"), "--budget", "500"),
            535,
        ),
    ]


def run_step(step: Step, out: Path, work: Path) -> dict[str, Any]:
    """Run one step, and write NAME.log while it runs and NAME.json when it ended. Returns what NAME.json says."""
    paths = [str(work / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    log = out / f"{step.name}.log"
    began, ended = time.monotonic(), "well"
    with log.open("w", encoding="utf-8") as stream:
        # A group of its own, so that nothing that it started outlives it.
        process = subprocess.Popen(
            step.command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        if step.stop_at is not None:
            threading.Thread(target=_stop_at, args=(process, log, step.stop_at), daemon=True).start()
        try:
            code: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code, ended = None, f"cut off after {step.seconds} s"
    if code:
        ended = f"exit code {code}"
    found = {
        "name": step.name,
        "why": step.why,
        "command": " ".join(step.command[:12]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(),
        "seconds": round(time.monotonic() - began, 1),
        "ended": ended,
        "last_lines": log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:],
    }
    (out / f"{step.name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _stop_at(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    """Ask `process` to stop once `log` holds `text`."""
    while process.poll() is None:
        if text in log.read_text(encoding="utf-8", errors="replace"):
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.2)


def _device() -> str:
    """What the driver calls the GPU; "none" without one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"


def left(chosen: Sequence[Step], out: Path) -> list[Step]:
    """The steps whose output is not there."""
    return [step for step in chosen if not (out / f"{step.name}.json").is_file()]


def within(chosen: Sequence[Step], budget: float) -> Iterator[Step]:
    """The first step, and each further one while it is sure to end within `budget` seconds from now."""
    began = time.monotonic()
    for number, step in enumerate(chosen):
        if number and time.monotonic() - began + step.seconds > budget:
            return
        yield step


def make_model(work: Path, size: str) -> None:
    """A model of random weights in the shape of Llama, with the tokenizer of Llama 3."""
    from benchmarks.contenders import make
    from benchmarks.gpu import write_config

    folder = work / f"model-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, size)
    make({"model": str(folder), "out": str(folder / "made.json")})


# What the driver's interface calls waiting for the device, and copies that may wait.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item", "Memcpy DtoH")
PROFILED_STEPS = 3


def profile(work: Path) -> None:
    """Count what makes the GPU wait in three packed steps of `fastft run`, and print it per micro-batch."""
    from rich.console import Console

    from benchmarks.gpu import write_recipe, write_rows
    from fastft.commands.run import run
    from fastft.stages.attempt import Start

    rows, accumulation = work / "profile.jsonl", 8
    write_rows(rows, 2000, 2048, 300.0)
    changes = {
        "train.max_steps": PROFILED_STEPS + 2,
        "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": accumulation,
    }
    recipe = write_recipe(work / "profile.toml", work / "model-1b", rows, changes)
    counted: dict[str, int] = {}

    class Watch:
        """Stands for the terminal: a step's line appears when the step has ended."""

        def __init__(self) -> None:
            self.profiler: Any = None
            self.lines = 0
            # The run has its own ideas of where standard output goes.
            self.stream = sys.stdout

        def write(self, text: str) -> int:
            from torch.profiler import ProfilerActivity, profile

            print(text, end="", flush=True, file=self.stream)
            self.lines += text.startswith("step ")
            if text.startswith("step ") and self.lines == 1:
                self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
                self.profiler.__enter__()
            elif text.startswith("step ") and self.lines == 1 + PROFILED_STEPS:
                self.profiler.__exit__(None, None, None)
                counted.update(_waits(self.profiler.key_averages()))
            return len(text)

        def flush(self) -> None:
            self.stream.flush()

    # Shows where it stands if it is cut off.
    faulthandler.dump_traceback_later(120, repeat=True)
    run(recipe, [], work / "runs", Start(fresh=True), Console(file=Watch(), width=200))  # type: ignore[arg-type]
    micro_batches = PROFILED_STEPS * accumulation
    per_micro_batch = {name: round(count / micro_batches, 2) for name, count in counted.items()}
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"micro_batches": micro_batches, "waits": counted, "per_micro_batch": per_micro_batch}))


def _waits(events: Any) -> dict[str, int]:
    """How often each of WAITS stands among the events of a profile."""
    return {name: sum(int(event.count) for event in events if event.key.startswith(name)) for name in WAITS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is left to do, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the steps and run none")
    parser.add_argument("--again", nargs="*", default=[], metavar="NAME", help="run these once more")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--wheels", type=Path, default=os.environ.get("WHEELS") or None)
    parser.add_argument("--job", choices=("model-1b", "model-8b", "profile"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out, work = options.out.resolve(), options.work.resolve()
    if options.job is not None:
        profile(work) if options.job == "profile" else make_model(work, options.job.removeprefix("model-"))
        return
    chosen = steps(out, work, None if options.wheels is None else Path(options.wheels).resolve())
    unknown = sorted(set(options.again) - {step.name for step in chosen})
    if unknown:
        parser.error(f"no such step: {', '.join(unknown)}")
    todo = [step for step in chosen if step in left(chosen, out) or step.name in options.again]
    if options.list:
        for step in chosen:
            state = "to do" if step in todo else "done "
            print(f"{state}  {step.name:<15} at most {step.seconds:>3} s  {step.why}")
        return
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    for step in within(todo, options.budget):
        print(f"{step.name}: {step.why} (at most {step.seconds} s)", flush=True)
        found = run_step(step, out, work)
        print(f"{step.name}: ended {found['ended']} after {found['seconds']:.0f} s; {out / step.name}.log", flush=True)
    rest = left(chosen, out)
    print(f"left: {', '.join(step.name for step in rest)}; run this again" if rest else "nothing is left to do")


if __name__ == "__main__":
    main()
