"""torch.compile: two graphs, the same losses, evaluations left alone, and a stop meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from fastft.errors import Interrupted
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from tests.engine.tiny import SignalAt, make_rows, run, write_recipe, write_rows

CHANGES: dict[str, Any] = {
    "model.engine": "transformers",
    "data.eval_fraction": 0.25,
    "train.num_train_epochs": None,
    "train.max_steps": 4,
    "train.learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with one layer: the compiler takes seconds for each."""
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM.from_pretrained(model, num_hidden_layers=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_from_two_graphs(small: Path, tmp_path: Path) -> None:
    """That compiling changes no loss, and how many graphs it makes: only a run that compiles can show it."""
    write_rows(tmp_path / "train.jsonl", make_rows(24))
    plain = run(write_recipe(tmp_path, small, CHANGES, "plain"))
    compiled = run(write_recipe(tmp_path, small, {**CHANGES, "train.torch_compile": True}, "compiled"))

    # The evaluations before and after have lengths of their own: compiled, they would make more graphs.
    assert "torch.compile made 2 graphs in" in compiled.shown
    assert "1 of them anew for other shapes" in compiled.shown
    # Fused sums are rounded in another order.
    losses = [line["loss"] for line in compiled.steps]
    assert losses == pytest.approx([line["loss"] for line in plain.steps], rel=1e-4)
    # With torch.compile the output layer sees every position, not only those that carry loss: other sums of the same.
    before = compiled.result["eval_loss"]["before"]
    assert before == pytest.approx(plain.result["eval_loss"]["before"], rel=1e-6)


@pytest.mark.slow
def test_a_stop_while_the_first_step_compiles_loses_nothing(small: Path, tmp_path: Path) -> None:
    """That the compiler is left to end its work: only a run that compiles can show it."""
    torch.compiler.reset()  # or a graph of an earlier run is there at once
    write_rows(tmp_path / "train.jsonl", make_rows(24))
    recipe = write_recipe(tmp_path, small, {**CHANGES, "train.torch_compile": True, "data.eval_fraction": None}, "cut")
    shown = SignalAt("training: 4 optimizer steps", signal.SIGTERM)

    with pytest.raises(Interrupted, match="after a checkpoint"):
        run(recipe, shown=shown)

    assert [step for step, _ in checkpoints(RunDir(tmp_path / "runs" / "cut"))] == [1]
