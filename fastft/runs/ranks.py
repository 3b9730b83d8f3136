"""What the processes of one run tell each other besides tensors: results of rank 0, failures, requests to stop.

Every rank keeps one connection to rank 0. The kernel closes it when a process dies and probes it while a host is
silent, so that a lost rank is known within a minute whatever the others wait for. Messages are JSON, one a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fastft.errors import (
    DataError,
    ExportError,
    FastftError,
    Interrupted,
    MachineError,
    Problem,
    RecipeError,
    TrainingError,
    Where,
)
from fastft.probe.world import World, wrong_ranks

T = TypeVar("T")
# Processes of one host start together; hosts may come minutes apart.
JOIN_SECONDS, JOIN_SECONDS_OF_HOSTS = 30.0, 300.0
# After another rank failed: time for this one to end by itself, before it is ended where it waits.
GRACE_SECONDS = 10.0
# Rank 0 listens on the first free one of so many ports after MASTER_PORT, which torch uses.
PORTS = 16
ONE_LAUNCHER = "start all of them with one launcher: fastft launch, torchrun, srun"
# Where rank 0 writes the exit code of all, for `fastft launch`: torchrun ends with 1 whatever it was.
EXIT_CODE_VARIABLE = "FASTFT_EXIT_CODE_FILE"
# A silent host: probed after 10 s, every 5 s, lost after 4 probes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_ERRORS = {
    error.exit_code: error for error in (TrainingError, RecipeError, DataError, MachineError, ExportError, Interrupted)
}


@dataclass(frozen=True)
class Failure:
    """Why a rank ended the run, with the exit code of all. `lost`: it ended without a word."""

    rank: int
    exit_code: int
    problems: tuple[Problem, ...]
    lost: bool = False

    def error(self) -> FastftError:
        return _ERRORS.get(self.exit_code, TrainingError)(self.problems)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Failure:
        problems = (Problem(**{**one, "where": Where(**one["where"])}) for one in value["problems"])
        return cls(value["rank"], value["exit_code"], tuple(problems), value["lost"])


@dataclass
class _Peer:
    """Another rank, as rank 0 knows it."""

    world: World
    host: str
    process: int
    connection: socket.socket
    left: bool = False

    def __str__(self) -> str:
        return f"rank {self.world.rank} (process {self.process} on {self.host})"


@dataclass
class _State:
    """What the threads of a rank share."""

    peers: dict[int, _Peer] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    failure: Failure | None = None
    ended: bool = False
    over: bool = False


class Ranks:
    """The meeting of the processes of a run; of one alone it does nothing. Use as a context manager.

    `noun`, `instead`: what those that meet are, and what to do where one does not come.
    """

    def __init__(self, world: World | None = None, noun: str = "rank", instead: str = ONE_LAUNCHER) -> None:
        self.world = world or World()
        self._noun, self._instead = noun, instead
        self.stop_asked: Callable[[], signal.Signals | None] = lambda: None
        self.ask_to_stop: Callable[[signal.Signals], None] = lambda _: None
        self._state, self._news = _State(), threading.Condition()
        self._hub: socket.socket | None = None
        self._stderr = 2

    def __enter__(self) -> Self:
        if self.world.size > 1:
            self._stderr = os.dup(2)  # the log takes number 2 later
            try:
                self._join()
            except BaseException:
                self._leave()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.world.size == 1:
            return
        if error is None or isinstance(error, SystemExit):
            self._leave()
            return
        verdict = self._verdict(error)
        self._tell_failure(verdict)
        self._write_exit_code(verdict)
        if not self.world.is_first:
            with self._news:
                self._news.wait_for(lambda: self._state.ended, 2 * GRACE_SECONDS)
            self._state.over = True
            if self._speaks(verdict):
                self._print(verdict)
            raise SystemExit(verdict.exit_code) from None
        self._state.over = True
        if verdict.rank != 0:
            raise verdict.error() from None

    def _speaks(self, failure: Failure) -> bool:
        """Whether this rank says why the run ends: rank 0 does; where it is gone itself, the next one on each host."""
        if failure.rank == 0 and failure.lost:
            return self.world.rank == 1 or self.world.local_rank == 0
        return self.world.is_first

    # What the pipeline calls.

    def share(self, key: str, make: Callable[[], T]) -> T:
        """The value that rank 0 makes, on every rank; it must be plain JSON. The others wait as long as it takes.

        Raises:
            FastftError: another rank failed meanwhile.
        """
        if self.world.size == 1:
            return make()
        if self.world.is_first:
            value = make()
            self._raise_failure()
            self._broadcast({"say": [key, value]})
            return value
        self._wait(lambda: key in self._state.said)
        said: T = self._state.said.pop(key)
        return said

    def in_turn(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returns, called by rank 0 first and then by the others, which find its caches full."""
        if self.world.is_first:
            value = make()
            self.share(key, lambda: True)
            return value
        self.share(key, lambda: True)
        return make()

    def first(self, make: Callable[[], T]) -> T | None:
        """What `make` returns on rank 0; None on the others, which do not wait."""
        return make() if self.world.is_first else None

    def agree(self, key: str, value: str, what: str) -> None:
        """Compare `value` with that of rank 0.

        Raises:
            MachineError: it is another one.
        """
        if self.share(key, lambda: value) != value:
            wrong = f"rank {self.world.rank} on {socket.gethostname()} has other {what} than rank 0"
            raise MachineError(Problem(Where(what), "", wrong, "give every host the same files and versions"))

    # Joining.

    def _join(self) -> None:
        wait = JOIN_SECONDS if self.world.on_one_host else JOIN_SECONDS_OF_HOSTS
        deadline = time.monotonic() + wait
        if self.world.is_first:
            self._listen()
            try:
                self._wait(lambda: len(self._state.peers) == self.world.size - 1 or self._state.refused, wait)
            finally:
                missing = sorted(set(range(1, self.world.size)) - set(self._state.peers))
            worlds = {0: (socket.gethostname(), self.world)}
            worlds |= {rank: (peer.host, peer.world) for rank, peer in self._state.peers.items()}
            wrong = [*self._state.refused, *wrong_ranks(worlds)]
            if missing and not wrong:
                wrong = [f"{_listed(self._noun, missing)} of {self.world.size} did not come within {wait:.0f} s"]
            if wrong:
                problem = Problem(Where(f"{self._noun} 0 at {self.world.address}"), "", wrong[0], self._instead)
                self._tell_failure(Failure(0, MachineError.exit_code, (problem,)))
                raise MachineError(problem)
            self._broadcast({"say": ["joined", True]})
            return
        connection = self._find_hub(deadline, wait)
        threading.Thread(target=self._listen_to_hub, args=(connection,), daemon=True).start()
        self._wait(lambda: "joined" in self._state.said)

    def _listen(self) -> None:
        host = self.world.address if self.world.on_one_host else ""
        for port in range(self.world.port + 1, self.world.port + 1 + PORTS):
            hub = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            hub.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                hub.bind((host, port))
                hub.listen(self.world.size)
            except OSError:
                hub.close()
                continue
            self._hub = hub
            threading.Thread(target=self._accept, args=(hub,), daemon=True).start()
            return
        wrong = f"the {PORTS} ports after {self.world.port} are taken, or the address is not of this host"
        raise MachineError(Problem(Where(f"{self.world.address}:{self.world.port}"), "", wrong, "set MASTER_PORT"))

    def _accept(self, hub: socket.socket) -> None:
        while True:
            try:
                connection, _ = hub.accept()
            except OSError:  # closed: the run is over
                return
            threading.Thread(target=self._listen_to_peer, args=(connection,), daemon=True).start()

    def _find_hub(self, deadline: float, wait: float) -> socket.socket:
        """A connection to rank 0, which may not listen yet."""
        hello = {"hello": self.world.name, "host": socket.gethostname(), "process": os.getpid()}
        hello["world"] = dataclasses.asdict(self.world)
        while time.monotonic() < deadline:
            for port in range(self.world.port + 1, self.world.port + 1 + PORTS):
                with contextlib.suppress(OSError, ValueError):
                    connection = socket.create_connection((self.world.address, port), timeout=5)
                    _send(connection, hello)
                    answer = json.loads(_first_line(connection))
                    if answer == {"welcome": self.world.name}:
                        connection.settimeout(None)
                        self._hub = connection
                        return connection
                    connection.close()
            time.sleep(0.2)
        wrong = f"{self._noun} 0 of {self.world.size} does not answer at {self.world.address} within {wait:.0f} s"
        alone = "; unset WORLD_SIZE to train alone" if self._noun == "rank" else ""
        raise MachineError(Problem(Where(f"{self._noun} {self.world.rank}"), "", wrong, self._instead + alone))

    # Listening: one thread a connection.

    def _listen_to_peer(self, connection: socket.socket) -> None:
        peer = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            _keep_alive(connection)
            lines = connection.makefile(encoding="utf-8")
            peer = self._welcome(connection, json.loads(lines.readline()))
            if peer is None:
                connection.close()
                return
            for line in lines:
                message = json.loads(line)
                if "fail" in message:
                    self._fail(Failure.from_json(message["fail"]))
                elif "stop" in message:
                    self.ask_to_stop(signal.Signals(message["stop"]))
                peer.left = peer.left or "left" in message
        if peer is not None and not peer.left and not self._state.over:
            wrong = f"{peer} ended without a word: killed, out of memory, or its host is gone"
            instead = f"see rank-{peer.world.rank}.log of this attempt; the same command continues"
            problem = Problem(Where("ranks"), "", wrong, instead)
            self._fail(Failure(peer.world.rank, MachineError.exit_code, (problem,), lost=True))

    def _welcome(self, connection: socket.socket, hello: dict[str, Any]) -> _Peer | None:
        """The rank that says hello; None for one of another run, or that does not fit."""
        world = World(**hello["world"])
        if hello["hello"] != self.world.name:
            _send(connection, {"other": self.world.name})
            return None
        peer = _Peer(world, hello["host"], hello["process"], connection)
        with self._news:
            if world.size != self.world.size:
                self._state.refused.append(f"{peer} says that there are {world.size} ranks, rank 0 {self.world.size}")
            elif world.rank in self._state.peers or world.rank == 0:
                self._state.refused.append(f"rank {world.rank} is there twice")
            self._state.peers.setdefault(world.rank, peer)
            _send(connection, {"welcome": self.world.name})
            self._news.notify_all()
        return peer

    def _listen_to_hub(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            _keep_alive(connection)
            for line in connection.makefile(encoding="utf-8"):
                message = json.loads(line)
                if "fail" in message:
                    self._fail(Failure.from_json(message["fail"]))
                else:
                    with self._news:
                        self._state.said[message["say"][0]] = message["say"][1]
                        self._news.notify_all()
        with self._news:
            self._state.ended = True
            self._news.notify_all()
        if not self._state.over:
            wrong = f"rank 0 at {self.world.address} ended without a word: killed, out of memory, or its host is gone"
            problem = Problem(Where("ranks"), "", wrong, "see the log of this attempt; the same command continues")
            self._fail(Failure(0, MachineError.exit_code, (problem,), lost=True))

    # Failing.

    def _fail(self, failure: Failure) -> None:
        """Another rank failed: whoever waits here raises, and what does not end by itself is ended."""
        with self._news:
            if self._state.failure is not None or self._state.over:
                return
            self._state.failure = failure
            self._news.notify_all()
        if self.world.is_first:
            self._broadcast({"fail": failure.as_json()})
        threading.Thread(target=self._end_after_grace, args=(failure,), daemon=True).start()

    def _end_after_grace(self, failure: Failure) -> None:
        time.sleep(GRACE_SECONDS)
        if not self._state.over:
            if self._speaks(failure):
                self._print(failure)
            self._write_exit_code(failure)
            os._exit(failure.exit_code)

    def _write_exit_code(self, failure: Failure) -> None:
        path = os.environ.get(EXIT_CODE_VARIABLE)
        if path and (self._speaks(failure) or self.world.local_rank == 0):  # each host has its launcher
            with contextlib.suppress(OSError):
                Path(path).write_text(str(failure.exit_code), encoding="utf-8")

    def _print(self, failure: Failure) -> None:
        with contextlib.suppress(OSError):
            os.write(self._stderr, "".join(f"{problem}\n" for problem in failure.problems).encode())

    def _verdict(self, error: BaseException) -> Failure:
        """Why this rank ends: another rank's failure, whose consequence `error` may be, or else `error` itself."""
        if not isinstance(error, FastftError | KeyboardInterrupt) or isinstance(error, TrainingError | Interrupted):
            # A collective fails at once when a rank dies; that it died is known moments later. Of ranks that stop
            # together, the first one says so.
            with contextlib.suppress(FastftError):
                self._wait(lambda: self._state.failure is not None, 1.0 if self.world.is_first else 5.0)
        if self._state.failure is not None:
            return self._state.failure
        if isinstance(error, FastftError):
            by = "" if self.world.is_first else f"rank {self.world.rank}: "
            problems = tuple(dataclasses.replace(one, wrong=by + one.wrong) for one in error.problems)
            return Failure(self.world.rank, error.exit_code, problems)
        if isinstance(error, KeyboardInterrupt):
            problem = Problem(Where("ranks"), "", "stopped by the keyboard", "the same command continues")
            return Failure(self.world.rank, Interrupted.exit_code, (problem,))
        wrong = f"rank {self.world.rank}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        problem = Problem(Where("ranks"), "", wrong, "this is a bug of fastft or of a library")
        return Failure(self.world.rank, TrainingError.exit_code, (problem,))

    def _tell_failure(self, failure: Failure) -> None:
        if failure.rank != self.world.rank:
            return
        if self.world.is_first:
            self._broadcast({"fail": failure.as_json()})
        elif self._hub is not None:
            with contextlib.suppress(OSError):
                _send(self._hub, {"fail": failure.as_json()})

    def _leave(self) -> None:
        """End well: rank 0 does not wait for ranks that have nothing more to do."""
        self._state.over = True
        if self._hub is None:
            return
        if not self.world.is_first:
            with contextlib.suppress(OSError):
                _send(self._hub, {"left": True})
        self._hub.close()

    def _raise_failure(self) -> None:
        if self._state.failure is not None:
            raise self._state.failure.error()

    def _wait(self, ready: Callable[[], object], seconds: float | None = None) -> None:
        """Wait until `ready` or for `seconds`; passes a request to stop on to rank 0.

        Raises:
            FastftError: another rank failed.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        reported = False
        while True:
            with self._news:
                if ready():
                    return
                self._raise_failure()
                if deadline is not None and time.monotonic() >= deadline:
                    return
                self._news.wait(0.5)
            asked = self.stop_asked()
            if asked is not None and not reported and not self.world.is_first and self._hub is not None:
                reported = True
                with contextlib.suppress(OSError):
                    _send(self._hub, {"stop": int(asked)})

    def _broadcast(self, message: dict[str, Any]) -> None:
        for peer in list(self._state.peers.values()):
            with contextlib.suppress(OSError):
                _send(peer.connection, message)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _first_line(connection: socket.socket) -> bytes:
    """One line, and not a byte of the next."""
    line = b""
    while not line.endswith(b"\n"):
        letter = connection.recv(1)
        if not letter or len(line) > 4096:
            raise ValueError("no answer")
        line += letter
    return line


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def _listed(noun: str, numbers: list[int]) -> str:
    return f"{noun}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
