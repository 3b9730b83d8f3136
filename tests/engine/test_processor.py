"""8-bit optimizers and 4-bit weights on a processor: as right as rounding allows, also where kernels err."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from fastft.commands.run import run as run_pipeline
from fastft.engine.model import load_model
from fastft.errors import Interrupted, TrainingError
from fastft.planning.memory import NF4_BLOCK
from fastft.runs.checkpoints import checkpoints
from fastft.stages.attempt import Start
from tests.engine.tiny import ROOT, SignalAt, make_parts, make_rows, read_result, write_recipe, write_rows

QLORA = ROOT / "recipes" / "qlora_training_arguments.toml"
RATE, DECAY = 1e-3, 0.01


def moved(make: Callable[[list[Parameter]], Any], shape: tuple[int, ...]) -> torch.Tensor:
    """How far 20 steps on fixed gradients move fixed weights."""
    torch.manual_seed(1)
    weight = Parameter(torch.randn(shape) * 0.05)
    before = weight.detach().clone()
    optimizer = make([weight])
    for _ in range(20):
        weight.grad = torch.randn(shape) * 0.01
        optimizer.step()
    return weight.detach() - before


class Lion:
    """The update of Chen et al. 2023, algorithm 2, as it is written there."""

    def __init__(self, weights: list[Parameter]) -> None:
        (self.weight,) = weights
        self.mean = torch.zeros_like(self.weight)

    def step(self) -> None:
        gradient = self.weight.grad
        assert gradient is not None
        sign = (0.9 * self.mean + 0.1 * gradient).sign()
        self.weight.data -= RATE * (sign + DECAY * self.weight.data)
        self.mean = 0.99 * self.mean + 0.01 * gradient


@pytest.mark.parametrize("shape", [(64, 64), (100, 77), (5000,)])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(("bits", "adam_error", "lion_error"), [(32, 1e-5, 1e-5), (8, 0.03, 0.1)])
def test_bitsandbytes_moves_weights_as_the_papers_say(
    shape: tuple[int, ...], paged: bool, bits: int, adam_error: float, lion_error: float
) -> None:
    # 8 bits measured 0.016 for AdamW and 0.059 for Lion, whose sign flips where the mean is near zero.
    shared: dict[str, Any] = {"lr": RATE, "weight_decay": DECAY, "optim_bits": bits, "is_paged": paged}
    exact = moved(lambda weights: torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY), shape)
    adamw = moved(lambda weights: bitsandbytes.optim.AdamW(weights, **shared), shape)
    assert (adamw - exact).norm() < adam_error * exact.norm()

    exact = moved(Lion, shape)
    lion = moved(lambda weights: bitsandbytes.optim.Lion(weights, **shared), shape)
    assert (lion - exact).norm() < lion_error * exact.norm()


def test_rows_that_are_no_multiple_of_a_block_are_misread_here_and_refused(model: Path, tmp_path: Path) -> None:
    """When bitsandbytes reads them right, the first assertion fails: then the refusal can go."""
    errors = {}
    for inputs in (NF4_BLOCK, NF4_BLOCK * 3 // 2):
        torch.manual_seed(0)
        weight = torch.randn(64, inputs)
        errors[inputs] = float((dequantize_4bit(*quantize_4bit(weight, quant_type="nf4")) - weight).norm())
        errors[inputs] /= float(weight.norm())
    assert errors[64] < 0.1 < 0.2 < errors[96]

    parts = make_parts(write_recipe(tmp_path, model, {"model.load_in_4bit": True}))
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "odd").mkdir()
    for file in model.iterdir():
        (tmp_path / "odd" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    weights = load_file(model / "model.safetensors")
    cut = {name: value[:96] if "gate" in name or "up" in name else value for name, value in weights.items()}
    cut = {name: value[:, :96].contiguous() if "down" in name else value for name, value in cut.items()}
    save_file(cut, tmp_path / "odd" / "model.safetensors", {"format": "pt"})
    odd = make_parts(write_recipe(tmp_path, tmp_path / "odd", {"model.load_in_4bit": True}, "odd"))

    assert parts.plan.obstacles == ()
    (obstacle,) = odd.plan.obstacles
    assert "bitsandbytes misreads 4-bit rows of 96 weights (down_proj) on a processor" in str(obstacle)
    with pytest.raises(TrainingError, match="misreads 4-bit rows of 96 weights"):
        load_model(odd.plan, None)


def test_gradients_pass_4_bit_weights_also_after_an_evaluation(model: Path, tmp_path: Path) -> None:
    """bitsandbytes packs weights for evaluation on AVX512-BF16: without our switch no gradient comes back."""
    parts = make_parts(write_recipe(tmp_path, model, {"model.load_in_4bit": True}))
    quantized, _ = parts.load()
    exact, _ = make_parts(write_recipe(tmp_path, model, {}, "exact")).load()
    # The same numbers in full precision: what is left is the path of the gradient.
    stored = dict(quantized.named_modules())
    for name, layer in exact.named_modules():
        packed = stored[name]
        if isinstance(packed, bitsandbytes.nn.Linear4bit):
            layer.weight.data = dequantize_4bit(packed.weight.data, packed.weight.quant_state).to(layer.weight.dtype)
    rows = parts.prepared.train.rows[0]
    batch = {"input_ids": torch.tensor([rows.input_ids]), "labels": torch.tensor([rows.labels])}
    gradients = []
    for one in (quantized, exact):
        torch.manual_seed(5)
        for name, weight in one.named_parameters():
            if "lora_B" in name:
                weight.data = torch.randn_like(weight) * 0.1
        one.eval()
        with torch.no_grad():
            one(**batch)
        one.train()
        one(**batch).loss.backward()
        gradients.append({name: weight.grad for name, weight in one.named_parameters() if weight.requires_grad})
    assert len(gradients[1]) == 28
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5)


def test_the_qlora_recipe_trains_a_tiny_model_on_a_processor_and_resumes_bit_by_bit(
    model: Path, tmp_path: Path
) -> None:
    """What only it can catch: a state of 8 bits that a checkpoint loses, or a recipe that only a GPU can run."""
    write_rows(tmp_path / "train.jsonl", make_rows(16))
    write_rows(tmp_path / "eval.jsonl", make_rows(4, seed=5))
    overrides = [
        f"model.id={model}",
        "model.max_seq_length=256",
        "data.chat_template=model",
        f"data.train={tmp_path / 'train.jsonl'}",
        f"data.eval={tmp_path / 'eval.jsonl'}",
        "lora.r=64",  # matrices of 4,096 weights and more: bitsandbytes keeps the state of smaller ones in 32 bits
        "train.learning_rate=1e-2",
        "train.num_train_epochs=3",
    ]

    def go(where: str, shown: io.StringIO) -> Any:
        return run_pipeline(QLORA, overrides, tmp_path / where, Start(resume=True), Console(file=shown, width=200))

    whole = go("whole", io.StringIO())
    with pytest.raises(Interrupted):
        go("parted", SignalAt("step 2/", signal.SIGTERM))
    parted = go("parted", io.StringIO())

    plan = json.loads((whole.path / "plan.json").read_text())
    assert plan["schedule"]["optimizer_steps"] == 3, "16 rows of 4 x 4, three times"
    assert plan["choices"]["train.optim"]["value"] == "paged_adamw_8bit"
    assert plan["choices"]["train.fp16"]["value"] is False
    result = read_result(whole)
    assert result["eval_loss"]["after"] < result["eval_loss"]["before"]
    assert len(checkpoints(whole)) <= 2, "the newest, and the best where it is another"
    one, two = (load_file(run.adapter / "adapter_model.safetensors") for run in (whole, parted))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
