"""One plan for all processes of a run, whatever each of them would have chosen."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastft.planning.facts import Facts
from fastft.planning.plan import Plan, make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB
from fastft.probe.software import TESTED
from fastft.probe.world import World
from fastft.recipe.loader import LoadedRecipe
from fastft.runs.directory import RunDir
from fastft.runs.ranks import Ranks
from fastft.stages.ready import agree_on_plan
from tests.golden import CPU, row_facts

SMALL = "model.id=HuggingFaceTB/SmolLM2-135M-Instruct"


def test_every_rank_trains_with_what_rank_0_chose(recipe: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    loaded, run = recipe("", SMALL), RunDir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = BaseModel(loaded.recipe.model.id, "hub", None)
    rows = row_facts([16 + 37 * number % 400 for number in range(480)])
    facts = Facts(CPU, TESTED, model, 480, None, 100 * GIB, rows, processes=2)
    # Alone, the second one would choose otherwise: it has more memory.
    own = [dataclasses.replace(facts, device=dataclasses.replace(CPU, memory_bytes=gib * GIB)) for gib in (2, 64)]

    def plan(rank: int) -> Plan:
        with Ranks(World(rank, 2, rank, 2, port=port)) as ranks:
            return agree_on_plan(loaded, own[rank], run, ranks)

    with ThreadPoolExecutor(2) as threads:
        plans = list(threads.map(plan, range(2)))
    alone = [make_plan(loaded, each, str(run.path)) for each in own]

    assert plans[0].chosen == plans[1].chosen == alone[0].chosen
    assert alone[1].chosen != alone[0].chosen
    assert plans[0].schedule == plans[1].schedule
    assert plans[0].calls == plans[1].calls
    assert plans[1].choices.per_device_train_batch_size.reason == "as this run began, on its first process"
