"""Every optimizer that a recipe can name takes steps, keeps the bytes that its row says, and goes on after a stop."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from fastft.engine.chosen_optimizer import make_optimizer, trust_state_classes
from fastft.planning.calls import Call, Calls
from fastft.recipe.optimizers import OPTIMIZERS, Optimizer
from tests.engine.tiny import Ran, make_rows, run, stop, write_recipe, write_rows

MODULES = {"galore-torch": "galore_torch", "apollo-torch": "apollo_torch", "torch-optimi": "optimi"}
# torchao compiles its step, for seconds on a processor.
UPSTREAM = [
    pytest.param(name, marks=[pytest.mark.slow] if row.compiles else [])
    for name, row in OPTIMIZERS.items()
    if row.upstream and not row.refused
]


class OneLayer(torch.nn.Module):
    """256 x 64 weights and no bias: enough for states of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 256, bias=False)

    def forward(self, inputs: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.layer(inputs)


def need(row: Optimizer) -> None:
    """Skip where its package is not installed."""
    for package in row.packages:
        if importlib.util.find_spec(MODULES.get(package, package)) is None:
            pytest.skip(f"{package} is not installed")


def example(row: Optimizer) -> dict[str, Any]:
    """Every argument of `row` with a value that is allowed and not its default, where there are two."""
    given: dict[str, Any] = {}
    for name, argument in row.arguments.items():
        if argument.kind is bool:
            given[name] = not argument.default
        elif argument.choices:
            given[name] = argument.choices[-1]
        else:
            given[name] = argument.kind(max(1, argument.least)) if argument.most > 1 else 0.5
    return given


def upstream(row: Optimizer, given: dict[str, Any], folder: Path, model: torch.nn.Module) -> torch.optim.Optimizer:
    """What transformers makes of the row and these arguments."""
    words = ",".join(f"{name}={str(value).lower()}" for name, value in given.items()) or None
    layers = ["layer"] if row.whole_layers else None
    shared = {"report_to": "none", "use_cpu": True}
    arguments = TrainingArguments(str(folder), optim_args=words, optim_target_modules=layers, **shared)  # type: ignore[arg-type]
    arguments.optim = OptimizerNames(row.upstream)  # Unsloth takes bitsandbytes' ones for what only a GPU can do
    return Trainer(model, arguments).create_optimizer()  # type: ignore[arg-type]


def step(model: OneLayer, optimizer: torch.optim.Optimizer) -> None:
    """One step on a loss of random numbers."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    model(torch.randn(256, 64)).square().mean().backward()
    optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    optimizer.zero_grad()


def stored_bytes(value: Any) -> int:
    """The bytes of a tensor as it is stored: those of torchao are of several."""
    if not torch.is_tensor(value):
        return 0
    if type(value) is torch.Tensor:
        return value.nbytes
    return sum(getattr(value, name).nbytes for name in value.__tensor_flatten__()[0])


@pytest.mark.parametrize("name", UPSTREAM)
def test_an_optimizer_keeps_the_bytes_that_the_forecast_counts(name: str, tmp_path: Path) -> None:
    row, model = OPTIMIZERS[name], OneLayer()
    need(row)
    if row.whole_layers:
        pytest.skip("what is projected has less")
    given = {"momentum": 0.9, "centered": True} if name == "rmsprop" else {"momentum": 0.9} if name == "sgd" else {}
    for arguments in ({}, given):
        optimizer = upstream(row, arguments, tmp_path, model)
        before = model.layer.weight.detach().clone()

        for _ in range(8):  # RAdam waits for some steps until it knows the variance
            step(model, optimizer)

        weight = model.layer.weight
        kept = sum(map(stored_bytes, optimizer.state[weight].values()))
        # The sums of Adafactor grow with the sides of a matrix, not with its area: little of a large one. Counts of
        # steps and tables of quantization have sizes of their own.
        assert kept / weight.numel() == pytest.approx(row.state_bytes_with(arguments), rel=0.05, abs=0.15)
        assert not torch.equal(weight, before)


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_argument_reaches_its_optimizer(name: str, tmp_path: Path) -> None:
    row = OPTIMIZERS[name]
    need(row)
    given = example(row)
    assert [row.arguments[key].refusal(value) for key, value in given.items()] == [None] * len(given)

    optimizer = upstream(row, given, tmp_path, OneLayer())

    group = optimizer.param_groups[-1]
    names = {"alpha": "betas"} if row.family == "AdEMAMix" else {}
    reached = {key for key in given if key in group or key in names or key in ("beta3", "max_lr")}
    assert reached == set(given)
    for key, value in given.items():
        if key in group:
            assert group[key] == value


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_lora_plus_moves_b_faster_than_a_and_is_plain_lora_at_1(ratio: float, model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(8))
    changes = {"train.max_steps": 3, "train.num_train_epochs": None, "train.save_strategy": "no"}
    changes |= {"train.save_steps": None, "train.save_total_limit": None, "train.learning_rate": 1e-4}
    plain = trained(run(write_recipe(tmp_path, model, changes, "plain")))
    plus = trained(run(write_recipe(tmp_path, model, {**changes, "train.loraplus_lr_ratio": ratio}, "plus")))

    moved = {side: max(float((plus[key] - plain[key]).abs().max()) for key in plain if side in key) for side in "AB"}

    if ratio == 1:
        assert moved == {"A": 0.0, "B": 0.0}
    else:
        # AdamW moves a weight by about the rate at each step: 3 steps at the full, two thirds and a third of it.
        largest = max(float(weight.abs().max()) for key, weight in plus.items() if "lora_B" in key)
        assert largest == pytest.approx(ratio * 2e-4, rel=0.2)


def trained(ran: Ran) -> dict[str, torch.Tensor]:
    return load_file(ran.folder.adapter / "adapter_model.safetensors")


KINDS: dict[str, dict[str, Any]] = {
    "muon": {"train.optim": "muon", "train.optim_args.momentum": 0.9, "train.weight_decay": 0.01},
    "lora+": {"train.optim": "lion_8bit", "train.loraplus_lr_ratio": 8.0, "train.learning_rate": 1e-3},
    "schedule-free": {
        "train.optim": "schedule_free_adamw",
        "train.lr_scheduler_type": "constant",
        "train.warmup_steps": 2,
        "data.eval_fraction": 0.2,
        "train.eval_strategy": "epoch",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_by_bit(kind: str, model: Path, tmp_path: Path) -> None:
    need(OPTIMIZERS[KINDS[kind]["train.optim"]])
    write_rows(tmp_path / "train.jsonl", make_rows(20))
    whole = run(write_recipe(tmp_path, model, KINDS[kind], "whole"))
    recipe = write_recipe(tmp_path, model, KINDS[kind], "stopped")
    stop(recipe, 5)
    resumed = run(recipe, resume=True)

    assert "continuing from step" in resumed.shown
    assert [line["loss"] for line in resumed.steps] == [line["loss"] for line in whole.steps]
    assert whole.steps[-1]["loss"] < whole.steps[0]["loss"]
    first, second = trained(whole), trained(resumed)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_state_of_an_optimizer_is_read_back_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    row, model = OPTIMIZERS[name], OneLayer()
    need(row)
    trust_state_classes(name)
    given = {"rank": 4} if row.whole_layers else {}
    optimizer = upstream(row, given, tmp_path, model)
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(1)
    step(model, optimizer)

    again = OneLayer()
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    resumed = upstream(row, given, tmp_path, again)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    torch.manual_seed(1)
    step(again, resumed)

    assert torch.equal(again.layer.weight, model.layer.weight)


def test_attention_has_no_second_derivative_which_sophia_needs() -> None:
    # Once it has, the row of Sophia must be looked at again.
    query = torch.randn(1, 2, 8, 16, requires_grad=True)
    attended = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    (gradient,) = torch.autograd.grad(attended.square().sum(), query, create_graph=True)

    with pytest.raises(RuntimeError, match="is not implemented"):
        torch.autograd.grad(gradient.sum(), query)


def test_muon_keeps_one_momentum_and_moves_as_much_as_adamw(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OneLayer()
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.0, report_to="none", use_cpu=True)
    call = Call(OPTIMIZERS["muon"].class_name, {"lr": 1e-2, **OPTIMIZERS["muon"].fixed})
    optimizer = make_optimizer(Calls(call, None, call, optimizer=call), model, arguments)
    assert optimizer is not None
    before = model.layer.weight.detach().clone()

    step(model, optimizer)

    weight = model.layer.weight
    kept = sum(value.nbytes for value in optimizer.state[weight].values())
    assert kept / weight.numel() == OPTIMIZERS["muon"].state_bytes
    # Liu et al. 2025, section 2.2: the root mean square of a step is 0.2 of the rate; the singular values after the
    # iteration lie between 0.7 and 1.2.
    assert float((weight.detach() - before).square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.3)
