"""Preferences, end to end on a tiny random model: losses against TRL's, train, stop, resume, export."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOTrainer, KTOTrainer
from trl.experimental.orpo import ORPOTrainer

from fastft.engine.tasks.preference import Preference, log_probabilities
from fastft.engine.tasks.preference_losses import Judged, losses
from fastft.files.cache import cache_folder
from fastft.recipe.model import PreferenceSection
from fastft.runs.measured import compared
from fastft.runs.result import Result
from fastft.stages.attempt import Start
from tests.engine.tiny import COLOURS, Ran, make_parts, run, stop, write_recipe, write_rows


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with a short answer that is chosen and a long one that is rejected, of very different lengths."""
    chance = random.Random(seed)  # noqa: S311 -- not for secrets
    rows = []
    for number in range(count):
        words = chance.choices(COLOURS, k=chance.choice((1, 2, 3, 8)))
        prompt = [{"role": "user", "content": f"{seed}.{number} {' '.join(words)}"}]
        rejected = " ".join(chance.choices(COLOURS, k=chance.choice((2, 5))))
        rows.append({"prompt": prompt, "chosen": words[0], "rejected": rejected + "!"})
    return rows


def verdicts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same answers one by one, each with its verdict."""
    return [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs(count // 2, seed)
        for name in ("chosen", "rejected")
    ]


def preferring(folder: Path, model: Path, loss: str = "dpo", **changes: Any) -> Path:
    """A recipe for `model` in `folder`, on 24 rows and 12 held-out ones."""
    folder.mkdir(exist_ok=True)
    made = verdicts if loss == "kto" else pairs
    write_rows(folder / "train.jsonl", made(24))
    write_rows(folder / "eval.jsonl", made(12, seed=1))
    values = {"data.eval": "eval.jsonl", "train.eval_strategy": "epoch", "train.learning_rate": 5e-3, **changes}
    recipe = write_recipe(folder, model, values)
    recipe.write_text(f'task = "preference"\n{recipe.read_text()}[preference]\nloss = "{loss}"\n')
    return recipe


def weights(ran: Ran) -> dict[str, torch.Tensor]:
    return load_file(ran.folder.adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A finished run of 12 steps with merged weights, compared with the trained model."""
    changes = {"export.formats": ["adapter", "merged_16bit"]}
    return run(preferring(tmp_path_factory.mktemp("preferred"), model, **changes))


def test_a_run_says_what_it_prefers_before_and_after(ran: Ran) -> None:
    measures = {one["name"]: one for one in ran.result["measures"]}
    accuracy, margin = measures["reward_accuracy"], measures["reward_margin"]

    assert ran.result["eval_loss"]["before"] == pytest.approx(0.693147, abs=1e-6)  # ln 2: it is its own reference
    assert ran.result["eval_loss"]["after"] < 0.6
    assert accuracy["before"] == [0.5] * 12
    assert sum(accuracy["after"]) > 9
    assert sum(margin["after"]) > 0
    assert len(measures["chosen_likelier"]["before"]) == 12
    assert "  right 100%  " in ran.shown
    # Rounding, in micro-batches of other rows.
    assert ran.steps[0]["rewards"]["margin"] == pytest.approx(0, abs=1e-5)
    assert ran.steps[-1]["rewards"]["margin"] > 0.1
    assert [one.measure.name for one in compared(ran.folder.require(Result))] == ["eval_loss", *measures]


def test_a_stopped_run_goes_on_bit_by_bit(model: Path, ran: Ran, tmp_path: Path) -> None:
    recipe = preferring(tmp_path, model)
    stop(recipe, step=5)

    resumed = run(recipe)

    assert resumed.losses == ran.losses
    assert [step["rewards"] for step in resumed.steps] == [step["rewards"] for step in ran.steps]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(ran).items())


@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto"])
def test_accumulation_changes_no_gradient(model: Path, tmp_path: Path, loss: str) -> None:
    found = []
    for batch in (4, 1):
        folder = tmp_path / str(batch)
        sizes = {"train.per_device_train_batch_size": batch, "train.gradient_accumulation_steps": 4 // batch}
        # Unlike AdamW, it sees the size of a gradient.
        steps = {"train.optim": "sgd", "train.learning_rate": 0.5, "train.max_grad_norm": 0, "train.max_steps": 4}
        changes = {**sizes, **steps, "train.num_train_epochs": None}
        recipe = preferring(folder, model, loss, **changes)
        if loss == "kto":  # good answers alone, so that other answers get likelier too: the reference point is above 0
            write_rows(folder / "train.jsonl", [{**row, "label": True} for row in verdicts(24)])
        parts_of = make_parts(recipe)
        material = replace(parts_of.material, task=Preference(PreferenceSection(loss=loss), 256, None))
        trainer = replace(parts_of, material=material).trainer()
        trainer.train_from(None)
        found.append(
            {name: one.detach().clone() for name, one in trainer.model.named_parameters() if one.requires_grad}
        )

        assert loss != "kto" or trainer._drift > 0.1

    whole, parts = found
    assert any(bool(one.abs().sum()) for name, one in whole.items() if "lora_B" in name)
    # Sums in float32, in another order.
    assert all(torch.allclose(one, parts[name], atol=1e-5) for name, one in whole.items())


def _judged(model: Any, good: torch.Tensor, seed: int = 0) -> tuple[Judged, dict[str, torch.Tensor]]:
    """The log-probabilities of three pairs of made-up tokens, and the batch; answers of other lengths, padded."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 200, (6, 12), generator=chance)
    mask = torch.arange(12) < torch.tensor([12, 9, 7, 10, 12, 5])[:, None]
    answers = mask & (torch.arange(12) >= torch.tensor([4, 5, 2, 4, 5, 2])[:, None])
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~answers, -100)}
    sums, counts = log_probabilities(model, None, batch)
    reference = torch.linspace(-30, -20, 6, dtype=sums.dtype).view(3, 2)
    return Judged(sums[:3], sums[3:], counts[:3], counts[3:], reference, good), batch


@pytest.fixture(scope="module")
def whole(model: Path) -> Any:
    """The tiny model in 64 bits."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)


def _gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


def _same(model: Any, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    pairs_ = zip(_gradients(model, ours), _gradients(model, theirs), strict=True)
    return torch.allclose(ours, theirs, atol=1e-5) and all(torch.allclose(one, two, atol=1e-5) for one, two in pairs_)


def _of_trl(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    """TRL's call of a model with a fused head, which needs Triton, in plain operations."""

    def call(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        wanted = labels[:, 1:]
        each = torch.log_softmax(logits, dim=-1).gather(2, wanted.clamp(min=0).unsqueeze(2)).squeeze(2)
        zeros = torch.zeros_like(each)
        return SimpleNamespace(
            log_probs=each * (wanted != -100), entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    return call


def _trainer_of_trl(model: Any, **settings: Any) -> Any:
    """What TRL's formulas read of their trainer."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda one: one, gather_for_metrics=lambda one: one)
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return SimpleNamespace(
        model=model,
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        beta=0.3,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def test_dpo_is_the_loss_of_trl_with_its_gradients(whole: Any) -> None:
    judged, batch = _judged(whole, torch.ones(3, dtype=torch.bool))
    own = PreferenceSection(loss="dpo", beta=0.3, label_smoothing=0.0)
    assert judged.reference is not None
    trainer = _trainer_of_trl(
        whole,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        label_smoothing=0.0,
        use_weighting=False,
    )
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "completion_mask": (batch["labels"] != -100).long(),
        "ref_chosen_logps": judged.reference[:, 0],
        "ref_rejected_logps": judged.reference[:, 1],
    }

    theirs = DPOTrainer._compute_loss(trainer, _of_trl(whole, batch), inputs, return_outputs=False)

    assert _same(whole, losses(judged, own).mean(), theirs)
    margins = trainer._metrics["eval" if not whole.training else "train"]["rewards/margins"]
    assert margins[0] == pytest.approx(float(judged.margins(own).mean().detach()), abs=1e-5)


def test_orpo_is_the_odds_of_trl_with_their_gradients(whole: Any) -> None:
    judged, _ = _judged(whole, torch.ones(3, dtype=torch.bool))
    own = PreferenceSection(loss="orpo", beta=0.3)
    chosen, rejected = judged.first / judged.first_tokens, judged.second / judged.second_tokens

    theirs = ORPOTrainer.odds_ratio_loss(
        SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu")), chosen, rejected
    )[0]

    # TRL's own loss of the chosen answer counts the question too; the paper's, and this, does not.
    assert _same(whole, losses(judged, own).mean(), (-chosen - theirs).mean())


@pytest.mark.parametrize("drift", [0.4, -0.4])
def test_kto_is_the_loss_of_trl_with_its_gradients(whole: Any, drift: float) -> None:
    good = torch.tensor([True, False, True])
    judged, batch = _judged(whole, good)
    own = PreferenceSection(loss="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    assert judged.reference is not None
    trainer = _trainer_of_trl(
        whole,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        _compute_kl_logps=lambda *_: torch.full((3,), drift),
    )
    inputs = {
        "input_ids": batch["input_ids"][:3],
        "attention_mask": batch["attention_mask"][:3],
        "completion_mask": (batch["labels"][:3] != -100).long(),
        "label": good,
        "ref_logps": judged.reference[:, 0],
        "ref_KL_logps": torch.zeros(3),
    }

    theirs = KTOTrainer._compute_loss(trainer, _of_trl(whole, batch), inputs, return_outputs=False)

    assert _same(whole, losses(judged, own, drift).mean(), theirs)


@pytest.mark.parametrize("loss", ["orpo", "kto"])
def test_the_other_losses_learn_and_go_on_bit_by_bit(model: Path, tmp_path: Path, loss: str) -> None:
    changes = {"train.logging_steps": 2}  # the stop comes within a line
    whole = run(preferring(tmp_path / "whole", model, loss, **changes))
    recipe = preferring(tmp_path / "stopped", model, loss, **changes)
    stop(recipe, step=5)

    resumed = run(recipe)

    accuracy = next(one for one in whole.result["measures"] if one["name"] == "reward_accuracy")
    assert sum(accuracy["after"]) > sum(accuracy["before"])
    assert whole.result["eval_loss"]["after"] < whole.result["eval_loss"]["before"]
    assert resumed.losses == whole.losses
    assert [step["rewards"] for step in resumed.steps] == [step["rewards"] for step in whole.steps]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_log_probabilities_before_training_are_kept_and_proven_when_read(model: Path, ran: Ran, tmp_path: Path) -> None:
    recipe = preferring(tmp_path, model)
    again = run(recipe)

    kept = sorted(
        (cache_folder() / "rows").glob("*/training-*/reference.safetensors"), key=lambda one: one.stat().st_mtime
    )
    assert "log-probabilities of 24 training rows before training, once" in again.shown
    kept[-1].write_bytes(kept[-1].read_bytes()[:-4] + b"\1\2\3\4")
    damaged = run(recipe, start=Start(fresh=True))
    unharmed = run(recipe, start=Start(fresh=True))

    assert again.losses == damaged.losses == unharmed.losses == ran.losses
    assert "log-probabilities of 24 training rows" in damaged.shown
    assert "log-probabilities" not in unharmed.shown
