"""Memory that runs out halves the batch and doubles the accumulation; every optimizer step keeps its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from fastft.errors import MachineError, TrainingError
from fastft.runs.directory import RunDir
from tests.engine.tiny import events, make_rows, run, write_recipe, write_rows

Limit = Callable[..., None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Lets the model run out of memory while it trains on more than `rows` at once, after `calls` that went well."""
    forward = LlamaModel.forward

    def set_limit(rows: int, calls: int = 0, error: Exception | None = None) -> None:
        went_well = 0

        def limited(self: LlamaModel, input_ids: Any = None, *rest: Any, **values: Any) -> Any:
            nonlocal went_well
            if self.training and len(input_ids) > rows:
                if went_well >= calls:
                    raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 GiB")
                went_well += 1
            return forward(self, input_ids, *rest, **values)

        monkeypatch.setattr(LlamaModel, "forward", limited)

    return set_limit


def adapter(folder: RunDir) -> bytes:
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


# 27 rows: the last step of an epoch has 3, in one micro-batch or in several.
@pytest.mark.parametrize("grouped", [False, True], ids=["random", "grouped"])
def test_from_the_start_it_is_the_run_of_the_smaller_batch(
    model: Path, tmp_path: Path, limit: Limit, grouped: bool
) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(27))
    shared = {"train.group_by_length": grouped}
    small = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 4, **shared}
    wanted = run(write_recipe(tmp_path, model, small, "small"))
    limit(rows=2)

    large = {"train.per_device_train_batch_size": 8, **shared}
    retried = run(write_recipe(tmp_path, model, large, "large"))

    assert retried.losses == wanted.losses
    assert adapter(retried.folder) == adapter(wanted.folder)


def test_it_goes_on_from_the_last_checkpoint_with_the_same_rows_in_each_step(
    model: Path, tmp_path: Path, limit: Limit
) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(27))
    whole = run(write_recipe(tmp_path, model, name="whole"))
    # 7 steps an epoch: within the second epoch.
    limit(rows=2, calls=9)

    retried = run(write_recipe(tmp_path, model, name="retried"))

    assert (
        "out of memory with 4 x 1 rows; from step 9 with 2 x 2, the same rows in each optimizer step" in retried.shown
    )
    assert [step["step"] for step in retried.steps] == list(range(1, 15))
    assert [step["tokens"] for step in retried.steps] == [step["tokens"] for step in whole.steps]
    assert retried.losses[:9] == whole.losses[:9]
    # Float32 sums over halves of a batch; after ten steps of Adam they differ in the fifth digit.
    assert [step["loss"] for step in retried.steps] == pytest.approx([step["loss"] for step in whole.steps], rel=1e-3)


def test_the_run_folder_tells_what_happened(model: Path, tmp_path: Path, limit: Limit) -> None:
    limit(rows=1, calls=2)

    retried = run(write_recipe(tmp_path, model))

    expected = [
        {"event": "out_of_memory", "step": 2, "rows": "4 x 1", "rows_now": "2 x 2"},
        {"event": "out_of_memory", "step": 2, "rows": "2 x 2", "rows_now": "1 x 4"},
    ]
    assert retried.result["out_of_memory"] == expected
    assert [event for event in events(retried.folder) if event["event"] == "out_of_memory"] == expected
    plan = json.loads((retried.folder.path / "plan.json").read_text(encoding="utf-8"))
    assert plan["schedule"]["per_device_train_batch_size"] == 1
    assert plan["schedule"]["gradient_accumulation_steps"] == 4


def test_a_batch_that_is_no_power_of_two_keeps_its_rows_too(model: Path, tmp_path: Path, limit: Limit) -> None:
    limit(rows=2)

    retried = run(write_recipe(tmp_path, model, {"train.per_device_train_batch_size": 6}))

    assert [event["rows_now"] for event in retried.result["out_of_memory"]] == ["3 x 2", "1 x 6"]


def test_one_row_that_does_not_fit_ends_the_run_and_says_what_to_lower(
    model: Path, tmp_path: Path, limit: Limit
) -> None:
    limit(rows=0)

    wanted = r"write a smaller max_seq_length or .* or gradient_checkpointing = true or a smaller model"
    with pytest.raises(MachineError, match=wanted) as failed:
        run(write_recipe(tmp_path, model))

    assert failed.value.exit_code == 4
    assert "(got 1)" in str(failed.value)
    assert (tmp_path / "runs" / "tiny" / "attempts" / "1" / "log.txt").is_file()


@pytest.mark.parametrize(
    "words",
    [
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_memory_that_others_than_torch_ask_for_runs_out_too(
    model: Path, tmp_path: Path, limit: Limit, words: str
) -> None:
    limit(rows=2, error=RuntimeError(words))

    retried = run(write_recipe(tmp_path, model, {"train.num_train_epochs": 1}))

    assert [event["rows_now"] for event in retried.result["out_of_memory"]] == ["2 x 2"]


def test_another_error_of_the_device_is_not_retried(model: Path, tmp_path: Path, limit: Limit) -> None:
    limit(rows=2, error=RuntimeError("CUDA error: an illegal memory access was encountered"))

    with pytest.raises(TrainingError, match="illegal memory access"):
        run(write_recipe(tmp_path, model))


def test_auto_recomputes_activations_before_it_takes_smaller_batches(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, failed = LlamaModel.forward, []

    def limited(self: LlamaModel, *rest: Any, **values: Any) -> Any:
        if self.training and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, *rest, **values)

    monkeypatch.setattr(LlamaModel, "forward", limited)

    settings = {"train.per_device_train_batch_size": 4, "train.gradient_checkpointing": "auto"}
    retried = run(write_recipe(tmp_path, model, settings, "auto"))

    [event] = [event for event in events(retried.folder) if event["event"] == "out_of_memory"]
    assert (event["rows"], event["rows_now"]) == ("4 x 1", "4 x 1 recomputed")
    plan = json.loads(retried.folder.plan.read_text())
    assert plan["choices"]["train.gradient_checkpointing"]["value"] == "unsloth"
    assert plan["schedule"]["per_device_train_batch_size"] == 4
