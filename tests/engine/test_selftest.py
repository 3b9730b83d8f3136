"""`fastft doctor --train` finds nothing wrong with a sound installation, and each planted breakage with its package."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import PeftModel
from transformers import Trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import fastft.engine
from fastft.engine.selftest import checks as selftest
from fastft.probe.installation import Diagnosis
from fastft.probe.software import TESTED
from tests.engine.tiny import ROOT


def examined(folder: Path) -> dict[str, Diagnosis]:
    """Every finding of the self-test in this process, by its name."""
    return {finding.name: finding for finding in selftest.examine(folder, "unsloth", lambda _: None)}


def broken(found: dict[str, Diagnosis]) -> dict[str, str]:
    """What is broken, and what fixes it."""
    return {name: finding.fix for name, finding in found.items() if finding.state == "broken"}


def test_a_sound_installation_passes_every_check(tmp_path: Path) -> None:
    found = examined(tmp_path)

    assert broken(found) == {}
    assert list(found) == [check.name for check in selftest.CHECKS]


def test_a_torch_that_does_not_reach_the_gpu_is_found(
    tmp_path: Path, install: Callable[[str, str], None], nvidia_smi: Callable[[str], None]
) -> None:
    """As with a driver that is too old: the driver reports a GPU, torch is a CUDA build by its name, and sees none."""
    install("torch", f"{TESTED['torch']}+cu130")
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559, 9.0")

    found = examined(tmp_path)

    assert "does not reach NVIDIA H100" in found["torch and driver"].detail
    assert broken(found) == {"torch and driver": f"pip install --force-reinstall --no-deps torch=={TESTED['torch']}"}


def test_the_stock_trainer_under_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Unsloth had left TRL's class alone: our modules are imported anew on top of the stock one."""
    monkeypatch.setattr(trl, "SFTTrainer", trl.SFTTrainer.__mro__[1])
    for name in ("counting", "trainer", "train", "selftest.made_up", "selftest.checks", "selftest"):
        monkeypatch.delitem(sys.modules, f"fastft.engine.{name}")
        if "." not in name:
            monkeypatch.setattr(fastft.engine, name, None)
    from fastft.engine.selftest import checks as fresh

    [finding] = [entry for entry in fresh.examine(tmp_path, "unsloth", lambda _: None) if entry.name == "trainer"]

    assert finding.state == "broken"
    assert "is the stock one" in finding.detail
    assert f"unsloth=={TESTED['unsloth']}" in finding.fix


@pytest.mark.parametrize(
    ("owner", "keyword"), [(trl.SFTConfig, "logging_nan_inf_filter"), (trl.SFTTrainer, "processing_class")]
)
def test_a_removed_keyword_names_the_package_that_removed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, keyword: str
) -> None:
    def without(self: object, *_: object, **values: object) -> None:
        assert keyword in values
        raise TypeError(f"{owner.__name__}.__init__() got an unexpected keyword argument '{keyword}'")

    monkeypatch.setattr(owner, "__init__", without)

    found = examined(tmp_path)

    assert f"'{keyword}'" in found["two optimizer steps"].detail
    assert broken(found) == {"two optimizer steps": f"pip install --force-reinstall --no-deps trl=={TESTED['trl']}"}


def test_wrong_accumulation_scaling_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the number of tokens of the whole step, each micro-batch's mean counts the same."""
    monkeypatch.setattr(Trainer, "_get_num_items_in_batch", lambda *_: None)

    found = examined(tmp_path)

    assert list(broken(found)) == ["accumulation"]
    assert "unsloth==" in found["accumulation"].fix


def test_loss_on_the_prompt_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collate = DataCollatorForLanguageModeling.torch_call

    def on_everything(self: Any, examples: list[Any]) -> dict[str, Any]:
        batch = collate(self, examples)
        batch["labels"] = batch["input_ids"].clone()
        return batch

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", on_everything)

    assert "loss mask" in broken(examined(tmp_path))


def test_an_optimizer_state_that_is_not_restored_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda *_: None)

    assert list(broken(examined(tmp_path))) == ["resume"]


def test_a_base_that_moves_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Trainer.training_step

    def moving(self: Trainer, model: Any, *rest: Any, **values: Any) -> Any:
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1e-3)
        return take(self, model, *rest, **values)

    monkeypatch.setattr(Trainer, "training_step", moving)

    assert "of the base moved" in examined(tmp_path)["two optimizer steps"].detail


def test_an_adapter_that_is_not_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nothing(_: Any, folder: str, **__: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(PeftModel, "save_pretrained", write_nothing)

    found = examined(tmp_path)["export and reload"]

    assert "no weights were written" in found.detail
    assert f"peft=={TESTED['peft']}" in found.fix


@pytest.mark.parametrize("raised", [ImportError("no library", name="bitsandbytes"), OSError("libbitsandbytes_cpu.so")])
def test_a_bitsandbytes_whose_library_does_not_work_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    functional = importlib.import_module("bitsandbytes.functional")
    monkeypatch.setattr(functional, "quantize_4bit", fail)

    found = examined(tmp_path)

    assert list(broken(found)) == ["quantization"]
    assert f"bitsandbytes=={TESTED['bitsandbytes']}" in found["quantization"].fix


# Packing is active with plain transformers, which cannot be brought up beside Unsloth: a process of its own.
PACKED = """
import dataclasses, json, sys
from pathlib import Path
from fastft.engine.selftest import checks as selftest
import torch
from transformers import masking_utils
torch.set_num_threads(1)

def packing(name):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    found = selftest.examine(folder, "transformers", lambda _: None)
    return {finding.name: dataclasses.asdict(finding) for finding in found}

sound = packing("sound")
masking_utils.find_packed_sequence_indices = lambda *_, **__: None
print(json.dumps([sound, packing("contaminated")]))
"""


@pytest.mark.slow
def test_packed_examples_that_see_each_other_are_found(tmp_path: Path) -> None:
    """Only the engine that packs here can show it, and it needs a process without Unsloth."""
    environment = {**os.environ, "FASTFT_ENGINE": "transformers", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PACKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    sound, contaminated = json.loads(done.stdout.splitlines()[-1])

    assert [name for name, finding in sound.items() if finding["state"] == "broken"] == []
    assert "packed examples changed" in sound["packing"]["detail"]
    assert [name for name, finding in contaminated.items() if finding["state"] == "broken"] == ["packing"]
    assert f"transformers=={TESTED['transformers']}" in contaminated["packing"]["fix"]


Doctor = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """`fastft doctor --train --json` in a process of its own, with `folder` before every installed package."""

    def call(folder: Path) -> tuple[int, dict[str, Any], str]:
        paths = f"{folder}{os.pathsep}{ROOT}"
        environment = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        environment.pop("FASTFT_ENGINE", None)
        command = [sys.executable, "-m", "fastft", "doctor", "--train", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}, done.stderr

    return call


@pytest.mark.slow
def test_the_command_tells_a_package_that_cannot_be_imported(doctor: Doctor, tmp_path: Path) -> None:
    """Only a process of its own imports the packages anew."""
    planted = tmp_path / "planted" / "bitsandbytes"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text("raise OSError('libbitsandbytes_cpu.so: cannot open shared object file')\n")

    code, found, progress = doctor(planted.parent)

    wrong = {name: finding for name, finding in found.items() if finding["state"] == "broken"}
    assert code == 4
    assert wrong
    assert all(f"bitsandbytes=={TESTED['bitsandbytes']}" in finding["fix"] for finding in wrong.values())
    assert "• starting unsloth" in progress
