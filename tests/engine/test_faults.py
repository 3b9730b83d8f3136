"""What goes wrong in a run ends it with a reason, and never leaves anything behind that looks whole and is not."""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from fastft.engine.sampler import EpochSampler
from fastft.errors import FastftError, MachineError, TrainingError
from fastft.files.seal import damage
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from tests.engine.tiny import SignalAt, make_model, make_rows, run, write_recipe, write_rows


@pytest.fixture(scope="module")
def poisoned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose loss is NaN as soon as it reads a "Z"."""
    folder = make_model(tmp_path_factory.mktemp("poisoned"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = load_tokens(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids["Z"]] = float("nan")
    model.save_pretrained(folder)
    return folder


def load_tokens(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return found


def write_poisoned_rows(folder: Path, step: int) -> None:
    """24 rows, of which the first that optimizer step `step` reads holds a "Z" (4 rows a step, seed 11)."""
    rows = make_rows(24)
    order = list(EpochSampler(24, seed=11, lengths=None, step_rows=4, grouped=False))
    rows[order[(step - 1) * 4]]["messages"][0]["content"] = "Z"
    write_rows(folder / "train.jsonl", rows)


def tensors_of(checkpoint: Path) -> list[torch.Tensor]:
    """Every tensor of the weights and the optimizer state."""
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    kept = [value for state in optimizer["state"].values() for value in state.values()]
    return [*load_file(checkpoint / "adapter_model.safetensors").values(), *kept]


@pytest.mark.parametrize(
    ("changes", "last_whole"),
    [
        pytest.param({}, 3, id="each step is logged: stopped before the optimizer takes the step"),
        pytest.param({"train.logging_steps": 100}, 3, id="no step is logged: stopped before the checkpoint"),
        pytest.param({"train.logging_steps": 100, "train.save_steps": 3}, 3, id="neither: stopped at the next save"),
        pytest.param(
            {
                "train.logging_steps": 100,
                "train.save_strategy": "no",
                "train.save_steps": None,
                "train.save_total_limit": None,
            },
            None,
            id="neither, ever: stopped at the end",
        ),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run_and_is_never_saved(
    poisoned_model: Path, tmp_path: Path, changes: dict[str, Any], last_whole: int | None
) -> None:
    write_poisoned_rows(tmp_path, step=4)
    with pytest.raises(TrainingError, match=r"no number|is nan") as failed:
        run(write_recipe(tmp_path, poisoned_model, changes))
    assert failed.value.exit_code == 1
    folder = RunDir(tmp_path / "runs" / "tiny")
    assert not folder.is_finished
    assert not folder.adapter.exists()
    whole = checkpoints(folder)
    assert (whole[0][0] if whole else None) == last_whole
    for _, checkpoint in whole:
        assert damage(checkpoint) is None
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(checkpoint))


def test_the_message_names_the_step_whose_loss_is_no_number(poisoned_model: Path, tmp_path: Path) -> None:
    write_poisoned_rows(tmp_path, step=4)
    with pytest.raises(TrainingError, match=r"step 4: model\.id: the loss is nan, .* the base model itself") as failed:
        run(write_recipe(tmp_path, poisoned_model))
    order = list(EpochSampler(24, seed=11, lengths=None, step_rows=4, grouped=False))
    places = ", ".join(f"{row + 1} ({tmp_path / 'train.jsonl'}:{row + 1})" for row in sorted(order[12:16]))
    assert f"with rows {places} of training" in str(failed.value)


def test_rows_are_at_fault_where_base_and_weights_are_sound(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(model, folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        base.get_input_embeddings().weight[load_tokens(folder)["Z"]] = 3e38  # a number, and its square is none
    base.save_pretrained(folder)
    write_poisoned_rows(tmp_path, step=4)
    with pytest.raises(TrainingError, match=r"step 4: data\.train: the loss is .* the gradient norm nan, with rows"):
        run(write_recipe(tmp_path, folder))


def test_the_learning_rate_is_at_fault_where_the_loss_had_risen_before(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(model, folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        base.get_input_embeddings().weight[load_tokens(folder)["Z"]] = 3e38
    base.save_pretrained(folder)
    write_poisoned_rows(tmp_path, step=6)
    changes = {"train.learning_rate": 0.9, "train.lr_scheduler_type": "constant", "train.stop_on_divergence": "never"}
    wrong = r"step 6: train\.learning_rate: the loss is .*; it had risen from 7\.\d+ to \d+\.\d+ before"
    with pytest.raises(TrainingError, match=wrong):
        run(write_recipe(tmp_path, folder, changes))


def test_a_loss_that_rises_without_being_no_number_is_said_at_once_and_stopped(model: Path, tmp_path: Path) -> None:
    full = {
        "train.num_train_epochs": 4,
        "model.full_finetuning": True,
        "lora.r": None,
        "lora.lora_alpha": None,
        "export.formats": ["merged_16bit"],
        "train.lr_scheduler_type": "constant",  # a falling rate brings this small model back
    }
    recipe = write_recipe(tmp_path, model, {**full, "train.learning_rate": 0.9})  # the loss goes from 7 to 30
    with pytest.raises(TrainingError, match=r"train\.stop_on_divergence: .*the run blew up, with rows .* of training"):
        run(recipe)
    done = run(
        write_recipe(
            tmp_path, model, {**full, "train.learning_rate": 0.9, "train.stop_on_divergence": "never"}, name="never"
        )
    )
    assert done.shown.count("blew up") == 1


class Scale(SignalAt):
    """Multiplies every trained weight as soon as `text` is shown."""

    def write(self, text: str) -> int:
        if self._text in text:
            for kept in gc.get_objects():
                if isinstance(kept, torch.nn.Parameter) and kept.requires_grad:
                    kept.data *= 10_000
        return super(SignalAt, self).write(text)


def test_an_adapter_that_was_multiplied_meanwhile_is_noticed(model: Path, tmp_path: Path) -> None:
    with contextlib.suppress(TrainingError):
        shown = Scale("step 18/", signal.SIGTERM)
        run(write_recipe(tmp_path, model, {"train.num_train_epochs": 5}), shown=shown)
    assert "the smoothed loss rose from" in shown.getvalue()


def test_too_little_disk_is_refused_before_a_folder_is_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ("total", "used", "free"))  # noqa: PYI024 -- what shutil returns
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(MachineError, match=r"the run writes up to 0\.\d\d GiB, 0\.00 GiB are free") as refused:
        run(write_recipe(tmp_path, model))
    assert refused.value.exit_code == 4
    assert not (tmp_path / "runs").exists()


class Limit(SignalAt):
    """From the moment that `text` is shown, no file of this process may grow beyond 32 KiB: a disk that fills up."""

    def write(self, text: str) -> int:
        if self._text in text:
            resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, resource.RLIM_INFINITY))
        return super(SignalAt, self).write(text)


def test_a_disk_that_fills_up_keeps_the_checkpoints_and_the_run_goes_on_later(model: Path, tmp_path: Path) -> None:
    whole = run(write_recipe(tmp_path, model, name="whole"))
    recipe = write_recipe(tmp_path, model, name="full")
    try:
        with pytest.raises(TrainingError, match=r"the checkpoint could not be written: .* MiB free"):
            run(recipe, shown=Limit("step 5/", 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    folder = RunDir(tmp_path / "runs" / "full")
    assert [(step, damage(path)) for step, path in checkpoints(folder)] == [(4, None), (3, None), (2, None), (1, None)]
    resumed = run(recipe, resume=True)
    name = "adapter_model.safetensors"
    assert (resumed.folder.adapter / name).read_bytes() == (whole.folder.adapter / name).read_bytes()


class Remove(SignalAt):
    """Removes the folder of the run as soon as `text` is shown."""

    def __init__(self, text: str, folder: Path) -> None:
        super().__init__(text, signal.SIGTERM)
        self._folder = folder

    def write(self, text: str) -> int:
        if self._text in text:
            shutil.rmtree(self._folder, ignore_errors=True)
        return super(SignalAt, self).write(text)


def test_a_run_folder_that_is_removed_meanwhile_is_one_line(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    with pytest.raises(FastftError) as failed:
        run(write_recipe(tmp_path, model), shown=Remove("step 5/", folder))
    assert "\n" not in str(failed.value)
    assert "was removed while the run went on" in str(failed.value)


def test_a_disk_that_is_too_short_for_a_checkpoint_says_what_is_needed_and_free(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ("total", "used", "free"))  # noqa: PYI024 -- what shutil returns
    run_dir = RunDir(tmp_path / "runs" / "tiny")

    def shrinking(_: object) -> object:
        return usage(10**9, 0, 5_000 if checkpoints(run_dir) else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    with pytest.raises(TrainingError, match=r"the disk is full: a checkpoint needs 0\.\d MiB, 0\.0 MiB are free"):
        run(write_recipe(tmp_path, model))
    assert [step for step, _ in checkpoints(run_dir)] == [1]


def test_a_held_out_loss_above_that_of_the_untrained_model_is_said_once(model: Path, tmp_path: Path) -> None:
    # One answer, learnt by heart: any other becomes less likely than at random.
    turns = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    write_rows(tmp_path / "train.jsonl", [{"messages": turns}] * 8)
    write_rows(tmp_path / "eval.jsonl", make_rows(8, seed=5))
    changes = {"data.eval": "eval.jsonl", "train.eval_strategy": "epoch", "train.num_train_epochs": 20}
    done = run(write_recipe(tmp_path, model, {**changes, "train.learning_rate": 5e-2}))
    assert done.shown.count("the model gets worse") == 1


def test_a_fault_inside_a_library_is_one_line_and_its_traceback_is_in_the_log(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("the first line\nand a second one")

    monkeypatch.setattr(SFTTrainer, "training_step", fail)
    with pytest.raises(TrainingError) as failed:
        run(write_recipe(tmp_path, model))
    log = tmp_path / "runs" / "tiny" / "attempts" / "1" / "log.txt"
    assert str(failed.value).startswith(f"{log}: LookupError: the first line; ")
    assert "\n" not in str(failed.value)
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "LookupError: the first line\nand a second one" in text


def test_a_loader_that_refuses_is_told_in_its_own_words_with_the_log(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"from_pretrained or its adapter failed: ") as failed:
        run(write_recipe(tmp_path, broken))
    assert "\n" not in str(failed.value)
    log = tmp_path / "runs" / "tiny" / "attempts" / "1" / "log.txt"
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


def test_weights_that_are_cut_short_are_told_before_anything_is_loaded(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MachineError, match=r"model\.safetensors: not a safetensors file, or cut short"):
        run(write_recipe(tmp_path, broken))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"GGUF\x03\0\0\0" + b"\0" * 16]
)
def test_a_broken_gguf_file_is_refused_and_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    package = tmp_path / "broken_gguf_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, Path("unused"), {"model.id": "package:broken_gguf_package/model.gguf"})
    with pytest.raises(FastftError, match=r"the GGUF file cannot be converted: ") as failed:
        run(recipe)
    assert failed.value.exit_code == 4
    assert "\n" not in str(failed.value)
    assert list((tmp_path / "cache" / "fastft" / "converted").iterdir()) == []
