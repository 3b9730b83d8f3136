"""Training on a real GPU: 4-bit weights under seven adapters, packed examples apart, batches that are equal, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.engine.train import train
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from tests.engine.tiny import Ran, make_parts, make_rows, run, stop, write_recipe, write_rows

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# bfloat16 keeps 8 bits: sums of thousands of products in another order differ by about a per cent.
BFLOAT16 = 2e-2
NO_CHECKPOINTS = {"train.save_strategy": "no", "train.save_steps": None, "train.save_total_limit": None}


def losses(ran: Ran) -> list[float]:
    return [step["loss"] for step in ran.steps]


def test_4_bit_weights_stand_under_adapters_on_all_seven_projections(
    model: Path, tmp_path: Path, in_4bit: bool
) -> None:
    loaded, _ = make_parts(write_recipe(tmp_path, model, {"model.load_in_4bit": in_4bit})).load()

    modules = {name: module for name, module in loaded.named_modules() if name.endswith(SEVEN)}
    assert len(modules) == 2 * len(SEVEN)
    assert all(hasattr(module, "lora_A") for module in modules.values())
    stored = {type(module.base_layer.weight).__name__ for module in modules.values()}
    assert stored == ({"Params4bit"} if in_4bit else {"Parameter"})


@pytest.mark.parametrize("packing", [False, True])
def test_the_adapter_moves_and_the_base_does_not(model: Path, tmp_path: Path, in_4bit: bool, packing: bool) -> None:
    changes = {"model.load_in_4bit": in_4bit, "train.packing": packing, **NO_CHECKPOINTS}
    parts = make_parts(write_recipe(tmp_path, model, changes))
    loaded, tokenizer = parts.load()
    before = {name: weight.detach().clone() for name, weight in loaded.named_parameters()}

    train(parts.plan, loaded, tokenizer, parts.material, parts.folder, parts.hooks, None)

    moved = {name for name, weight in loaded.named_parameters() if not torch.equal(before[name], weight.detach())}
    assert {name for name in moved if "lora_" not in name} == set()
    assert {name for name in before if "lora_B" in name} <= moved


@pytest.mark.needs_cuda
@pytest.mark.parametrize("in_4bit", [False, True])
def test_changing_one_packed_example_moves_nothing_in_the_others(model: Path, tmp_path: Path, in_4bit: bool) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(40))
    changes = {"model.load_in_4bit": in_4bit, "train.packing": True, "train.per_device_train_batch_size": 1}
    parts = make_parts(write_recipe(tmp_path, model, changes))
    trainer = parts.trainer()
    assert parts.plan.choices.packing.value is True
    assert len(trainer.train_dataset) < 40
    batch: dict[str, Any] = next(iter(trainer.get_train_dataloader()))
    values = {key: value for key, value in batch.items() if key != "labels"}
    ids = values["input_ids"]
    starts = torch.nonzero(values["position_ids"][0] == 0).flatten().tolist()
    assert len(starts) > 2
    changed = ids.clone()
    changed[0, : starts[1]] = (changed[0, : starts[1]] + 1) % 96 + 32
    loaded = trainer.model.eval()
    with torch.no_grad():
        whole = loaded(**values, use_cache=False).logits[0].float()
        other = loaded(**{**values, "input_ids": changed}, use_cache=False).logits[0].float()
        alone = loaded(input_ids=ids[:, starts[1] : starts[2]], use_cache=False).logits[0].float()

    apart = (whole - other).abs().amax(dim=-1)
    assert apart[: starts[1]].max() > 0.1
    assert apart[starts[1] :].max() == 0.0
    # Another kernel shape sums in another order.
    assert (alone - whole[starts[1] : starts[2]]).abs().max() < BFLOAT16 * whole.abs().max()


@pytest.mark.parametrize("packing", [False, True])
def test_batch_8_x_1_is_1_x_8(model: Path, tmp_path: Path, in_4bit: bool, packing: bool) -> None:
    shared = {"model.load_in_4bit": in_4bit, "train.packing": packing, **NO_CHECKPOINTS, "train.learning_rate": 1e-3}
    shared |= {"model.max_seq_length": 128 if packing else 256}
    write_rows(tmp_path / "train.jsonl", make_rows(48))
    eight, one = (
        run(
            write_recipe(
                tmp_path,
                model,
                {**shared, "train.per_device_train_batch_size": batch, "train.gradient_accumulation_steps": 8 // batch},
                f"batch-{batch}",
            )
        )
        for batch in (8, 1)
    )

    assert [step["tokens"] for step in eight.steps] == [step["tokens"] for step in one.steps]
    assert losses(eight) == pytest.approx(losses(one), rel=BFLOAT16)
    norms = ([step["grad_norm"] for step in ran.steps] for ran in (eight, one))
    assert next(norms) == pytest.approx(next(norms), rel=5 * BFLOAT16)


# From 512 on, Unsloth's checkpointing moves activations to main memory, as the shipped recipes have it.
@pytest.mark.parametrize(("length", "checkpointing"), [(256, False), (512, "unsloth")])
def test_a_stopped_run_ends_like_an_undisturbed_one(
    model: Path, tmp_path: Path, in_4bit: bool, length: int, checkpointing: bool | str
) -> None:
    changes = {"model.load_in_4bit": in_4bit, "train.learning_rate": 1e-3, "train.optim": "adamw_8bit"}
    changes |= {"model.max_seq_length": length, "train.gradient_checkpointing": checkpointing}
    whole = run(write_recipe(tmp_path, model, changes, "whole"))
    recipe = write_recipe(tmp_path, model, changes, "stopped")
    stop(recipe, 7)
    resumed = run(recipe, resume=True)

    assert [step["step"] for step in resumed.steps] == [step["step"] for step in whole.steps]
    # A GPU adds in any order, so that equal runs differ in the last bits as well.
    assert losses(resumed) == pytest.approx(losses(whole), rel=BFLOAT16)


@pytest.mark.parametrize("stored_in_4bit", [False, True])
def test_a_merged_export_passes_the_parity_gate(
    model: Path, tmp_path: Path, in_4bit: bool, stored_in_4bit: bool
) -> None:
    write_rows(tmp_path / "held_out.jsonl", make_rows(6, seed=9))
    changes = {
        "model.load_in_4bit": in_4bit and stored_in_4bit,
        "data.eval": "held_out.jsonl",
        "export.formats": ["adapter", "merged_16bit"],
    }
    ran = run(write_recipe(tmp_path, model, changes))

    assert [export["kind"] for export in ran.result["exports"]] == ["merged_16bit"]


@pytest.mark.needs_cuda
def test_memory_that_runs_out_halves_the_batch(tmp_path: Path) -> None:
    """A real shortage: this process may have three quarters of what the large batch took."""
    from tests.gpu.shapes import make_shape

    folder = make_shape(tmp_path / "model", hidden=1024, inner=2816, layers=8, heads=16, key_value_heads=4)
    text = "the cat sat on the mat " * 20
    write_rows(tmp_path / "train.jsonl", [{"text": f"{number} {text}"} for number in range(64)])
    shared = {"model.max_seq_length": 512, "train.gradient_checkpointing": False, **NO_CHECKPOINTS}
    shared |= {"train.num_train_epochs": None, "train.max_steps": 3}
    large = {**shared, "train.per_device_train_batch_size": 32}
    whole = run(write_recipe(tmp_path, folder, large, "whole"))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * whole.result["peak_memory_bytes"] / total)
    try:
        retried = run(write_recipe(tmp_path, folder, large, "retried"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert retried.result["out_of_memory"][0]["rows"] == "32 x 1"
    assert retried.result["out_of_memory"][0]["rows_now"] == "16 x 2"
    assert [step["examples"] for step in retried.steps] == [step["examples"] for step in whole.steps]
    assert [step["tokens"] for step in retried.steps] == [step["tokens"] for step in whole.steps]
    assert losses(retried) == pytest.approx(losses(whole), rel=BFLOAT16)
    assert checkpoints(RunDir(retried.folder.path)) == []
