"""No false alarm on good files, and every planted fault is caught."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from fastft.exports.gguf import writer
from fastft.exports.gguf.writer import write_gguf
from fastft.exports.merged import write_merged
from fastft.exports.tensor_check import check_tensors
from tests.exports.families import FAMILIES, write_family
from tests.exports.tiny import Arrays, read_json, write_json

TYPES = ("merged_16bit", "f16", "bf16", "q8_0", "q6_k", "q5_0", "q4_k_m", "q2_k")
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("families")
    return {name: write_family(folder, name) for name in FAMILIES}


def export(base: Path, adapter: Path | None, out: Path, kind: str) -> Path:
    if kind == "merged_16bit":
        return write_merged(base, adapter, out).folder
    return write_gguf(base, adapter, out, kind).file


@pytest.mark.parametrize("name", FAMILIES)
def test_good_files_of_every_architecture_and_type_raise_no_alarm(
    models: dict[str, tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    base, adapter = models[name]
    for kind in TYPES:
        check = check_tensors(base, adapter, export(base, adapter, tmp_path / kind, kind), kind, seed=3)
        assert check.reasons == (), kind
        assert check.tensors >= 20 if "phi" not in name else 14
        assert check.rows > 4 * check.tensors


Model = tuple[Path, Path]
Plant = Callable[[Model, Path, str], Path]


def with_adapter(change: Callable[[str, Arrays], None]) -> Plant:
    """Export with an adapter whose arrays `change` has changed."""

    def plant(model: Model, folder: Path, kind: str) -> Path:
        shutil.copytree(model[1], folder / "adapter")
        arrays = load_file(model[1] / ADAPTER)
        for name in list(arrays):
            change(name, arrays)
        save_file(arrays, folder / "adapter" / ADAPTER)
        return export(model[0], folder / "adapter", folder / "out", kind)

    return plant


def scaled(factor: float) -> Plant:
    def change(name: str, arrays: Arrays) -> None:
        if "lora_B" in name:
            arrays[name] *= np.float32(factor)

    return with_adapter(change)


def noisy(name: str, arrays: Arrays) -> None:
    if "lora_B" in name:
        noise = np.random.default_rng(0).standard_normal(arrays[name].shape, np.float32)
        arrays[name] += np.float32(0.1) * arrays[name].std() * noise


def without_layer_1(name: str, arrays: Arrays) -> None:
    if ".layers.1." in name and "lora_B" in name:
        arrays[name] *= 0


def without_values(name: str, arrays: Arrays) -> None:
    if ".layers.0.self_attn.v_proj" in name and "lora_B" in name:
        arrays[name] *= 0


def layers_swapped(name: str, arrays: Arrays) -> None:
    if ".layers.0." in name:
        other = name.replace(".layers.0.", ".layers.1.")
        arrays[name], arrays[other] = arrays[other].copy(), arrays[name].copy()


def with_config(**changes: object) -> Plant:
    """Export with an adapter that says something else of itself."""

    def plant(model: Model, folder: Path, kind: str) -> Path:
        shutil.copytree(model[1], folder / "adapter")
        write_json(folder / "adapter/adapter_config.json", read_json(model[1] / "adapter_config.json") | changes)
        return export(model[0], folder / "adapter", folder / "out", kind)

    return plant


def without_adapter(model: Model, folder: Path, kind: str) -> Path:
    return export(model[0], None, folder / "out", kind)


def with_base(change: Callable[[Arrays], None]) -> Plant:
    """Export from a base whose arrays `change` has changed."""

    def plant(model: Model, folder: Path, kind: str) -> Path:
        shutil.copytree(model[0], folder / "base")
        arrays = load_file(model[0] / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "base/model.safetensors")
        return export(folder / "base", model[1], folder / "out", kind)

    return plant


def swap(first: str, second: str) -> Plant:
    def change(arrays: Arrays) -> None:
        arrays[first], arrays[second] = arrays[second].copy(), arrays[first].copy()

    return with_base(change)


def embedding_one_row_on(arrays: Arrays) -> None:
    arrays["model.embed_tokens.weight"] = np.roll(arrays["model.embed_tokens.weight"], 1, axis=0)


def head_from_embedding(arrays: Arrays) -> None:
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()


def as_type(other: str) -> Plant:
    return lambda model, folder, _: export(*model, folder / "out", other)


def bytes_changed(change: Callable[[bytearray, GGUFReader], None]) -> Plant:
    """A good file, changed on the disk."""

    def plant(model: Model, folder: Path, kind: str) -> Path:
        file = export(*model, folder / "out", kind)
        data = bytearray(file.read_bytes())
        change(data, GGUFReader(file))
        file.write_bytes(data)
        return file

    return plant


def file_type_of_q5_k_m(data: bytearray, _: GGUFReader) -> None:
    place = data.index(b"general.file_type") + len(b"general.file_type") + 4
    data[place : place + 4] = struct.pack("<I", 17)


def renamed(data: bytearray, _: GGUFReader) -> None:
    data[:] = data.replace(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight")


def names_swapped(data: bytearray, _: GGUFReader) -> None:
    first, second, free = b"blk.0.attn_norm.weight", b"blk.1.attn_norm.weight", b"\0" * 22
    data[:] = data.replace(first, free).replace(second, first).replace(free, second)


def zeroed(data: bytearray, reader: GGUFReader) -> None:
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.attn_v.weight")
    data[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = bytes(tensor.n_bytes)


def type_named_otherwise(data: bytearray, _: GGUFReader) -> None:
    place = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    data[place : place + 4] = struct.pack("<I", 30)  # BF16, which is as long as F16


def shape_turned(data: bytearray, _: GGUFReader) -> None:
    place = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4
    data[place : place + 16] = data[place + 8 : place + 16] + data[place : place + 8]


def halved(model: Model, folder: Path, kind: str) -> Path:
    file = export(*model, folder / "out", kind)
    os.truncate(file, file.stat().st_size // 2)
    return file


BEFORE, AFTER = (f"model.layers.0.{norm}_layernorm.weight" for norm in ("input", "post_attention"))
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
FAULTS: dict[str, tuple[str, str, Plant]] = {
    "adapter x0.5": ("llama", "f16", scaled(0.5)),
    "adapter x0.8": ("llama", "f16", scaled(0.8)),
    "adapter x0.9": ("llama", "f16", scaled(0.9)),
    "adapter x1.25": ("llama", "f16", scaled(1.25)),
    "adapter x-1": ("llama", "f16", scaled(-1)),
    "adapter x0.9 in q8_0": ("qwen3", "q8_0", scaled(0.9)),
    "adapter x0.9 in q4_k_m": ("mistral", "q4_k_m", scaled(0.9)),
    "adapter x0.9 in q2_k": ("gemma3", "q2_k", scaled(0.9)),
    "adapter x0.99 in bfloat16": ("llama-tied-bfloat16", "merged_16bit", scaled(0.99)),
    "10 % noise": ("llama", "f16", with_adapter(noisy)),
    "10 % noise in q4_k_m": ("phi3", "q4_k_m", with_adapter(noisy)),
    "no adapter": ("gemma2", "q5_0", without_adapter),
    "one layer lost": ("llama", "f16", with_adapter(without_layer_1)),
    "one matrix lost": ("qwen2", "q6_k", with_adapter(without_values)),
    "layers of the adapter swapped": ("llama", "q8_0", with_adapter(layers_swapped)),
    "alpha doubled": ("llama", "merged_16bit", with_config(lora_alpha=16)),
    "rank-stabilised scale lost": ("qwen3", "f16", with_config(use_rslora=False)),
    "two norms swapped": ("llama", "f16", swap(BEFORE, AFTER)),
    "norms of two layers swapped": ("llama", "q4_k_m", bytes_changed(names_swapped)),
    "gate and up swapped": ("llama", "q4_k_m", swap(f"{MLP}.gate_proj.weight", f"{MLP}.up_proj.weight")),
    "keys and values swapped": ("qwen2", "f16", swap(f"{ATTENTION}.k_proj.bias", f"{ATTENTION}.v_proj.bias")),
    "embedding one row on": ("llama", "q8_0", with_base(embedding_one_row_on)),
    "head from the embedding": ("llama", "q4_k_m", with_base(head_from_embedding)),
    "q2_k named q4_k_m": ("llama", "q4_k_m", as_type("q2_k")),
    "q8_0 named f16": ("llama", "f16", as_type("q8_0")),
    "q4_k_s named q4_k_m": ("llama", "q4_k_m", as_type("q4_k_s")),
    "only the label is of another type": ("llama", "q4_k_m", bytes_changed(file_type_of_q5_k_m)),
    "one tensor of another type": ("llama", "f16", bytes_changed(type_named_otherwise)),
    "one tensor turned": ("llama", "f16", bytes_changed(shape_turned)),
    "one tensor under another name": ("llama", "f16", bytes_changed(renamed)),
    "one tensor of zeros": ("llama", "q8_0", bytes_changed(zeroed)),
    "cut in half": ("llama", "q8_0", halved),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(models: dict[str, Model], tmp_path: Path, fault: str) -> None:
    name, kind, plant = FAULTS[fault]
    assert check_tensors(*models[name], plant(models[name], tmp_path, kind), kind).reasons


def test_faults_in_the_writer_itself_are_caught(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = models["llama"]
    compute = writer._compute

    def without_reordering(trained: object, group: tuple[writer._Output, ...], begin: int, end: int) -> object:
        moved = tuple(dataclasses.replace(output, heads=0) for output in group)
        return compute(trained, moved, begin, end)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "_compute", without_reordering)
    (reason,) = check_tensors(base, adapter, export(base, adapter, tmp_path / "out", "f16"), "f16").reasons
    assert reason.startswith("4 of 21 tensors are wrong: blk.0.attn_k.weight differs")


def test_how_much_of_the_adapter_is_there_is_said(models: dict[str, Model], tmp_path: Path) -> None:
    file = scaled(0.8)(models["llama"], tmp_path, "f16")
    (reason,) = check_tensors(*models["llama"], file, "f16").reasons
    assert "14 of 21 tensors are wrong: blk.0.ffn_down.weight" in reason
    assert "(the adapter is in it 0.80 times)" in reason
