"""Packed examples do not see each other, wherever fastft packs: one is changed, and nothing moves in the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny import ROOT, make_rows, write_recipe, write_rows

# In a process of its own: plain transformers packs; the CPU backend of Unsloth, which is in this process, never does.
PROGRAM = """
import json, sys
from pathlib import Path
import fastft.engine
import torch
from tests.engine.tiny import make_parts

parts = make_parts(Path(sys.argv[1]))
trainer = parts.trainer()
batch = next(iter(trainer.get_train_dataloader()))
ids, positions = batch["input_ids"], batch["position_ids"]
starts = [*torch.nonzero(positions[0] == 0).flatten().tolist(), ids.shape[1]]
model = trainer.model.eval()

def logits(tokens):
    with torch.no_grad():
        return model(input_ids=tokens, position_ids=positions, use_cache=False).logits[0]

changed = ids.clone()
begin, end = starts[0], starts[1]
changed[0, begin:end] = (changed[0, begin:end] + 1) % 256
whole, other = logits(ids), logits(changed)
alone = []
for first, last in zip(starts[1:-1], starts[2:]):
    with torch.no_grad():
        single = model(input_ids=ids[:, first:last], use_cache=False).logits[0]
    alone.append((single - whole[first:last]).abs().max().item())
print(json.dumps({
    "packing": parts.plan.choices.packing.value,
    "documents": len(starts) - 1,
    "rows": len(trainer.train_dataset),
    "tokens": sum(len(row) for row in trainer.train_dataset["input_ids"]),
    "prepared_tokens": parts.prepared.train.rows.tokens,
    "moved_in_the_changed_one": (whole[begin:end] - other[begin:end]).abs().max().item(),
    "moved_in_the_others": (whole[end:] - other[end:]).abs().max().item(),
    "different_from_alone": max(alone),
}))
"""


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def packed(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("packed")
    write_rows(folder / "train.jsonl", make_rows(40))
    changes = {
        "model.engine": "transformers",
        "model.attn_implementation": request.param,
        "train.packing": True,
        "train.per_device_train_batch_size": 1,
    }
    recipe = write_recipe(folder, model, changes)
    environment = {**os.environ, "FASTFT_ENGINE": "transformers", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.slow
def test_changing_one_packed_example_moves_nothing_in_the_others(packed: dict[str, Any]) -> None:
    """Only the model that is really trained, with the batch that it really gets, shows what attention sees."""
    assert packed["packing"] is True
    assert packed["documents"] > 2
    assert packed["moved_in_the_changed_one"] > 0.1
    assert packed["moved_in_the_others"] == 0.0


@pytest.mark.slow
def test_a_packed_example_is_read_as_it_would_be_alone(packed: dict[str, Any]) -> None:
    """The same, against each example in a row of its own; float32 sums in another order differ in the last digits."""
    assert packed["different_from_alone"] < 1e-5


@pytest.mark.slow
def test_packing_loses_no_token(packed: dict[str, Any]) -> None:
    """What TRL packs is what was prepared, in fewer rows."""
    assert packed["tokens"] == packed["prepared_tokens"]
    assert packed["rows"] < 40
