"""`python -m torture`: run the cases that have no outcome yet, within a time budget, and write the report."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture.case import Case, Ledger, Outcome

KINDS = (
    "secrets", "recipes", "artefacts", "rows", "disk", "numbers", "divergence", "drift", "damage", "resume",
    "signals", "kills",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
LONGEST_CASE_SECONDS = 900


def warm(folder: Path) -> None:
    """Import all that the commands need, and compute nothing: what is forked must have no threads."""
    os.environ |= {
        "FASTFT_ENGINE": os.environ.get("FASTFT_ENGINE", "transformers"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
    }
    sys.path.insert(0, str(folder))
    for name in ("engine", "cli", "commands.run", "commands.export", "engine.train", "engine.export", "engine.convert"):
        importlib.import_module(f"fastft.{name}")
    import gc

    import torch

    torch.set_num_threads(1)
    gc.freeze()


def in_child(work: Callable[[], Any], answer: Path) -> int:
    """Fork a child that writes what `work` returns to `answer` as JSON; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        value = work()
        answer.write_text(json.dumps(value), encoding="utf-8")
        code = 0
    except BaseException:
        answer.with_suffix(".error").write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


def prepared(kind: str, folder: Path) -> Any:
    """The module of a kind, after what its cases share was made, in a child."""
    module = importlib.import_module(f"torture.kinds.{kind}")
    shared = folder / kind
    shared.mkdir()
    answer = folder / f"{kind}.json"
    os.waitpid(in_child(lambda: module.prepare(shared, folder / "base"), answer), 0)
    if not answer.exists():
        sys.exit(f"{kind} cannot be prepared:\n{answer.with_suffix('.error').read_text(encoding='utf-8')}")
    return module


class Pool:
    """Runs cases in children of this process, `workers` at a time."""

    def __init__(self, folder: Path, workers: int, done: Callable[[Case, Outcome], None]) -> None:
        self._folder, self._workers, self._done = folder, workers, done
        self._running: dict[int, tuple[Case, Path, float]] = {}
        self._number = 0

    def add(self, case: Case) -> None:
        while len(self._running) >= self._workers:
            self._reap()
        self._number += 1
        place = self._folder / f"case-{self._number}"
        place.mkdir()
        answer = place / "outcome.json"
        (place / "work").mkdir()

        def work() -> list[Any]:
            outcome = case.run(place / "work")
            return [outcome.verdict, round(outcome.seconds, 3), outcome.group, outcome.detail]

        self._running[in_child(work, answer)] = case, place, time.monotonic()

    def finish(self) -> None:
        while self._running:
            self._reap()

    def _reap(self) -> None:
        for pid, (case, place, begun) in list(self._running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._end(pid, case, place)
            elif time.monotonic() - begun > LONGEST_CASE_SECONDS:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self._end(pid, case, place)
        time.sleep(0.005)

    def _end(self, pid: int, case: Case, place: Path) -> None:
        del self._running[pid]
        answer = place / "outcome.json"
        if answer.exists():
            outcome = Outcome(*json.loads(answer.read_text(encoding="utf-8")))
        else:
            error = answer.with_suffix(".error")
            said = error.read_text(encoding="utf-8").strip().splitlines()[-1] if error.exists() else "no answer"
            outcome = Outcome("hang" if said == "no answer" else "harness", 0.0, "", said[:300])
        outcome = dataclasses.replace(outcome, detail=outcome.detail.replace(f"{self._folder}/", ""))
        self._done(case, outcome)
        if outcome.is_good or "KEEP" not in os.environ:
            shutil.rmtree(place, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--only", metavar="KINDS", default=",".join(KINDS), help="some kinds: kills,signals")
    parser.add_argument("--limit", type=int, help="so many cases of each kind")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", choices=["all", "bad"], help="forget outcomes first: of all cases, or of bad ones")
    parser.add_argument("--raw", type=Path, default=ROOT / "benchmarks" / "torture.jsonl")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "reliability.md")
    asked = parser.parse_args()
    for stopping in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background without SIGINT
        signal.signal(stopping, signal.default_int_handler)
    kinds = tuple(asked.only.split(","))
    ledger = Ledger(asked.raw, asked.seed)
    if asked.again:
        ledger.forget(kinds, only_bad=asked.again == "bad")
    known = {(line.kind, line.name) for line in ledger.lines()}
    end = time.monotonic() + 60 * asked.minutes
    bad = 0

    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        print(f"seed {asked.seed}; at most {asked.minutes:g} minutes; {asked.workers} cases at a time", flush=True)
        warm(folder)
        from torture.subject import make_base

        os.waitpid(in_child(lambda: make_base(folder), folder / "base.json"), 0)
        for kind in kinds:
            begun, module = time.monotonic(), prepared(kind, folder)
            listed = module.cases(folder / kind, folder / "base", asked.seed)[: asked.limit]
            if asked.limit is None and ledger.path.exists():
                ledger.retain(kind, {case.name for case in listed})
            todo = [case for case in listed if (kind, case.name) not in known]
            print(f"{kind}: {len(listed)} cases, {len(listed) - len(todo)} known", flush=True)

            def done(case: Case, outcome: Outcome) -> None:
                nonlocal bad
                ledger.add(case, outcome)
                if not outcome.is_good:
                    bad += 1
                    print(f"  {case.kind}, {case.name}: {outcome.verdict}: {outcome.detail}", flush=True)

            pool = Pool(folder, asked.workers, done)
            try:
                for number, case in enumerate(todo, start=1):
                    if time.monotonic() > end:
                        print(f"the time is up; {len(todo) - number + 1} {kind} are left", flush=True)
                        break
                    pool.add(case)
                    if number % 25 == 0:
                        print(f"  {number}/{len(todo)}, {time.monotonic() - begun:.0f} s", flush=True)
                pool.finish()
            except KeyboardInterrupt:
                print("stopping: waiting for the cases that run", flush=True)
                pool.finish()
                break
            shutil.rmtree(folder / kind, ignore_errors=True)
            print(f"{kind}: {time.monotonic() - begun:.0f} s", flush=True)
    from torture.report import write_report

    write_report(ledger, asked.seed, asked.report)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
