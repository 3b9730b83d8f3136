"""What training must do to the weights, whatever the libraries below are: learn, and move only what is trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.engine.tiny import make_rows, run, write_recipe, write_rows

MEMORISE = {
    "train.max_steps": 40,
    "train.num_train_epochs": None,
    "train.save_strategy": "no",
    "train.save_steps": None,
    "train.save_total_limit": None,
    "lora.r": 16,
    "lora.lora_alpha": 32,
}


def hashes(model: Any) -> dict[str, str]:
    """SHA-256 of each weight, under the name that it has without an adapter."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): hashlib.sha256(
            value.detach().contiguous().numpy().tobytes()
        ).hexdigest()
        for name, value in model.state_dict().items()
    }


def test_memorised_rows_reach_a_loss_near_zero(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(4))
    losses = [step["loss"] for step in run(write_recipe(tmp_path, model, MEMORISE)).steps]
    # ln(259) = 5.6 is what guessing costs. Memorised rows measured 0.008 here; 0.1 leaves room for another CPU's sums.
    assert losses[0] > 4
    assert losses[-1] < 0.1
